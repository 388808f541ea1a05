"""A model of the hub, OWNER/NAME or OWNER/NAME@REVISION, as a folder of the hub's cache: every file of one commit, fetched where it lacks.

A branch or tag is resolved to a commit once in a process, so that config, tokenizer and weights are of one commit. What cannot be had is
refused with what to do: no such model, gated, offline, no network.
"""

import errno
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from eval.encoder.near_miss import meant
from eval.errors import SettingError, WriteError, remedy_of

CONFIG = "config.json"
SAFE_WHOLE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED_WHOLE, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_WEIGHTS = (SAFE_WHOLE, SAFE_INDEX, PICKLED_WHOLE, PICKLED_INDEX)
"""In which order they are looked for."""
_ID = re.compile(r"(?P<id>(?!\.)[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?")
_SMALL_FILES = (".json", ".txt", ".model", ".jinja", ".spm", ".tiktoken")
"""Endings of what config, image processor and tokenizer are read from."""
_CARD = "README.md"
"""Says under which licence the model may be used (train/engine/card.py)."""
_SECONDS = 20.0
NETWORK_ERRORS: tuple[type[Exception], ...] = (OSError, cast(type[Exception], HfHubHTTPError.__mro__[1]))
"""What asking the hub raises; the latter is what every error of httpx derives from."""
_REFUSALS: tuple[type[Exception], ...] = (*NETWORK_ERRORS, EntryNotFoundError, HFValidationError)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class HubModel:
    """A model of the hub by name.

    Attributes:
        id: OWNER/NAME, or NAME of one without an owner.
        revision: branch, tag or commit; None: none was named, which is the branch main.
    """

    id: str
    revision: str | None

    @classmethod
    def parse(cls, name: str) -> "HubModel | None":
        """The model a name stands for; None where it has another form, as a path has."""
        found = _ID.fullmatch(name)
        return None if found is None else cls(found["id"], found["revision"])


def without_revision(name: str) -> str:
    """The name of a model without its @REVISION; a folder's as it is."""
    found = None if os.path.isdir(name) else HubModel.parse(name)
    return name if found is None else found.id


def model_folder(name: str, setting: str = "model") -> Path:
    """The folder of a model's small files: config, image processor, tokenizer.

    Args:
        name: a folder, or a model of the hub, whose files are fetched where the hub's cache lacks them.
        setting: what the name was given as, for `eval.errors.named`.

    Raises:
        SettingError: it is neither; or the hub has no such model or revision, does not let this person read it, or cannot be reached.
    """
    if name and os.path.isdir(name):
        return Path(name)
    model = HubModel.parse(name)
    if model is None:
        raise SettingError(
            setting,
            f"{name!r}: no such folder is here (paths are relative to {os.getcwd()}), and no hub id has this form. Expected a folder with "
            f"{CONFIG}, such as runs/NAME/export, or OWNER/NAME or OWNER/NAME@REVISION of the hub.{meant(name)}",
        )
    with _refusing(name, model, setting):
        return _snapshot(model, constants.HF_HUB_CACHE).folder


def fetch_weights(name: str, setting: str = "model") -> None:
    """Fetch the weights of a model of the hub into its folder: safetensors, or where it has none pytorch_model.bin; whole or in shards.

    Raises:
        SettingError: as `model_folder`.
    """
    if os.path.isdir(name) or (model := HubModel.parse(name)) is None:
        return
    with _refusing(name, model, setting):
        found = _snapshot(model, constants.HF_HUB_CACHE)
        fetch, there = found.fetch, found.has
        first = next(filter(there, _WEIGHTS), None)
        if first is None:
            return
        fetch(first)
        if first in (SAFE_INDEX, PICKLED_INDEX):
            for shard in _shards(found.folder / first):
                if there(shard):
                    fetch(shard)


def revision_in_use(name: str) -> str | None:
    """The commit that a model of the hub was resolved to in this process; None of a folder, and of what was not asked for yet."""
    if os.path.isdir(name) or (model := HubModel.parse(name)) is None:
        return None
    return _RESOLVED.get((model, constants.HF_HUB_CACHE))


def with_revision(name: str) -> str:
    """The name of a model, with the commit in use of one of the hub."""
    commit = revision_in_use(name)
    return name if commit is None else f"{name} (commit {commit} of the hub)"


def revisions_of(names: Sequence[str]) -> dict[str, str]:
    """Name -> commit in use, of those that are of the hub: what a report records."""
    return {name: commit for name in names if (commit := revision_in_use(name)) is not None}


_RESOLVED: dict[tuple[HubModel, str], str] = {}


@dataclass(frozen=True)
class _Snapshot:
    """The folder of one commit in the hub's cache.

    Attributes:
        names: files of the commit; None: the hub was not asked, and what the folder holds is all.
    """

    model: HubModel
    folder: Path
    names: frozenset[str] | None

    def has(self, name: str) -> bool:
        return (self.folder / name).exists() if self.names is None else name in self.names

    def fetch(self, name: str) -> None:
        if not (self.folder / name).exists():
            hf_hub_download(self.model.id, name, revision=self.folder.name)


@cache
def _snapshot(model: HubModel, cache_folder: str) -> _Snapshot:
    """The commit of a model, its small files fetched; asked for once in a process."""
    names, failure = None, None
    if not constants.HF_HUB_OFFLINE:
        try:  # a quick request first: a file is asked for again and again where there is no network
            found = HfApi().model_info(model.id, revision=model.revision, timeout=_SECONDS)
            names = frozenset(file.rfilename for file in found.siblings or ())
        except NETWORK_ERRORS as error:
            failure = error
    is_reachable = failure is None or isinstance(failure, HfHubHTTPError)
    try:  # by the name of the branch, so that the cache knows next time what it stands for
        config = Path(hf_hub_download(model.id, CONFIG, revision=model.revision, local_files_only=not is_reachable))
    except LocalEntryNotFoundError as error:
        raise error from (failure or error.__cause__)
    if failure is not None:
        line = f"the hub cannot be asked for {model.id} ({reason(failure)}): what its cache has is used, {config.parent}"
        print(line, file=sys.stderr, flush=True)
    snapshot = _Snapshot(model, config.parent, names)
    for name in sorted(names or ()):
        if "/" not in name and name.endswith(_SMALL_FILES) and name not in (SAFE_INDEX, PICKLED_INDEX) or name == _CARD:
            snapshot.fetch(name)
    _RESOLVED[model, cache_folder] = config.parent.name
    return snapshot


def _shards(index: Path) -> list[str]:
    """File names in an index, in the folder itself; an index that is none names nothing, and is refused when it is read."""
    try:
        places = {str(place) for place in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return sorted(place for place in places if Path(place).name == place)


@contextmanager
def _refusing(name: str, model: HubModel, setting: str) -> Iterator[None]:
    """Turn what the hub's library raises into an error that says what to do.

    Raises:
        SettingError, WriteError: in place of it.
    """
    try:
        yield
    except _REFUSALS as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise WriteError(
                f"{name}: its files could not be written to the hub's cache, {constants.HF_HUB_CACHE}: {error}. {remedy_of(error)}, or set "
                "HF_HOME to another folder"
            ) from error
        near = meant(name)
        raise SettingError(setting, f"{name}: {_fault(model, error)}{near and '.'}{near}") from error


def _fault(model: HubModel, error: BaseException) -> str:
    """What is wrong, and what to do."""
    page, cache_folder = f"{constants.ENDPOINT}/{model.id}", constants.HF_HUB_CACHE
    named = f"revision {model.revision!r} of {model.id}" if model.revision else model.id
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return f"a gated model, which this person may not read (HTTP {status}). Accept its terms at {page}, then log in: hf auth login"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has no revision {model.revision!r} of {model.id} (HTTP {status}). {page}/commits lists what there is"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            f"no such folder is here, and the hub has no model {model.id} that this person may read (HTTP {status}). Check the name at "
            f"{page}; of a private or gated model accept the terms there, then log in: hf auth login"
        )
    if isinstance(error, HFValidationError):
        return f"no such folder is here, and no hub id has this form ({reason(error)}). Expected OWNER/NAME or OWNER/NAME@REVISION"
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return (
            f"no such folder is here, and {named} is not in the hub's cache, {cache_folder}, while HF_HUB_OFFLINE is set. Fetch it where "
            f"there is a network: hf download {model.id}" + (f" --revision {model.revision}" if model.revision else "")
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{page} has no {CONFIG}: no model in the format of transformers. Take one that has"
    return (
        f"no such folder is here, and {named} could not be fetched from {constants.ENDPOINT} ({reason(error)}), nor is it in the hub's "
        f"cache, {cache_folder}. Check the connection (HF_ENDPOINT names another hub), or give a folder"
    )


def reason(error: BaseException) -> str:
    """The first line of an error, or of the one that it was raised for."""
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    first = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
    return f"HTTP {status}" if status is not None else first
