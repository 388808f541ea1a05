"""What names of files say: the split, and the files that a pattern stands for."""

import glob
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.atomic import is_desktop_file
from eval.errors import UserError

_SPLIT = re.compile(r"(?<![a-z])(?:(train)(?:ing)?|(test)(?:ing)?|(validation|valid|val|dev))(?![a-z])", re.IGNORECASE)
_NOT_LETTERS = re.compile(r"[^a-z]*", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_MOST_FILES = 1_000_000


@dataclass(frozen=True)
class _Numbers(Sequence[str]):
    """Numbers of a range as text, with leading zeros up to a width."""

    range: range
    width: int

    def __len__(self) -> int:
        return len(self.range)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> str
        return f"{self.range[index]:0{self.width}d}"


def split_of(path: Path) -> str | None:
    """The split that the name of one file of several says: train, val, validation, valid, dev or test; None if none, or two.

    >>> split_of(Path("captions_val2017.json")), split_of(Path("train-00000-of-00002.parquet")), split_of(Path("00000.tar"))
    ('val', 'train', None)
    """
    found = {next(filter(None, match)).lower() for match in _SPLIT.findall(path.name)}
    return found.pop() if len(found) == 1 else None


def split_of_folder(name: str) -> str | None:
    """The split that the name of a folder says, which holds no other letters.

    >>> split_of_folder("Training"), split_of_folder("val2017"), split_of_folder("test tubes")
    ('train', 'val', None)
    """
    return split_of(Path(name)) if _NOT_LETTERS.fullmatch(_SPLIT.sub("", name)) else None


def split_folders(folder: Path) -> dict[Path, str]:
    """The folders in a folder whose names say a split, with it, sorted."""
    found = {path: split_of_folder(path.name) for path in sorted(folder.iterdir()) if path.name[0] != "." and path.is_dir()}
    return {path: split for path, split in found.items() if split is not None}


def expand_braces(pattern: str) -> list[str]:
    """The names that {000..012} and {a,b} stand for.

    Raises:
        UserError: they are too many.

    >>> expand_braces("shard-{08..10}.tar")
    ['shard-08.tar', 'shard-09.tar', 'shard-10.tar']
    """
    parts: list[Sequence[str]] = []
    end = 0
    for match in _BRACES.finditer(pattern):
        if numbers := _RANGE.fullmatch(match[1]):
            choices: Sequence[str] = _Numbers(range(int(numbers[1]), int(numbers[2]) + 1), len(numbers[1]))
        elif "," in match[1]:
            choices = match[1].split(",")
        else:
            continue
        parts += [[pattern[end : match.start()]], choices]
        end = match.end()
    if math.prod(len(choices) for choices in parts) > _MOST_FILES:
        raise UserError(f"{pattern}: more than {_MOST_FILES:,} files; give a folder or a glob")
    return ["".join(chosen) for chosen in itertools.product(*parts, [pattern[end:]])]


def is_there(pattern: str) -> bool:
    """Whether a file or folder is there by this name, or by the first name that the pattern stands for.

    Raises:
        UserError: as `expand_braces`.
    """
    return bool(glob.glob(pattern) or glob.glob(next(iter(expand_braces(pattern)), "")))


def matching_files(pattern: str) -> list[Path]:
    """The files that a glob or a pattern with braces stands for; [] if there is none.

    Raises:
        UserError: some of the names between braces are there and others are not, or there are too many.
    """
    names = expand_braces(pattern)
    found = [glob.glob(name) for name in names]
    missing = [name for name, files in zip(names, found, strict=True) if not files]
    if missing and len(missing) < len(names):
        raise UserError(f"{pattern}: {len(missing)} of {len(names)} files are not there, the first: {missing[0]}")
    return sorted({Path(file) for files in found for file in files if not is_desktop_file(Path(file).name)})
