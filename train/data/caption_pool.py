"""The captions that can be mined: those of the split and, behind them, further captions that have no image.

A further caption is named `pool#LINE` after the line (of a .parquet file, the row, from 1) it stands on. Shape letters: C captions of the
split, F further ones, N any number.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.captions import caption_hash, near_duplicate_groups, normalise
from eval.dataset.retrieval_set import GroupHashes, RetrievalSet, StringColumn
from eval.errors import UserError
from eval.manifest.rows import is_unicode
from eval.manifest.text import read_csv, read_jsonl

OWNER = "pool"  # stands where the image's id does in a caption's id
_MOST_FAULTS = 20


@dataclass(frozen=True)
class FurtherCaptions:
    """Captions without images.

    Attributes:
        texts: as they stand in the file.
        lines_F: int64, the line of each, ascending.
        source: the file they come from.
    """

    texts: Sequence[str] = ()
    lines_F: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    source: str = ""

    @property
    def sha256(self) -> str:
        """Hash of what the file says."""
        digest = hashlib.sha256(np.ascontiguousarray(self.lines_F, dtype=np.int64).tobytes())
        for text in self.texts:
            digest.update(text.encode("utf-8") + b"\0")
        return digest.hexdigest()


class CaptionPool:
    """Every caption that can be mined, by index: below `num_captions` of the split, from there on further ones."""

    def __init__(self, dataset: RetrievalSet, further: FurtherCaptions | None = None) -> None:
        """Raises UserError when an image of the split has the name that further captions are known by."""
        self.dataset, self.further = dataset, further or FurtherCaptions()
        self.num_captions = dataset.num_captions
        if len(self.further.texts) and OWNER in set(dataset.image_ids):
            raise UserError(f"mining.pool: an image of the data has the id {OWNER!r}, which names the pool's captions; rename the image")

    def __len__(self) -> int:
        return self.num_captions + len(self.further.texts)

    @cached_property
    def hash_C(self) -> np.ndarray:
        """Hash of the normalised text of each, int64 of shape (C + F,)."""
        further_F = np.array([caption_hash(text) for text in self.further.texts], dtype=np.int64)
        return np.concatenate([self.dataset.caption_hash_C, further_F])

    @property
    def place(self) -> str:
        """ " or FILE" of further captions, to be said beside the manifest; empty without any."""
        return f" or {self.further.source}" if len(self.further.texts) else ""

    @cached_property
    def data_sha256(self) -> str:
        """Hash of what is trained on: the split's own, and with further captions both."""
        split = self.dataset.sha256()
        return split if not len(self.further.texts) else hashlib.sha256(f"{split} {self.further.sha256}".encode()).hexdigest()

    def text(self, index: int) -> str:
        """The words of one."""
        return self.dataset.captions[index] if index < self.num_captions else self.further.texts[index - self.num_captions]

    def caption_id(self, index: int) -> str:
        """`IMAGE_ID#K`, or `pool#LINE`."""
        if index < self.num_captions:
            return self.dataset.caption_id(index)
        return f"{OWNER}#{self.further.lines_F[index - self.num_captions]}"

    def index_of_line(self, line: int) -> int:
        """The index of the further caption of a line.

        Raises:
            LookupError: none stands there.
        """
        place = int(np.searchsorted(self.further.lines_F, line))
        if place == len(self.further.lines_F) or self.further.lines_F[place] != line:
            raise LookupError(f"no caption on line {line} of the pool")
        return self.num_captions + place

    def index_of(self, caption_id: str, image_number: Mapping[str, int]) -> int:
        """The index of a caption by its id.

        Args:
            image_number: the index of every image of the split by its id.

        Raises:
            LookupError, ValueError: it is not there.
        """
        owner, _, place = caption_id.rpartition("#")
        if owner in image_number:
            return int(self.dataset.caption_offsets[image_number[owner]]) + int(place)
        if owner == OWNER:
            return self.index_of_line(int(place))
        raise LookupError(caption_id)

    def is_near_duplicate(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """Whether a caption says in nearly the same words (eval/captions.py) what is true of the image; arguments broadcast."""
        keys_C, true = self.near_truth
        return true.contains(self.dataset.group_I[images], keys_C[captions])

    @cached_property
    def near_truth(self) -> tuple[np.ndarray, GroupHashes]:
        """Near-duplicate group of every caption, and which of them are true of which group of images."""
        keys_C = near_duplicate_groups(self._texts())
        groups_C = self.dataset.group_I[self.dataset.caption_image_C]
        return keys_C, GroupHashes(groups_C, keys_C[: self.num_captions], int(self.dataset.group_I.max()) + 1)

    def _texts(self) -> Iterator[str]:
        yield from self.dataset.captions
        yield from self.further.texts


def read_further(path: str) -> FurtherCaptions:
    """Captions from a file: .txt, one a line (empty lines left out); .jsonl, .csv, .tsv or .parquet with a column `caption`.

    Raises:
        UserError: it cannot be read, has no such column, or rows without words; each with its line.
    """
    source, faults = Path(path), list[tuple[str, str]]()
    readers = {".txt": _text_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows}
    if source.suffix.lower() not in readers:
        raise UserError(f"mining.pool: {path}: expected a file that ends in one of {', '.join(readers)}")
    texts: list[str] = []
    lines: list[int] = []
    try:
        for line, text in readers[source.suffix.lower()](source, faults):
            fault = _fault(text)
            if fault:
                faults.append((f"{path}:{line}", fault))
            else:
                texts.append(text)
                lines.append(line)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise UserError(f"mining.pool: {path}: cannot be read ({error})") from error
    if faults:
        shown = "\n".join(f"  {place}: {what}" for place, what in faults[:_MOST_FAULTS])
        more = f"\n  and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise UserError(f"mining.pool: {path}: {len(faults)} fault(s)\n{shown}{more}")
    if not texts:
        raise UserError(f"mining.pool: {path}: holds no caption")
    return FurtherCaptions(StringColumn(texts), np.array(lines, dtype=np.int64), path)


def _fault(text: Any) -> str:
    if not isinstance(text, str):
        return f"expected a caption, found {text!r:.80}"
    if not is_unicode(text):
        return f"expected text, found half of a character in {text!r:.80}"
    return "" if normalise(text) else f"nothing is left of {text!r:.80} without blanks and punctuation"


def _text_rows(path: Path, _: list[tuple[str, str]]) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline=None) as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                yield line, text.strip()


def _jsonl_rows(path: Path, faults: list[tuple[str, str]]) -> Iterator[tuple[int, Any]]:
    yield from _column(path, *read_jsonl(path, faults))


def _csv_rows(path: Path, faults: list[tuple[str, str]]) -> Iterator[tuple[int, Any]]:
    yield from _column(path, *read_csv(path, faults))


def _column(path: Path, columns: list[str], records: list[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, Any]]:
    _check_column(path, columns)
    for line, record in records:
        yield line, record.get("caption")


def _parquet_rows(path: Path, _: list[tuple[str, str]]) -> Iterator[tuple[int, Any]]:
    with pq.ParquetFile(path) as file:
        _check_column(path, file.schema_arrow.names)
        row = 0
        for batch in file.iter_batches(columns=["caption"]):
            for text in batch["caption"].to_pylist():
                row += 1
                yield row, text


def _check_column(path: Path, columns: list[str]) -> None:
    if "caption" not in columns:
        raise UserError(f"mining.pool: {path}: expected a column `caption`, found {columns}; rename one")
