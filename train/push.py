"""Send an export to a repository of the hub, as one commit: only when asked, private unless asked otherwise, and only what was exported.

An export is sent as its manifest has it, byte for byte; its card names the repository in its examples.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from eval.encoder.hub import NETWORK_ERRORS, reason
from eval.encoder.sealed import MANIFEST, sealed_hashes, verify
from eval.errors import UserError
from eval.report.calibration import FILE as CALIBRATION
from train.engine.card import CARD, HERE
from train.engine.folder import sealed_forms

_MADE_BY_HUB = ".gitattributes"
_LOG_IN = "log in with a token that may write: hf auth login, or HF_TOKEN=..."
_REFUSALS: tuple[type[Exception], ...] = (*NETWORK_ERRORS, RuntimeError, ValueError)
"""What sending raises; a RuntimeError has the cause of a failed upload, a ValueError is of the card's metadata."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """An export that is to be sent.

    Attributes:
        folder: the export.
        name: ORG/NAME, the repository.
        public: whether everybody may read it.
        update: whether a repository that holds files may be replaced by the export, in one commit on top of what it has.
    """

    folder: Path
    name: str
    public: bool = False
    update: bool = False

    def files(self) -> dict[str, Path]:
        """What is sent, by its path in the repository, sorted; nothing is asked of the hub.

        Raises:
            UserError: the name is none, or the folder is no export of ours, is damaged, or holds something else too.
        """
        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            raise UserError(f"--push: expected ORG/NAME, found {self.name!r} ({reason(error)})") from error
        if "/" not in self.name:
            raise UserError(f"--push: expected ORG/NAME, as in somebody/{self.name}; found {self.name!r}")
        folder = self.folder
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not there: give the folder of a finished run, or of an export, or write one first: --output FOLDER"
            )
        known = {CARD, CALIBRATION}  # written after the export was sealed
        for part in (folder, *sealed_forms(folder)):
            if fault := verify(part):
                raise UserError(
                    f"{part} is no whole export: {fault} ({MANIFEST} holds the SHA-256 of its files). Only what was exported is sent; "
                    "export it again"
                )
            known |= {(part / name).relative_to(folder).as_posix() for name in (MANIFEST, *sealed_hashes(part))}
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir() or path.is_symlink()}
        if foreign := sorted(found.keys() - known):
            raise UserError(f"{folder} holds {foreign[:5]}, which {MANIFEST} does not name: only what was exported is sent. Move it out")
        return found

    def lines(self) -> list[str]:
        """What is sent, where, and who may read it; a line a file, with its size in bytes. Errors as of `files`."""
        sizes = {name: path.stat().st_size for name, path in self.files().items()}
        width = max(len(f"{size:,}") for size in (*sizes.values(), sum(sizes.values())))
        who = "public: everybody may read it" if self.public else "private"
        return [
            f"push      {self.folder} -> {constants.ENDPOINT}/{self.name} ({who})",
            *(f"          {size:>{width},} bytes  {name}" for name, size in sizes.items()),
            f"          {sum(sizes.values()):>{width},} bytes in {len(sizes)} files, one commit",
        ]

    def send(self) -> str:
        """Make the repository where there is none, and commit the files. Returns the commit's address.

        Raises:
            UserError: as of `files`; or there is no token, no right, no network, or such a repository already.
        """
        files = self.files()
        if constants.is_offline_mode():
            raise UserError("--push: HF_HUB_OFFLINE is set, so nothing can be sent. Unset it, or see what would be sent: --dry-run")
        if get_token() is None:
            raise UserError(f"--push: no token of the hub is here; {_LOG_IN}")
        api = HfApi()
        with self._refusing():
            stale = self._prepared(api) - files.keys()
            additions = [CommitOperationAdd(name, self._card(path) if name == CARD else path) for name, path in files.items()]
            deletions = [CommitOperationDelete(name) for name in sorted(stale)]
            made = api.create_commit(self.name, [*additions, *deletions], commit_message=f"Export: {_title(self.folder / CARD)}")
        return made.commit_url

    def _card(self, path: Path) -> bytes:
        """The card, whose examples load the model from the repository."""
        return path.read_text(encoding="utf-8").replace(HERE, f'name = "{self.name}"').encode()

    def _prepared(self, api: HfApi) -> set[str]:
        """Names of the files that the repository holds, which is made where there is none.

        Raises:
            UserError: it is another's visibility than asked for, or holds files and is not to be updated.
        """
        try:
            found = api.model_info(self.name)
        except RepositoryNotFoundError as error:
            if getattr(error.response, "status_code", None) == 401:  # without a valid token; with one it is 404
                raise
            api.create_repo(self.name, private=not self.public)
            return set()
        page = f"{constants.ENDPOINT}/{self.name}"
        if not found.private and not self.public:
            raise UserError(f"{page} is public: everybody could read what is sent. Add --public if they may, or take another name")
        if found.private and self.public:
            raise UserError(f"{page} is private, and --public would not change that: change it on its page, or leave --public out")
        names = {file.rfilename for file in found.siblings or ()} - {_MADE_BY_HUB}
        if names and not self.update:
            raise UserError(
                f"{page} exists already and holds {len(names)} file(s), e.g. {sorted(names)[:3]}. Take another name, or put the export in "
                "their place, in one commit on top of them: --update"
            )
        return names

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn what the hub's library raises into an error that says what to do.

        Raises:
            UserError: in place of it.
        """
        try:
            yield
        except UserError:
            raise
        except _REFUSALS as error:
            raise UserError(f"--push {self.name}: {self._fault(error)}") from error

    def _fault(self, error: Exception) -> str:
        cause = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status == 401:
            return f"the hub does not know this token (HTTP 401); {_LOG_IN}"
        if status == 403:
            owner = self.name.partition("/")[0]
            return f"this token may not write to {owner} (HTTP 403). Name an owner that you may write for, or {_LOG_IN}"
        if status is not None or isinstance(cause, HfHubHTTPError):
            return f"the hub refused it ({reason(cause)}: {getattr(cause, 'server_message', None) or 'no reason given'})"
        if isinstance(cause, OSError) and cause.filename is not None:
            return f"could not read what is sent ({reason(cause)})"
        if isinstance(error, ValueError):
            return f"not sent: {reason(error)}"
        return f"{constants.ENDPOINT} could not be reached ({reason(cause)}). Check the connection; the same command goes on"


def _title(path: Path) -> str:
    """The first heading of a card."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), path.parent.name)
