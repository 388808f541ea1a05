"""The reader of a manifest, chosen by what the source is: a file, a folder, a glob, or the id of a data set on the hub."""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.atomic import is_desktop_file
from eval.dataset.images import picture_suffixes
from eval.errors import UserError
from eval.files import require_plain
from eval.manifest.formats.arrow import is_saved_dataset, read_parquet, read_saved_dataset
from eval.manifest.formats.beir import JudgedRows, find_side
from eval.manifest.formats.encoding import open_text
from eval.manifest.formats.file_names import matching_files, split_folders, split_of
from eval.manifest.formats.flickr import RESULTS_HEADER, TOKEN, TokenRows, read_results
from eval.manifest.formats.hub import HubId, read_hub_dataset
from eval.manifest.formats.image_folder import METADATA_FILES, FolderRows
from eval.manifest.formats.img2dataset import DownloadedFiles, DownloadedShards, download_folders, is_download_record
from eval.manifest.formats.json_file import open_json
from eval.manifest.formats.text import TextRows, read_csv, read_jsonl
from eval.manifest.names import called
from eval.manifest.options import MANIFEST
from eval.manifest.rows import Row, RowSource

_TABLES = (".csv", ".tsv", ".txt", ".token")
_TEXTS = (".jsonl", ".ndjson", ".json", *_TABLES)
_SUBFOLDERS = ("data", "annotations")
_REMEDIES = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "a spreadsheet is read as text: in Excel, Save As, CSV UTF-8 (Comma delimited)"),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), "decompress it, and give the file or folder inside"),
    **dict.fromkeys((".arrow", ".feather"), "give the folder that save_to_disk wrote, or write .parquet"),
}


def open_rows(source: str, mapping: Mapping[str, str], image_root: Path | None = None) -> RowSource:
    """Open a manifest by what it is.

    Args:
        source: file, folder, glob or hub id.
        mapping: our column name -> the manifest's own.
        image_root: where the pictures of COCO captions are looked for; default: near the file.

    Raises:
        UserError: nothing is there, it cannot be read, or it is of no known kind.
    """
    path = Path(source).expanduser() if source.startswith("~") else Path(source)
    try:
        if path.is_dir():
            return _open_folder(path, mapping, image_root)
        if path.exists():
            require_plain(path)
            return _open_file(path, mapping, image_root)
        if files := matching_files(str(path)):
            _check_one_kind(source, files)
            return _open_files(files, mapping, image_root)
        if hub_id := HubId.parse(source):
            return read_hub_dataset(hub_id, mapping)
    except OSError as error:
        raise UserError(f"{source}: cannot be read as a manifest ({error})") from error
    raise UserError(f"{source}: no such file or folder ({called('source')}); paths are relative to {os.getcwd()}")


def _open_file(path: Path, mapping: Mapping[str, str], image_root: Path | None = None) -> RowSource:
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return TextRows(path, mapping, read_jsonl)
        case ".json":
            return open_json(path, mapping, image_root)
        case suffix if suffix in _TABLES:
            return _open_table(path, mapping)
        case ".parquet":
            return read_parquet([path], mapping)
        case ".tar":
            return _open_shards([path], mapping, are_splits_named=False)
        case suffix if suffix in _REMEDIES:
            raise UserError(f"{path}: {_REMEDIES[suffix]}")
    raise UserError(f"{path}: a manifest is {MANIFEST}; found a file named *{path.suffix}")


def _open_table(path: Path, mapping: Mapping[str, str]) -> TextRows:
    """The rows of a table in text, by its first line that is not blank."""
    with open_text(path, newline=None) as file:
        try:
            first = next((line for line in file if line.strip()), "").rstrip("\n")
        except UnicodeDecodeError:
            first = ""
    if TOKEN.fullmatch(first):
        return TokenRows(path, mapping)
    return TextRows(path, mapping, read_results if RESULTS_HEADER.fullmatch(first) else read_csv)


def _check_one_kind(source: str, files: Sequence[Path]) -> None:
    """Refuse a pattern that stands for files of several kinds, of which one alone would be read.

    Raises:
        UserError: it does; folders and files of other kinds count only where no * or ? of the pattern can have meant others.
    """
    kinds = {".parquet": "parquet", ".tar": "shards", **dict.fromkeys(_TEXTS, "texts"), **dict.fromkeys(_REMEDIES, "others")}
    others = None if glob.has_magic(source) else "others"
    first: dict[str, Path] = {}
    for file in files:
        kind = others if file.is_dir() else kinds.get(file.suffix.lower(), others)
        if kind is not None and not is_download_record(file):
            first.setdefault(kind, file)
    if len(first) > 1:
        raise UserError(f"{source}: files of several kinds: {', '.join(map(str, first.values()))}; give those of one kind")


def _open_files(files: Iterable[Path], mapping: Mapping[str, str], image_root: Path | None) -> RowSource:
    """Several files of one kind; their names say the split.

    Raises:
        UserError: none is of a known kind.
    """
    files = [file for file in files if not is_download_record(file)] or list(files)
    if parquet := _of_kind(files, ".parquet"):
        return read_parquet(parquet, mapping, are_splits_named=True)
    if tars := _of_kind(files, ".tar"):
        return _open_shards(tars, mapping, are_splits_named=True)
    if texts := _of_kind(files, *_TEXTS):
        return JoinedRows([(_open_file(file, mapping, image_root), split_of(file)) for file in texts], mapping, image_root)
    raise UserError(f"{files[0]} and {len(files) - 1} more: a manifest is {MANIFEST}")


def _open_folder(folder: Path, mapping: Mapping[str, str], image_root: Path | None) -> RowSource:
    if is_saved_dataset(folder):
        return read_saved_dataset(folder, mapping)
    rows, files = _open_part_of(folder, mapping, image_root)
    others = [file for place in _places(folder) for file in _may_be_manifests(place) if file not in files]
    rows.not_read = [*rows.not_read, *(str(file.relative_to(folder)) for file in others)]
    return rows


def _open_part_of(folder: Path, mapping: Mapping[str, str], image_root: Path | None) -> tuple[RowSource, Sequence[Path]]:
    """The rows of a folder, and those of its files that are read for them, other than pictures and what is next to each."""
    if (corpus := find_side(folder, "corpus")) and (queries := find_side(folder, "queries")):
        return JudgedRows(folder, mapping, _open_file), [corpus, queries]
    if downloads := download_folders(folder):
        return DownloadedFiles(folder, downloads, mapping), []
    if parquet := _parquet_files(folder):
        return read_parquet(parquet, mapping, are_splits_named=True), parquet
    if not _is_image_folder(folder):
        for place in _places(folder):
            if files := _manifests_in(place):
                return _open_files(files, mapping, image_root), files
    return FolderRows(folder, mapping), [folder / name for name in METADATA_FILES]


def _places(folder: Path) -> list[Path]:
    """Where the manifests of a folder can be."""
    return [folder, *(folder / name for name in _SUBFOLDERS if (folder / name).is_dir())]


def _may_be_manifests(folder: Path) -> list[Path]:
    """The files of a folder that may hold rows, by their names; of .txt, which other things are too, those named for a split."""
    files = _of_kind(folder.iterdir(), ".parquet", ".tar", *_TEXTS, *_REMEDIES)
    return [file for file in files if not is_download_record(file) and (file.suffix.lower() != ".txt" or split_of(file) is not None)]


def _is_image_folder(folder: Path) -> bool:
    """Whether metadata or a picture with a caption's file next to it is there."""
    parts = [folder, *split_folders(folder)]
    if any((part / name).is_file() for part in parts for name in METADATA_FILES):
        return True
    for _, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        pictures = [name for name in names if os.path.splitext(name)[1].lower() in picture_suffixes() and name[0] != "."]
        if pictures:
            return any(os.path.splitext(name)[0] + ".txt" in names for name in pictures)
    return False


def _manifests_in(folder: Path) -> list[Path]:
    """The files of a folder that are a manifest together: .parquet, .tar, captions_*.json, texts named for splits, or the only table."""
    files = sorted(folder.iterdir())
    captions = [file for file in _of_kind(files, ".json") if file.name.startswith("captions_")]
    named = [file for file in _of_kind(files, *_TEXTS) if split_of(file) is not None and file.suffix.lower() not in (".txt", ".token")]
    tables = _of_kind(files, ".jsonl", ".ndjson", ".csv", ".tsv")
    return _parquet_files(folder) or _of_kind(files, ".tar") or captions or named or (tables if len(tables) == 1 else [])


def _parquet_files(folder: Path) -> list[Path]:
    return [file for file in _of_kind(folder.iterdir(), ".parquet") if not is_download_record(file)]


def _open_shards(tars: list[Path], mapping: Mapping[str, str], *, are_splits_named: bool) -> RowSource:
    return DownloadedShards([(tar, split_of(tar) if are_splits_named else None) for tar in tars], mapping)


def _of_kind(files: Iterable[Path], *suffixes: str) -> list[Path]:
    """Those of some suffixes, sorted, but for the ._NAME that macOS puts next to them."""
    return sorted(path for path in files if path.suffix.lower() in suffixes and not is_desktop_file(path.name) and not path.is_dir())


class JoinedRows(RowSource):
    """The rows of several sources whose images are paths, one after another."""

    def __init__(self, parts: list[tuple[RowSource, str | None]], mapping: Mapping[str, str], image_root: Path | None) -> None:
        """parts: a source, and the split that its name says.

        Raises:
            UserError: paths would be relative to several folders.
        """
        folders = list(dict.fromkeys(str(rows.folder) for rows, _ in parts))
        if image_root is None and len(folders) > 1:
            raise UserError(
                f"the manifests lie in {len(folders)} folders ({', '.join(folders[:3])}); say what image paths are relative to: "
                f"{called('image_root')}"
            )
        self._parts, self.mapping = parts, mapping
        self.folder = parts[0][0].folder
        self.header_place = ", ".join(rows.header_place for rows, _ in parts)
        self.faults = [fault for rows, _ in parts for fault in rows.faults]
        self.left_out = [place for rows, _ in parts for place in rows.left_out]
        columns = [column for rows, _ in parts for column in rows.columns]
        # As in eval/manifest/formats/arrow.py: a split column that the configuration names and that is not there stays a fault.
        columns += ["split" for _, split in parts if split is not None and mapping["split"] == "split"]
        self.columns = list(dict.fromkeys(columns))

    def __iter__(self) -> Iterator[Row]:
        for rows, split in self._parts:
            rows.mapping = self.mapping
            for row in rows:
                yield replace(row, split=split) if row.split in (None, "") and split is not None else row
