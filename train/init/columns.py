"""Which columns of a table hold the pictures, the captions, the split and the group, by their names and by what is in them."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from eval.manifest.formats.lists import as_list
from eval.manifest.manifest import COLUMNS

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{2,5}$")
_SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "restval"})
_NUMBERED = re.compile(r"[-_. (]*\d+\)?$")
"""The number that ends the name of one of several pictures of a thing: shoe_3, shoe-3, shoe (3)."""
_LEAST_SHARE, _LARGEST_GROUP = 0.5, 50

Records = Sequence[Mapping[str, Any]]


def guess_columns(columns: Sequence[str], records: Records) -> dict[str, str]:
    """Our column -> the table's own, for each of ours that has another name there, by the content of some rows.

    A table whose columns have our names already gives {}. What cannot be told is left out.
    """
    free = [name for name in columns if name not in COLUMNS]
    found: dict[str, str] = {}
    if "image" not in columns and (name := _best(free, records, _is_picture)):
        found["image"] = name
        free.remove(name)
    if not {"caption", "captions"} & set(columns) and (name := _best(free, records, _is_sentence)):
        lists = any(len(as_list(record.get(name))) > 1 for record in records)
        found["captions" if lists else "caption"] = name
        free.remove(name)
    if "split" not in columns and (name := _best(free, records, lambda value: str(value).strip().lower() in _SPLIT_NAMES)):
        found["split"] = name
    return found


def _best(columns: Sequence[str], records: Records, is_right: Any) -> str | None:
    """The column most of whose values are of a kind, at least half of them; of equals the first."""
    shares = {name: sum(bool(is_right(record.get(name))) for record in records) / max(1, len(records)) for name in columns}
    name = max(shares, key=lambda name: shares[name], default=None)
    return name if name is not None and shares[name] >= _LEAST_SHARE else None


def _is_picture(value: Any) -> bool:
    """Embedded bytes, or what reads as the path of a file."""
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or isinstance(value.get("path"), str)
    return isinstance(value, bytes) or (isinstance(value, str) and bool(_SUFFIX.search(value)) and "\n" not in value)


def _is_sentence(value: Any) -> bool:
    """A text of two words or more, or a list of texts."""
    texts = as_list(value)
    return bool(texts) and all(isinstance(text, str) and len(text.split()) > 1 and not _SUFFIX.search(text.strip()) for text in texts)


def suggest_groups(records: Records, image: str, taken: Sequence[str]) -> list[str]:
    """What may say that several pictures show one thing and share their captions, in lines for a reader to decide upon.

    Args:
        image: the column of the pictures.
        taken: columns that mean something already.
    """
    lines = []
    pictures = list(dict.fromkeys(str(record.get(image)) for record in records))
    for name in dict.fromkeys(key for record in records for key in record):
        if name in taken:
            continue
        of_picture = {str(record.get(image)): record.get(name) for record in records}
        sizes = Counter(str(value) for value in of_picture.values() if value not in (None, ""))
        if _groups(sizes, len(pictures)):
            lines.append(f"column {name!r}: {len(sizes):,} values over {len(pictures):,} pictures")
    stems = Counter(_NUMBERED.sub("", os.path.splitext(picture)[0]) for picture in pictures)
    if stems.keys() - {"", "."} and _groups(stems, len(pictures)) and not all(os.path.basename(stem) == "" for stem in stems):
        example = next(stem for stem, count in stems.items() if count > 1)
        lines.append(f"names that differ in their last number alone, as {os.path.basename(example)!r}: {len(stems):,} such names")
    return lines


def _groups(sizes: Counter[str], num_pictures: int) -> bool:
    """Whether most pictures share their value with a few others."""
    shared = sum(count for count in sizes.values() if 1 < count <= _LARGEST_GROUP)
    return len(sizes) > 1 and shared >= _LEAST_SHARE * num_pictures and max(sizes.values()) <= max(_LARGEST_GROUP, num_pictures // 4)
