"""Which column of a manifest is which: as the person says, or by its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from eval.errors import UserError
from eval.manifest.names import called, column_called

COLUMNS = ("image", "captions", "caption", "id", "split", "group")
IMAGE_NAMES = ("file_name", "filepath", "filename", "image_path", "path", "img")
"""Other names of a column of images, where one alone is there."""
CAPTION_NAMES = ("text", "title")
"""Other names of a column of captions, the first that is there."""


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
