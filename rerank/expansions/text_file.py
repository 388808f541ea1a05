"""A file of texts that a user gives next to the manifest, every fault of it named with its line."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.manifest.rows import as_list, is_unicode
from eval.manifest.text import read_csv, read_jsonl

KINDS = (".jsonl", ".csv", ".tsv", ".parquet")
_MOST_FAULTS = 20


class TableFaults:
    """Collects the faults of a file, line by line, to report all of them at once."""

    def __init__(self, source: str, path: str | Path) -> None:
        """`source` is FILE_OR_METHOD as it was asked for, such as "synonyms:words.txt"."""
        self._source, self._path = source, str(path)
        self.found: list[tuple[str, str]] = []

    def add(self, line: int, what: str) -> None:
        """One fault, of a line (of .parquet: a row, from 1)."""
        self.found.append((f"{self._path}:{line}", what))

    def raise_any(self) -> None:
        """Raises UserError: a fault was found; up to 20 are shown."""
        if self.found:
            shown = "\n".join(f"  {place}: {what}" for place, what in self.found[:_MOST_FAULTS])
            more = f"\n  and {len(self.found) - _MOST_FAULTS} more" if len(self.found) > _MOST_FAULTS else ""
            raise UserError(f"{self._source}: {len(self.found)} fault(s)\n{shown}{more}")


def existing_file(source: str, path: str) -> Path:
    """The path of a file that is there.

    Raises:
        UserError: it is not.
    """
    if not path or not Path(path).is_file():
        raise UserError(f"{source}: there is no file {path!r}; give the path of one")
    return Path(path)


def read_text(source: str, path: str) -> str:
    """A text file whole; bytes that are no UTF-8 become half characters, which `eval.manifest.rows.is_unicode` finds.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    try:
        return existing_file(source, path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{source}: {path} cannot be read ({error})") from error


def read_table(source: str, path: Path, faults: TableFaults) -> tuple[list[str], list[tuple[int, Mapping[str, Any]]]]:
    """(columns, (line, record) of each row); rows that cannot be read go to `faults`.

    Raises:
        UserError: it is of no known kind, or cannot be read at all.
    """
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise UserError(f"{source}: expected a file that ends in one of {', '.join(KINDS)}; found {path.name!r}")
    try:
        if suffix == ".parquet":
            table = pq.read_table(path)
            return table.column_names, list(enumerate(table.to_pylist(), 1))
        columns, records = (read_jsonl if suffix == ".jsonl" else read_csv)(path, faults.found)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise UserError(f"{source}: {path} cannot be read ({error})") from error
    return columns, list(records)


def one_of(source: str, path: Path, columns: Iterable[str], names: tuple[str, ...]) -> str:
    """The first of the names that is a column.

    Raises:
        UserError: none is.
    """
    found = list(columns)
    if not (there := [name for name in names if name in found]):
        raise UserError(f"{source}: {path}: expected a column {' or '.join(f'`{name}`' for name in names)}, found {found}; rename one")
    return there[0]


def text_fault(value: Any, what: str) -> str:
    """Why a value is no text with words in it; empty where it is one."""
    if not isinstance(value, str):
        return f"expected {what}, found {value!r:.80}"
    if not is_unicode(value):
        return f"expected text, found half of a character in {value!r:.80}"
    return "" if normalise(value) else f"empty {what}: nothing is left of {value!r:.80} without blanks and punctuation"


@dataclass(frozen=True)
class KeyedTexts:
    """Additional texts of a file whose rows name the items that they belong to.

    Attributes:
        source: FILE_OR_METHOD as it was asked for.
        key_column: the column that names an item.
        texts: key -> its texts, in the file's order.
        num_rows: key -> rows that name it.
    """

    source: str
    key_column: str
    texts: Mapping[str, list[str]]
    num_rows: Mapping[str, int]

    @classmethod
    def read(
        cls,
        source: str,
        file: str,
        key_column: str,
        text_columns: tuple[str, ...],
        key_fault: Callable[[Any], str],
        key_of: Callable[[str], str],
    ) -> "KeyedTexts":
        """Read a file whole.

        Args:
            text_columns: columns that may hold the texts, a list or one text.
            key_fault: why a value cannot name an item; empty where it can.
            key_of: the key of a value that can.

        Raises:
            UserError: the file or its columns are not there, or with every fault of its rows.
        """
        path = existing_file(source, file)
        faults = TableFaults(source, path)
        columns, records = read_table(source, path, faults)
        if not {key_column, *text_columns} & set(columns):
            faults.raise_any()  # e.g. bytes of another encoding: a message on column names would mislead
        if not columns:
            raise UserError(f"{source}: {path} is empty; write rows with `{key_column}` and `{text_columns[0]}`, or leave it out")
        one_of(source, path, columns, (key_column,))
        noun = one_of(source, path, columns, text_columns).removesuffix("s")
        texts: dict[str, list[str]] = {}
        num_rows = Counter[str]()
        for line, record in records:
            key, added = record.get(key_column), [text for name in text_columns for text in as_list(record.get(name))]
            whats = [key_fault(key)] + [text_fault(text, noun) for text in added]
            if not added:
                whats.append(f"empty {noun}: write one, or take the row out")
            for what in filter(None, whats):
                faults.add(line, what)
            texts.setdefault(key_of(str(key)), []).extend(added)
            num_rows[key_of(str(key))] += 1
        faults.raise_any()
        if not texts:
            raise UserError(f"{source}: {path} holds no rows; write some, or leave it out")
        return cls(source, key_column, texts, num_rows)

    def matched(self, dataset: RetrievalSet, keys: Sequence[str], example: str) -> tuple[list[list[str]], dict[str, int]]:
        """(texts of each key, number of rows that name none of the keys by what they are).

        Args:
            keys: those of the items of a split.
            example: what names an item of it, for the message.

        Raises:
            UserError: no row names any.
        """
        num_unmatched = sum(self.num_rows[key] for key in self.num_rows.keys() - set(keys))
        if num_unmatched == sum(self.num_rows.values()):
            raise UserError(
                f"{self.source}: the `{self.key_column}` of none of its {num_unmatched} row(s) is in {dataset.source} "
                f"(split {dataset.split!r}); expected one such as {example!r:.80}, found {next(iter(self.texts))!r:.80}. "
                "Give the file of this split"
            )
        noted = {f"rows whose {self.key_column} is not in the split": num_unmatched} if num_unmatched else {}
        return [self.texts.get(key, []) for key in keys], noted
