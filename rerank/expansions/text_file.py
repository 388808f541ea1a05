"""A table of texts that a user gives beside the manifest: .jsonl, .csv, .tsv or .parquet, every fault of it named with its line."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.captions import normalise
from eval.errors import UserError
from eval.manifest.rows import as_list, is_unicode
from eval.manifest.text import read_csv, read_jsonl

KINDS = (".jsonl", ".csv", ".tsv", ".parquet")
_MOST_FAULTS = 20


class TableFaults:
    """Collects what is wrong with a file, place by place, to be told at once."""

    def __init__(self, asked: str, path: str | Path) -> None:
        """`asked` is how the file was asked for, such as "synonyms:words.txt"."""
        self._asked, self._path = asked, str(path)
        self.found: list[tuple[str, str]] = []

    def add(self, line: int, what: str) -> None:
        """One fault, of a line (of .parquet: a row, from 1)."""
        self.found.append((f"{self._path}:{line}", what))

    def raise_any(self) -> None:
        """Raises UserError: something was found; up to 20 of it are shown."""
        if self.found:
            shown = "\n".join(f"  {place}: {what}" for place, what in self.found[:_MOST_FAULTS])
            more = f"\n  and {len(self.found) - _MOST_FAULTS} more" if len(self.found) > _MOST_FAULTS else ""
            raise UserError(f"{self._asked}: {len(self.found)} fault(s)\n{shown}{more}")


def existing_file(asked: str, path: str) -> Path:
    """The path of a file that is there.

    Raises:
        UserError: it is not.
    """
    if not path or not Path(path).is_file():
        raise UserError(f"{asked}: there is no file {path!r}; give the path of one")
    return Path(path)


def read_table(asked: str, path: Path, faults: TableFaults) -> tuple[list[str], list[tuple[int, Mapping[str, Any]]]]:
    """(columns, (line, record) of each row); rows that cannot be read go to `faults`.

    Raises:
        UserError: it is of no known kind, or cannot be read at all.
    """
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise UserError(f"{asked}: expected a file that ends in one of {', '.join(KINDS)}; found {path.name!r}")
    try:
        if suffix == ".parquet":
            table = pq.read_table(path)
            return table.column_names, list(enumerate(table.to_pylist(), 1))
        columns, records = (read_jsonl if suffix == ".jsonl" else read_csv)(path, faults.found)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise UserError(f"{asked}: {path} cannot be read ({error})") from error
    return columns, list(records)


def one_of(asked: str, path: Path, columns: Iterable[str], names: tuple[str, ...]) -> str:
    """The first of the names that is a column.

    Raises:
        UserError: none is.
    """
    found = list(columns)
    if not (there := [name for name in names if name in found]):
        raise UserError(
            f"{asked}: {path}: expected a column {' or '.join(f'`{name}`' for name in names)}, found {found}; rename one"
        )
    return there[0]


def text_fault(value: Any, what: str) -> str:
    """Why a value is no text with words in it; empty where it is one."""
    if not isinstance(value, str):
        return f"expected {what}, found {value!r:.80}"
    if not is_unicode(value):
        return f"expected text, found half of a character in {value!r:.80}"
    return "" if normalise(value) else f"empty {what}: nothing is left of {value!r:.80} without blanks and punctuation"


def read_further_texts(
    asked: str, file: str, key_column: str, names: tuple[str, ...], key_fault: Callable[[Any], str]
) -> list[tuple[str, list[str]]]:
    """(key, texts) of each row of a file that says further texts of things it names.

    Args:
        key_column: the column that names the thing.
        names: columns that may hold the texts, a list or one text.
        key_fault: why a value cannot name one; empty where it can.

    Raises:
        UserError: the file or its columns are not there, or with every fault of its rows.
    """
    path = existing_file(asked, file)
    faults = TableFaults(asked, path)
    columns, records = read_table(asked, path, faults)
    if not {key_column, *names} & set(columns):
        faults.raise_any()  # bytes of another encoding, say: what the columns are called is then no help
    if not columns:
        raise UserError(f"{asked}: {path} is empty; write rows with `{key_column}` and `{names[0]}`, or leave it out")
    one_of(asked, path, columns, (key_column,))
    column = one_of(asked, path, columns, names)
    found = []
    for line, record in records:
        key, texts = record.get(key_column), [text for name in names for text in as_list(record.get(name))]
        whats = [key_fault(key)] + [text_fault(text, column.removesuffix("s")) for text in texts]
        if not texts:
            whats.append(f"empty {column.removesuffix('s')}: write one, or take the row out")
        for what in filter(None, whats):
            faults.add(line, what)
        found.append((str(key), texts))
    faults.raise_any()
    if not found:
        raise UserError(f"{asked}: {path} holds no rows; write some, or leave it out")
    return found
