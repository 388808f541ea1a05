"""Rows out of the caption files of Flickr8k and Flickr30k."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.manifest.formats.encoding import not_utf8, open_text
from eval.manifest.formats.text import Record, TextRows
from eval.manifest.rows import is_unicode

Faults = list[tuple[str, str]]
TOKEN = re.compile(r"([^\t]+)#(\d+)\t(.*)")
RESULTS_HEADER = re.compile(r"image_name\|\s*comment_number\|\s*comment\s*")
_RESULT = re.compile(r"([^|]+)\|\s*(\d+)\s*[|\s]\s*(.*)")  # one line of Flickr30k lacks its second |
_SPLIT_LISTS = {"train": "trainImages", "dev": "devImages", "test": "testImages"}
UNLISTED = "unlisted"


class TokenRows(TextRows):
    """The rows of Flickr8k.token.txt; left out are pictures that a list next to it names and that have no caption."""

    def __init__(self, path: Path, mapping: Mapping[str, str]) -> None:
        super().__init__(path, mapping, read_tokens)
        described = {record["image"] for _, record in self._records}
        listed = _listed_splits(path.parent, [])
        why = "a list names this picture, which has no caption"
        self.left_out = [(place, why) for name, (_, place) in listed.items() if name not in described]


def read_tokens(path: Path, faults: Faults) -> tuple[list[str], list[Record]]:
    """(columns, (line, record)) of Flickr8k.token.txt: NAME.jpg#NUMBER, a tab, a caption.

    Splits are those of the lists Flickr_8k.trainImages.txt, .devImages.txt and .testImages.txt next to it, where they are; a picture of no
    list is of the split `unlisted`.
    """
    splits = _listed_splits(path.parent, faults)
    records: list[Record] = []
    for line, text in _lines(path, faults):
        match = TOKEN.fullmatch(text)
        if match is None:
            faults.append((f"{path}:{line}", f"expected NAME#NUMBER, a tab and a caption, found {text!r:.100}"))
            continue
        record: dict[str, Any] = {"image": match[1], "number": int(match[2]), "caption": match[3].strip()}
        split, _ = splits.get(match[1], (UNLISTED, ""))
        records.append((line, record | {"split": split} if splits else record))
    return ["image", "number", "caption", *(["split"] if splits else [])], records


def read_results(path: Path, faults: Faults) -> tuple[list[str], list[Record]]:
    """(columns, (line, record)) of Flickr30k's results.csv: NAME.jpg| NUMBER| CAPTION, under a header."""
    records: list[Record] = []
    lines = iter(_lines(path, faults))
    next(lines, None)
    for line, text in lines:
        match = _RESULT.fullmatch(text)
        if match is None:
            faults.append((f"{path}:{line}", f"expected NAME| NUMBER| CAPTION, found {text!r:.100}"))
        else:
            records.append((line, {"image": match[1].strip(), "number": int(match[2]), "caption": match[3].strip()}))
    return ["image", "number", "caption"], records


def _lines(path: Path, faults: Faults) -> list[tuple[int, str]]:
    r"""(line, text) of the lines that are not blank; they end at \n, \r\n or \r."""
    found: list[tuple[int, str]] = []
    try:
        with open_text(path, newline=None) as file:
            for line, raw in enumerate(file, 1):
                text = raw.rstrip("\n")
                if not is_unicode(text):
                    faults.append((f"{path}:{line}", not_utf8(text)))
                elif text.strip():
                    found.append((line, text))
    except UnicodeDecodeError as error:
        last = found[-1][0] if found else 0
        faults.append((f"{path}:{last + 1}", f"not {error.encoding} text: {error.reason}; nothing from this line on was read"))
    return found


def _listed_splits(folder: Path, faults: Faults) -> dict[str, tuple[str, str]]:
    """The split of each picture that a list names, and the line that does."""
    splits: dict[str, tuple[str, str]] = {}
    for split, name in _SPLIT_LISTS.items():
        file = folder / f"Flickr_8k.{name}.txt"
        if not file.exists():
            continue
        for line, text in _lines(file, faults):
            picture = text.strip()
            if (first := splits.setdefault(picture, (split, f"{file}:{line}"))[0]) != split:
                faults.append((f"{file}:{line}", f"{picture!r} is in the list of {first!r} too"))
    return splits
