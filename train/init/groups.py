"""Which columns, or names of pictures, may say that several pictures show one thing."""

import os
import re
from collections import Counter
from collections.abc import Sequence

from eval.manifest.columns import Records

_NUMBERED = re.compile(r"[-_. (]*\d+\)?$")
"""The number that ends the name of one of several pictures of a thing: shoe_3, shoe-3, shoe (3)."""
_LEAST_SHARE, _LARGEST_GROUP = 0.5, 50


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
