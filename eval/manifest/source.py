"""The reader of a manifest, chosen by what the source is: a file, a folder, a glob, or the id of a data set on the hub."""

import glob
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from eval.atomic import is_desktop_file
from eval.errors import UserError
from eval.files import require_plain
from eval.manifest.arrow import is_saved_dataset, read_parquet, read_saved_dataset
from eval.manifest.hub import HubId, read_hub_dataset
from eval.manifest.image_folder import FolderRows
from eval.manifest.rows import RowSource
from eval.manifest.text import TextRows, read_csv, read_jsonl

KINDS = ".jsonl, .csv, .parquet, a folder or glob of .parquet, a saved `datasets` folder, an image folder, or a hub id OWNER/NAME[:CONFIG]"


def open_rows(source: str, mapping: Mapping[str, str]) -> RowSource:
    """Open a manifest by what it is.

    Raises:
        UserError: nothing is there, it cannot be read, or it is of no known kind.
    """
    path = Path(source)
    try:
        if path.is_dir():
            return _open_folder(path, mapping)
        if path.exists():
            require_plain(path)
            match path.suffix.lower():
                case ".csv" | ".tsv":
                    return TextRows(path, mapping, read_csv)
                case ".jsonl" | ".ndjson":
                    return TextRows(path, mapping, read_jsonl)
                case ".parquet":
                    return read_parquet([path], mapping)
            raise UserError(f"{source}: a manifest is {KINDS}; found a file named *{path.suffix}")
        if matches := _parquet_files(Path(match) for match in glob.glob(source)):
            return read_parquet(matches, mapping)
        if hub_id := HubId.parse(source):
            return read_hub_dataset(hub_id, mapping)
    except OSError as error:
        raise UserError(f"{source}: cannot be read as a manifest ({error})") from error
    raise UserError(f"{source}: no such file or folder (data.source, --data or --images); paths are relative to {os.getcwd()}")


def _open_folder(folder: Path, mapping: Mapping[str, str]) -> RowSource:
    if is_saved_dataset(folder):
        return read_saved_dataset(folder, mapping)
    parquet = _parquet_files(folder.iterdir())
    return read_parquet(parquet, mapping) if parquet else FolderRows(folder, mapping)


def _parquet_files(paths: Iterable[Path]) -> list[Path]:
    """Those that are .parquet, sorted, but for the ._NAME.parquet that macOS puts next to them."""
    return sorted(path for path in paths if path.name.endswith(".parquet") and not is_desktop_file(path.name))
