"""Rows of a data set on the hub, fetched and cached on disk by the `datasets` library. No code of the data set is run."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from eval.errors import UserError
from eval.manifest.formats.arrow import ArrowRows, Part, parts_of
from eval.manifest.formats.arrow_text import values_of

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?::([\w.-]+))?")
_FILE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".token", ".zip", ".tar", ".xlsx", ".yaml")
_SECONDS = 10.0


@dataclass(frozen=True)
class HubId:
    """`OWNER/NAME` or `OWNER/NAME:CONFIG`, as it was given in `source`."""

    source: str
    name: str
    config: str | None

    @classmethod
    def parse(cls, source: str) -> "HubId | None":
        """The id a source may be; None for what is plainly the path of a file."""
        match = _ID.fullmatch(source)
        return cls(source, match[1], match[2]) if match and not match[1].lower().endswith(_FILE_SUFFIXES) else None


def read_hub_dataset(hub_id: HubId, mapping: Mapping[str, str]) -> ArrowRows:
    """The rows of a data set on the hub; each of its splits is one here, unless a column names it.

    Raises:
        UserError: it cannot be had (no such data set, no network, offline and never fetched), or cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    offline = bool(datasets.config.HF_HUB_OFFLINE)
    if not offline:
        _ask_the_hub(hub_id)
    try:
        loaded = datasets.load_dataset(hub_id.name, hub_id.config, trust_remote_code=False)
    except Exception as error:  # of many libraries
        if offline and isinstance(error, ConnectionError):
            raise _missing(hub_id, "HF_HUB_OFFLINE is set and no copy of such a data set was fetched before") from error
        raise UserError(f"{hub_id.source}: the data set on the hub cannot be read ({type(error).__name__}: {error})") from error
    parts = parts_of(loaded, hub_id.source)
    return ArrowRows(parts, mapping, _folder_of_pictures(parts, mapping["image"]), hub_id.source)


def _ask_the_hub(hub_id: HubId) -> None:
    """One quick request first: `datasets` would try for half a minute where there is no network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().dataset_info(hub_id.name, timeout=_SECONDS)
    except RepositoryNotFoundError as error:
        raise _missing(hub_id, "the hub has no data set of this id, or you may not read it (`hf auth login`)") from error
    except Exception as error:  # of the network's many layers
        remedy = "With HF_HUB_OFFLINE=1 a copy fetched before is used"
        raise _missing(hub_id, f"the hub cannot be asked for a data set of this id ({error}). {remedy}") from error


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
