"""Which column of a manifest is which: as the person says, by its name, or by what is in it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from eval.errors import UserError
from eval.manifest.formats.lists import as_list
from eval.manifest.names import called, column_called

COLUMNS = ("image", "captions", "caption", "id", "split", "group")
IMAGE_NAMES = ("file_name", "filepath", "filename", "image_path", "path", "img")
"""Other names of a column of images, where one alone is there."""
CAPTION_NAMES = ("text", "title")
"""Other names of a column of captions, the first that is there."""
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{2,5}$")
_SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "restval"})
_LEAST_SHARE = 0.5

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ColumnMapping:
    """The manifest's own name of each of our columns, and what was found out by their names, in lines."""

    names: dict[str, str]
    notes: list[str]


def check_asked(asked: Mapping[str, str]) -> None:
    """Refuse names that are no columns of ours.

    Raises:
        UserError: there are some.
    """
    if unknown := sorted(set(asked) - set(COLUMNS)):
        remedy = f"it maps any of {list(COLUMNS)} to the manifest's own names"
        raise UserError(f"{called('columns')}: {unknown} are not columns of ours; {remedy}")


def asked_mapping(asked: Mapping[str, str]) -> dict[str, str]:
    """Our column -> the manifest's own name for it, as asked for; else it is ours.

    Where one of `caption` and `captions` is asked for, the other gets a name that no column has: it is not read.
    """
    names = {name: asked.get(name, name) for name in COLUMNS}
    if len(one := {"caption", "captions"} & set(asked)) == 1:
        (other,) = {"caption", "captions"} - one
        names[other] = f"{other} (not asked for)"
    return names


def map_columns(found: Sequence[str], asked: Mapping[str, str], *, with_captions: bool = True) -> ColumnMapping:
    """The columns that were asked for; of images and captions, where none is, one that has another usual name.

    Args:
        found: the manifest's own names.
        asked: our column -> the manifest's own name for it.
        with_captions: whether captions are read.
    """
    names, notes, mapped = asked_mapping(asked), list[str](), set(asked.values())
    images = _other_images(found, asked)
    if len(images) == 1:
        names["image"] = images[0]
        notes.append(f"images from column {images[0]!r}")
    if with_captions and not {"caption", "captions"} & {*found, *asked}:
        captions = [name for name in CAPTION_NAMES if name in found and name not in mapped]
        if captions:
            names["caption"] = captions[0]
            others = "".join(f", not from {name!r}" for name in captions[1:])
            notes.append(f"captions from column {captions[0]!r}{others}")
    return ColumnMapping(names, notes)


def column_faults(found: Sequence[str], mapping: ColumnMapping, asked: Mapping[str, str]) -> list[str]:
    """What is wrong with the columns: those asked for that are not there, and no image or caption."""
    whats = [
        f"{called('columns')} maps {ours} to {theirs!r}, which is not there{_near(theirs, found)}; columns found: {list(found)}"
        for ours, theirs in asked.items()
        if theirs not in found
    ]
    if mapping.names["image"] not in found and "image" not in asked:
        whats.append(missing_column("image", found, asked))
    if mapping.names["captions"] not in found and mapping.names["caption"] not in found and not {"caption", "captions"} & set(asked):
        remedy = f"Name the right one: {column_called('caption', 'NAME')} (text) or {column_called('captions', 'NAME')} (list)"
        whats.append(f"no column 'caption' or 'captions'; columns found: {list(found)}. {remedy}")
    return whats


def _near(name: str, found: Sequence[str]) -> str:
    near = get_close_matches(name, found, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def missing_column(ours: str, found: Sequence[str], asked: Mapping[str, str]) -> str:
    """That one of our columns is not there; of images, which others could hold them."""
    several = _other_images(found, asked) if ours == "image" else []
    which = f"{' and '.join(map(repr, several))} could be it. " if several else ""
    return f"no column {asked.get(ours, ours)!r}; columns found: {list(found)}. {which}Name the right one: {column_called(ours, 'NAME')}"


def _other_images(found: Sequence[str], asked: Mapping[str, str]) -> list[str]:
    """Columns that images can be in where none is named `image` and none is asked for."""
    if "image" in found or "image" in asked:
        return []
    return [name for name in IMAGE_NAMES if name in found and name not in asked.values()]


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


def with_guesses(mapping: ColumnMapping, columns: Sequence[str], asked: Mapping[str, str], first: Callable[[], Records]) -> ColumnMapping:
    """The mapping with columns of images and of captions that no name tells, where exactly one column holds pictures, or sentences.

    Args:
        columns: the manifest's own names.
        asked: our column -> the manifest's own name for it; none of it is guessed.
        first: gives some rows, whole.
    """
    lacks_images = mapping.names["image"] not in columns and "image" not in asked
    lacks_captions = not {mapping.names["caption"], mapping.names["captions"]} & set(columns) and not {"caption", "captions"} & set(asked)
    if not lacks_images and not lacks_captions:
        return mapping
    records = first()
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
