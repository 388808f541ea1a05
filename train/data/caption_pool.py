"""The captions that can be mined: those of the split, followed by additional captions that have no image.

The id of an additional caption is `pool#LINE`, its line in the file (in a .parquet file its row, from 1). Shape letters: C captions of the
split, A additional ones.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.captions import INVISIBLE, caption_hash, near_duplicate_groups, normalise
from eval.dataset.retrieval_set import GroupHashes, RetrievalSet, StringColumn
from eval.encoder.caption_tokens import of_equal_tokens
from eval.errors import UserError
from eval.files import TABLE_BYTES, open_text, require_plain
from eval.manifest.columns import CAPTION_NAMES
from eval.manifest.formats.encoding import values_of
from eval.manifest.formats.lists import parsed_list
from eval.manifest.formats.text import read_csv, read_jsonl
from eval.manifest.rows import is_unicode

OWNER = "pool"  # in place of the image's id in the id of an additional caption
_MOST_FAULTS = 20


@dataclass(frozen=True)
class AdditionalCaptions:
    """Captions without images.

    Attributes:
        texts: as in the file.
        lines_A: int64, the line of each, ascending.
        source: the file they come from.
        column: of a table, the one they are read from.
    """

    texts: Sequence[str] = ()
    lines_A: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    source: str = ""
    column: str = ""

    @property
    def sha256(self) -> str:
        """Hash of the lines and their captions."""
        digest = hashlib.sha256(np.ascontiguousarray(self.lines_A, dtype=np.int64).tobytes())
        for text in self.texts:
            digest.update(text.encode("utf-8") + b"\0")
        return digest.hexdigest()


class LazyStrings(Sequence[str]):
    """Strings that are looked up one at a time, without a copy of all."""

    def __init__(self, of: Callable[[int], str], length: int) -> None:
        self._of, self._length = of, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> str, slice -> list[str]
        places = range(self._length)[index]
        return self._of(places) if isinstance(places, int) else [self._of(place) for place in places]


class CaptionPool:
    """Every caption that can be mined, by index: below `num_captions` those of the split, then the additional ones; with the split's images
    what scoring reads (rerank.scoring.cached_scoring.ScoringData)."""

    def __init__(self, dataset: RetrievalSet, additional: AdditionalCaptions | None = None) -> None:
        """Raises UserError when the id of an image of the split is that of the additional captions."""
        self.dataset, self.additional = dataset, additional or AdditionalCaptions()
        self.num_captions = dataset.num_captions
        self.image_ids, self.load_image, self.image_digest = dataset.image_ids, dataset.load_image, dataset.image_digest
        self._equal_tokens: list[tuple[np.ndarray, GroupHashes]] | None = None
        if len(self.additional.texts) and OWNER in dataset.image_ids:
            raise UserError(f"mining.pool: an image of the data has the id {OWNER!r}, which names the pool's captions; rename the image")

    def __len__(self) -> int:
        return self.num_captions + len(self.additional.texts)

    @property
    def captions(self) -> Sequence[str]:
        """The text of every caption."""
        return LazyStrings(self.text, len(self))

    @property
    def caption_ids(self) -> Sequence[str]:
        """The id of every caption."""
        return LazyStrings(self.caption_id, len(self))

    @cached_property
    def hash_C(self) -> np.ndarray:
        """Hash of the normalised text of each caption, int64 of shape (C + A,)."""
        if not len(self.additional.texts):
            return self.dataset.caption_hash_C
        marks = self.dataset.keeps_marks
        hash_A = np.array([caption_hash(text, keeps_marks=marks) for text in self.additional.texts], dtype=np.int64)
        return np.concatenate([self.dataset.caption_hash_C, hash_A])

    @cached_property
    def has_invisible(self) -> bool:
        """True if a caption holds invisible characters."""
        texts = chain(self.dataset.captions, self.additional.texts)
        return any(INVISIBLE.search(text) for text in texts if not text.isascii())

    @property
    def place(self) -> str:
        """ " or FILE" with the file of the additional captions, for messages after the manifest; empty without any."""
        return f" or {self.additional.source}" if len(self.additional.texts) else ""

    @cached_property
    def data_sha256(self) -> str:
        """Hash of the training data: that of the split, combined with that of the additional captions if there are any."""
        split = self.dataset.sha256()
        return split if not len(self.additional.texts) else hashlib.sha256(f"{split} {self.additional.sha256}".encode()).hexdigest()

    def text(self, index: int) -> str:
        """The text of one caption."""
        return self.dataset.captions[index] if index < self.num_captions else self.additional.texts[index - self.num_captions]

    def caption_id(self, index: int) -> str:
        """The id of one caption: `IMAGE_ID#K`, or `pool#LINE`."""
        if index < self.num_captions:
            return self.dataset.caption_id(index)
        return f"{OWNER}#{self.additional.lines_A[index - self.num_captions]}"

    def index_of(self, caption_id: str, image_number: Mapping[str, int]) -> int:
        """The index of a caption by its id.

        Args:
            image_number: the index of every image of the split by its id.

        Raises:
            LookupError, ValueError: there is none with this id.
        """
        owner, _, place = caption_id.rpartition("#")
        if owner in image_number:
            return int(self.dataset.caption_offsets[image_number[owner]]) + int(place)
        if owner == OWNER:
            found = int(np.searchsorted(self.additional.lines_A, int(place)))
            if self.additional.lines_A[found : found + 1].tolist() == [int(place)]:
                return self.num_captions + found
        raise LookupError(f"no caption has the id {caption_id!r}")

    def compare_tokens(self, *keys: np.ndarray) -> None:
        """Say which captions are one to the models that read them: such captions are never mined for one another.

        Args:
            keys: int64 of shape (C + A,), of the token ids by each model's tokenizer (eval/encoder/caption_tokens.py).
        """
        groups_C = self.dataset.group_I[self.dataset.caption_image_C]
        different = [key_C for key_C in keys if of_equal_tokens(key_C, self.hash_C).any()]  # else the rule of equal text says it all
        self._equal_tokens = [(key_C, GroupHashes(groups_C, key_C[: self.num_captions])) for key_C in different]

    @property
    def knows_tokens(self) -> bool:
        """True once `compare_tokens` was called."""
        return self._equal_tokens is not None

    @property
    def has_equal_tokens(self) -> bool:
        """True if captions of different text have equal tokens."""
        return bool(self._equal_tokens)

    def has_tokens_of_positive(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """Whether each caption has the token ids of a positive of the image; arguments broadcast."""
        found = np.zeros(np.broadcast_shapes(images.shape, captions.shape), dtype=bool)
        for key_C, positives in self._equal_tokens or ():
            found |= positives.contains(self.dataset.group_I[images], key_C[captions])
        return found

    def is_near_duplicate(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """Whether each caption is a near-duplicate (eval/captions.py) of a positive of the image; arguments broadcast."""
        keys_C, positives = self.near_duplicate_positives
        return positives.contains(self.dataset.group_I[images], keys_C[captions])

    @cached_property
    def near_duplicate_positives(self) -> tuple[np.ndarray, GroupHashes]:
        """(near-duplicate group of every caption, positive pairs of image group and near-duplicate group)."""
        keys_C = near_duplicate_groups(chain(self.dataset.captions, self.additional.texts), keeps_marks=self.dataset.keeps_marks)
        groups_C = self.dataset.group_I[self.dataset.caption_image_C]
        return keys_C, GroupHashes(groups_C, keys_C[: self.num_captions])


def read_additional_captions(path: str) -> AdditionalCaptions:
    """Captions from a file: .txt, one a line (empty lines left out); .jsonl, .csv, .tsv or .parquet with a column `caption`, `text` or
    `title`, the first that is there.

    Raises:
        UserError: it cannot be read, has no such column, or rows without text; every fault with its line.
    """
    source, faults, column = Path(path), list[tuple[str, str]](), _Column()
    csv, jsonl = partial(_record_rows, read_csv), partial(_record_rows, read_jsonl)
    readers: dict[str, Any] = {".txt": _text_rows, ".jsonl": jsonl, ".csv": csv, ".tsv": csv, ".parquet": _parquet_rows}
    if source.suffix.lower() not in readers:
        raise UserError(f"mining.pool: {path}: expected a file that ends in one of {', '.join(readers)}")
    texts, lines = list[str](), list[int]()
    try:
        for line, text in readers[source.suffix.lower()](source, faults, column):  # no list of rows: a pool may hold tens of millions
            if fault := _fault(text):
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
    return AdditionalCaptions(StringColumn(texts), np.array(lines, dtype=np.int64), path, column.name)


class _Column:
    """The column of a table that the captions are read from."""

    def __init__(self) -> None:
        self.name = ""

    def find(self, path: Path, columns: list[str]) -> None:
        """Raises UserError: there is none."""
        self.name = next((name for name in ("caption", *CAPTION_NAMES) if name in columns), "")
        if not self.name:
            raise UserError(f"mining.pool: {path}: expected a column `caption`, found {columns}; rename one")


def _fault(text: Any) -> str:
    if not isinstance(text, str) or not isinstance(parsed_list(text, quoted=True), str):
        return f"expected a caption, found {text!r:.80}"
    if not is_unicode(text):
        return f"expected text, found half of a character in {text!r:.80}"
    return "" if normalise(text) else f"nothing is left of {text!r:.80} without blanks, punctuation and invisible characters"


def _text_rows(path: Path, _: list[tuple[str, str]], column: _Column) -> Iterator[tuple[int, Any]]:
    with open_text(path, TABLE_BYTES) as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                yield line, text.strip()


def _record_rows(read: Any, path: Path, faults: list[tuple[str, str]], column: _Column) -> Iterator[tuple[int, Any]]:
    columns, records = read(path, faults)
    column.find(path, columns)
    for line, record in records:
        yield line, record.get(column.name)


def _parquet_rows(path: Path, _: list[tuple[str, str]], column: _Column) -> Iterator[tuple[int, Any]]:
    require_plain(path, TABLE_BYTES)
    with pq.ParquetFile(path) as file:
        column.find(path, file.schema_arrow.names)
        batches = file.iter_batches(columns=[column.name])
        yield from enumerate((text for batch in batches for text in values_of(batch[column.name])), 1)
