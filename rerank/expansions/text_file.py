"""A file of texts that a user gives next to the manifest, every fault of it named with its line."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.errors import UserError
from eval.files import TABLE_BYTES, FileError, require_plain
from eval.files import read_text as read_plain_text
from eval.manifest.formats.encoding import records_of
from eval.manifest.formats.text import read_csv, read_jsonl

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
    try:
        require_plain(path, TABLE_BYTES)
    except FileError as error:
        raise UserError(f"{source}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: there is no file {path!r}; give the path of one") from error
    return Path(path)


def read_text(source: str, path: str) -> str:
    """A text file whole; bytes that are no UTF-8 become half characters, which `eval.manifest.rows.is_unicode` finds.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    try:
        return read_plain_text(existing_file(source, path), errors="surrogateescape")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: {path} cannot be read ({error})") from error


def read_table(source: str, path: Path, faults: list[tuple[str, str]]) -> tuple[list[str], Iterable[tuple[int, Mapping[str, Any]]]]:
    """(columns, (line, record) of each row, once) of a .csv, .tsv, .parquet or .jsonl file.

    (place, what) of rows that cannot be read go to `faults`.

    The rows of a .parquet file are read in batches, as they are taken; bytes and structs, such as embedded images, are not.

    Raises:
        UserError: it cannot be read at all; of a .parquet file also while its rows are taken.
    """
    suffix = path.suffix.lower()
    with _reading(source, path):
        require_plain(path, TABLE_BYTES)
        if suffix == ".parquet":
            file = pq.ParquetFile(path)
            return file.schema_arrow.names, _parquet_records(source, path, file)
        return (read_csv if suffix in (".csv", ".tsv") else read_jsonl)(path, faults)


def _parquet_records(source: str, path: Path, file: pq.ParquetFile) -> Iterator[tuple[int, Mapping[str, Any]]]:
    plain = [field.name for field in file.schema_arrow if not str(field.type).startswith(("struct", "binary", "large_binary"))]
    row = 0
    with file, _reading(source, path):
        for batch in file.iter_batches(columns=plain):
            for record in records_of(batch):
                row += 1
                yield row, record


@contextmanager
def _reading(source: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(f"{source}: {path} cannot be read as {path.suffix.lower()[1:]} ({error})") from error


def one_of(source: str, path: Path, columns: Iterable[str], names: tuple[str, ...]) -> str:
    """The first of the names that is a column.

    Raises:
        UserError: none is.
    """
    found = list(columns)
    if not (there := [name for name in names if name in found]):
        raise UserError(f"{source}: {path}: expected a column {' or '.join(f'`{name}`' for name in names)}, found {found}; rename one")
    return there[0]
