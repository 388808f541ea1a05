"""Which columns of a table hold the pictures, the captions and the split, by what is in them."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from eval.manifest.columns import COLUMNS, ColumnMapping, asked_mapping
from eval.manifest.formats.lists import as_list
from eval.manifest.names import column_called
from eval.manifest.source import open_rows

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{2,5}$")
_SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "restval"})
_LEAST_SHARE = 0.5
_NUM_RECORDS = 200

Records = Sequence[Mapping[str, Any]]


def guess_columns(columns: Sequence[str], records: Records) -> dict[str, str]:
    """Our column -> the table's own, for each of ours that has another name there, by the content of some rows.

    A table whose columns have our names already gives {}. What cannot be told is left out; of several the one that fits best is taken.
    """
    free = [name for name in columns if name not in COLUMNS]
    found: dict[str, str] = {}
    if "image" not in columns and (names := _fitting(free, records, _is_picture)):
        found["image"] = names[0]
        free.remove(names[0])
    if not {"caption", "captions"} & set(columns) and (names := _fitting(free, records, _is_sentence)):
        found["captions" if _has_lists(names[0], records) else "caption"] = names[0]
        free.remove(names[0])
    if "split" not in columns and (names := _fitting(free, records, lambda value: str(value).strip().lower() in _SPLIT_NAMES)):
        found["split"] = names[0]
    return found


def with_guesses(
    mapping: ColumnMapping, source: str, columns: Sequence[str], asked: Mapping[str, str], image_root: Path | None
) -> ColumnMapping:
    """The mapping with columns of images and of captions that no name tells, where exactly one column holds pictures, or sentences.

    Args:
        source: is opened once more, for its first rows.
        columns: the manifest's own names.
        asked: our column -> the manifest's own name for it; none of it is guessed.
    """
    lacks_images = mapping.names["image"] not in columns and "image" not in asked
    lacks_captions = not {mapping.names["caption"], mapping.names["captions"]} & set(columns) and not {"caption", "captions"} & set(asked)
    if not lacks_images and not lacks_captions:
        return mapping
    rows = open_rows(source, asked_mapping(asked) | {name: name for name in columns}, image_root)
    records = [row.record for row in islice(rows, _NUM_RECORDS)]
    names, notes = dict(mapping.names), list(mapping.notes)
    taken = {*asked.values(), *(mapping.names[ours] for ours in COLUMNS if mapping.names[ours] in columns)}
    free = [name for name in columns if name not in taken]
    if lacks_images and len(pictures := _fitting(free, records, _is_picture)) == 1:
        names["image"] = pictures[0]
        free.remove(pictures[0])
        notes.append(f"images from column {pictures[0]!r}, the only one of pictures")
    if lacks_captions and len(texts := _fitting(free, records, _is_sentence)) == 1:
        ours = "captions" if _has_lists(texts[0], records) else "caption"
        names[ours] = texts[0]
        notes.append(f"captions from column {texts[0]!r}, the only one of sentences; another: {column_called('caption', 'NAME')}")
    return ColumnMapping(names, notes)


def _fitting(columns: Sequence[str], records: Records, is_right: Callable[[Any], bool]) -> list[str]:
    """The columns at least half of whose values are of a kind, those with the largest share first; of equals the first."""
    shares = {name: sum(is_right(record.get(name)) for record in records) / max(1, len(records)) for name in columns}
    return sorted((name for name in columns if shares[name] >= _LEAST_SHARE), key=lambda name: -shares[name])


def _has_lists(name: str, records: Records) -> bool:
    return any(len(as_list(record.get(name))) > 1 for record in records)


def _is_picture(value: Any) -> bool:
    """Embedded bytes, or what reads as the path of a file."""
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or isinstance(value.get("path"), str)
    return isinstance(value, bytes) or (isinstance(value, str) and bool(_SUFFIX.search(value)) and "\n" not in value and "://" not in value)


def _is_sentence(value: Any) -> bool:
    """A text of two words or more, or a list of texts."""
    texts = as_list(value)
    return bool(texts) and all(isinstance(text, str) and len(text.split()) > 1 and not _SUFFIX.search(text.strip()) for text in texts)
