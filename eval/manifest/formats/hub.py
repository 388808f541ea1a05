"""Rows of a data set on the hub, fetched and cached on disk by the `datasets` library. No code of the data set is run."""

import glob
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from eval.errors import UserError
from eval.manifest.formats.arrow import ArrowRows, Part, parts_of
from eval.manifest.formats.encoding import values_of

_ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>(?!\.)[\w.-]+(?:/(?!\.)[\w.-]+)*))?"
)
_COMMIT = re.compile("[0-9a-f]{40}")
_FILE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".token", ".zip", ".tar", ".xlsx", ".yaml")
_SECONDS = 10.0
_COMMITS: dict[str, str] = {}
"""Source -> commit, of what this process has read."""


@dataclass(frozen=True)
class HubId:
    """`OWNER/NAME[:CONFIG][@REVISION]`, as it was given in `source`.

    Attributes:
        revision: branch, tag or commit; None: none was named, which is the branch main.
    """

    source: str
    name: str
    config: str | None
    revision: str | None = None

    @classmethod
    def parse(cls, source: str) -> "HubId | None":
        """The id a source may be; None for what is plainly the path of a file."""
        found = _ID.fullmatch(source)
        if found is None or source.lower().endswith(_FILE_SUFFIXES) or found["name"].lower().endswith(_FILE_SUFFIXES):
            return None
        return cls(source, found["name"], found["config"], found["revision"])


def data_revision(source: str) -> str | None:
    """The commit that a data set of the hub was read at in this process; None of a file or folder, and of what was not read."""
    return _COMMITS.get(source)


def with_data_revision(source: str) -> str:
    """The source of a data set, with its commit where it was read from the hub."""
    commit = data_revision(source)
    return f"`{source}`" if commit is None else f"`{source}` (commit {commit} of the hub)"


def read_hub_dataset(hub_id: HubId, mapping: Mapping[str, str]) -> ArrowRows:
    """The rows of a data set on the hub; each of its splits is one here, unless a column names it.

    Raises:
        UserError: it cannot be had (no such data set or revision, no network, offline and never fetched), or cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    offline = bool(datasets.config.HF_HUB_OFFLINE)
    commit = _cached_commit(hub_id) if offline else _ask_the_hub(hub_id)
    pinned = {} if hub_id.revision is None else {"revision": commit}
    try:
        if offline and commit is not None:
            loaded = _load_cached(hub_id, commit)
        else:
            loaded = datasets.load_dataset(hub_id.name, hub_id.config, trust_remote_code=False, **pinned)
    except UserError:
        raise
    except Exception as error:  # of many libraries
        if offline and isinstance(error, ConnectionError):
            raise _missing(hub_id, "HF_HUB_OFFLINE is set and no copy of such a data set was fetched before") from error
        raise UserError(f"{hub_id.source}: the data set on the hub cannot be read ({type(error).__name__}: {error})") from error
    parts = parts_of(loaded, hub_id.source)
    if read := _commit_of(parts):
        _COMMITS[hub_id.source] = read
    return ArrowRows(parts, mapping, _folder_of_pictures(parts, mapping["image"]), hub_id.source)


def _ask_the_hub(hub_id: HubId) -> str | None:
    """The commit of a data set, by one quick request: `datasets` would try for half a minute where there is no network."""
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        commit = HfApi().dataset_info(hub_id.name, revision=hub_id.revision, timeout=_SECONDS).sha
        if hub_id.revision is not None:  # by its name, so that the hub's cache knows offline what it stands for
            with suppress(EntryNotFoundError):
                hf_hub_download(hub_id.name, "README.md", repo_type="dataset", revision=hub_id.revision)
    except RevisionNotFoundError as error:
        place = f"{constants.ENDPOINT}/datasets/{hub_id.name}/commits"
        raise _missing(hub_id, f"the hub has no revision {hub_id.revision!r} of {hub_id.name}; {place} lists what there is") from error
    except RepositoryNotFoundError as error:
        raise _missing(hub_id, "the hub has no data set of this id, or you may not read it (`hf auth login`)") from error
    except Exception as error:  # of the network's many layers
        remedy = "With HF_HUB_OFFLINE=1 a copy fetched before is used"
        raise _missing(hub_id, f"the hub cannot be asked for a data set of this id ({error}). {remedy}") from error
    return commit


def _cached_commit(hub_id: HubId) -> str | None:
    """The commit that a named revision stood for when it was fetched; None where no revision is named.

    Raises:
        UserError: it was not fetched.
    """
    from huggingface_hub import constants

    revision = hub_id.revision
    if revision is None or _COMMIT.fullmatch(revision):
        return revision
    reference = Path(constants.HF_HUB_CACHE, f"datasets--{hub_id.name.replace('/', '--')}", "refs", revision)
    try:
        return reference.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise _not_fetched(hub_id) from error


def _load_cached(hub_id: HubId, commit: str) -> Any:
    """A data set at one commit out of the cache of `datasets`, whose `load_dataset` takes the latest commit there when it is offline.

    Raises:
        UserError: it was not fetched, or in several configurations of which none is named.
    """
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    owner, _, name = hub_id.name.partition("/")
    root = Path(datasets.config.HF_DATASETS_CACHE, f"{owner}___{camelcase_to_snakecase(name)}")
    wanted = "*" if hub_id.config is None else glob.escape(hub_id.config)
    folders = sorted(path.parent for path in root.glob(f"{wanted}/*/{commit}/dataset_info.json"))
    if not folders:
        raise _not_fetched(hub_id)
    if len(folders) > 1:
        names = ", ".join(folder.parts[-3] for folder in folders)
        raise UserError(f"{hub_id.source}: fetched before in the configurations {names}; name one: {hub_id.name}:CONFIG@{hub_id.revision}")
    config, version = folders[0].parts[-3:-1]
    return Cache(repo_id=hub_id.name, dataset_name=name, config_name=config, version=version, hash=commit).as_dataset()


def _commit_of(parts: list[Part]) -> str | None:
    """The commit that names the folder of the tables in the cache of `datasets`."""
    folders = {Path(file["filename"]).parent.name for part in parts for file in part.table.cache_files}
    return next((name for name in folders if len(folders) == 1 and _COMMIT.fullmatch(name)), None)


def _not_fetched(hub_id: HubId) -> UserError:
    remedy = "Run this command once without it, where there is a network"
    return _missing(hub_id, f"HF_HUB_OFFLINE is set and revision {hub_id.revision!r} of {hub_id.name} was not fetched before. {remedy}")


def _missing(hub_id: HubId, reason: str) -> UserError:
    return UserError(f"{hub_id.source}: no such file or folder (paths are relative to {os.getcwd()}); and as a hub id: {reason}")


def _folder_of_pictures(parts: list[Part], column: str) -> Path:
    """The folder of all images that `datasets` fetched as files: relative to it, their ids do not depend on where its cache is."""
    folders = {os.path.dirname(path) for part in parts for path in _fetched_files(part.table, column)}
    return Path(os.path.commonpath(folders)) if folders else Path()


def _fetched_files(table: Any, column: str) -> Iterator[str]:
    """Absolute paths of pictures that are not embedded."""
    import datasets

    if not isinstance(table.features.get(column), datasets.Image):
        return
    for batch in table.select_columns([column]).with_format("arrow").iter(1000):
        pictures = batch[column].combine_chunks()
        paths = pictures.field("path").filter(pc.is_null(pictures.field("bytes")))
        yield from (path for path in values_of(paths) if path and os.path.isabs(path))
