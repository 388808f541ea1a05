"""Texts that a user gives, in a file of their own or in a column of the manifest: paraphrases of captions, and captions of images.

Additional captions of images are views of the candidate in text-to-image search.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.manifest.formats.lists import UnreadableList, as_list
from eval.manifest.rows import is_unicode
from eval.processes import Processes
from rerank.expansions.additional_texts import AdditionalTexts, CaptionExpansions, ImageCaptions
from rerank.expansions.base import TextExpansion
from rerank.expansions.text_file import KINDS, TableFaults, existing_file, one_of, read_table

PARAPHRASES, CAPTIONS = "paraphrases", "captions"
_COLUMNS = {PARAPHRASES: ("caption", ("expansion", "expansions")), CAPTIONS: ("image", ("captions", "caption"))}
"""Name -> the column that names an item, and those that may hold its texts, a list or one text."""


@dataclass(frozen=True, kw_only=True)
class FileExpansion(TextExpansion):
    """A file whose rows name the captions (by normalised text) or the images (by id) that their texts belong to.

    Attributes:
        name: PARAPHRASES or CAPTIONS.
        texts: key of an item -> its texts, in the file's order.
        num_rows: key -> rows that name it.
    """

    texts: Mapping[str, list[str]]
    num_rows: Mapping[str, int]

    @classmethod
    def read(cls, name: str, source: str, file: str) -> "FileExpansion":
        """Read a file whole.

        Raises:
            UserError: the file or its columns are not there, or with every fault of its rows.
        """
        key_column, text_columns = _COLUMNS[name]
        path = existing_file(source, file)
        faults = TableFaults(source, path)
        if path.suffix.lower() not in KINDS:
            raise UserError(f"{source}: expected a file that ends in one of {', '.join(KINDS)}; found {path.name!r}")
        columns, records = read_table(source, path, faults.found)
        if not {key_column, *text_columns} & set(columns):
            faults.raise_any()  # e.g. bytes of another encoding: a message on column names would mislead
        if not columns:
            raise UserError(f"{source}: {path} is empty; write rows with `{key_column}` and `{text_columns[0]}`, or leave it out")
        one_of(source, path, columns, (key_column,))
        noun = one_of(source, path, columns, text_columns).removesuffix("s")
        texts: dict[str, list[str]] = {}
        num_rows = Counter[str]()
        for line, record in records:
            value, added = record.get(key_column), [text for column in text_columns for text in as_list(record.get(column))]
            whats = [_text_fault(value, "caption") if name == PARAPHRASES else _id_fault(value)]
            whats += [_text_fault(text, noun) for text in added]
            if not added:
                whats.append(f"empty {noun}: write one, or take the row out")
            for what in filter(None, whats):
                faults.add(line, what)
            key = _key(name, str(value))
            texts.setdefault(key, []).extend(added)
            num_rows[key] += 1
        faults.raise_any()
        if not texts:
            raise UserError(f"{source}: {path} holds no rows; write some, or leave it out")
        return cls(name=name, source=source, texts=texts, num_rows=num_rows)

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> AdditionalTexts:
        """Those of each item of a split.

        Raises:
            UserError: the file names no item of the split.
        """
        items: Sequence[str] = dataset.captions if self.name == PARAPHRASES else dataset.image_ids
        keys = [_key(self.name, item) for item in items]
        key_column, _ = _COLUMNS[self.name]
        num_unmatched = sum(self.num_rows[key] for key in self.num_rows.keys() - set(keys))
        if num_unmatched == sum(self.num_rows.values()):
            raise UserError(
                f"{self.source}: the `{key_column}` of none of its {num_unmatched} row(s) is in {dataset.source} "
                f"(split {dataset.split!r}); expected one such as {items[0]!r:.80}, found {next(iter(self.texts))!r:.80}. "
                "Give the file of this split"
            )
        noted = {f"rows whose {key_column} is not in the split": num_unmatched} if num_unmatched else {}
        return _select(self, dataset, [self.texts.get(key, []) for key in keys], noted)


@dataclass(frozen=True, kw_only=True)
class ColumnExpansion(TextExpansion):
    """A column of the manifest: a row's texts belong to each of its captions, or to its image."""

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> AdditionalTexts:
        """Those of each item of a split.

        Raises:
            UserError: the manifest was read without the column, or it is empty in all rows of the split.
        """
        (column,) = self.columns
        texts_C = dataset.texts.get(column)
        if texts_C is None:
            raise UserError(f"{self.source}: the manifest was read without its column {column!r}; read_manifest(..., keep=[{column!r}])")
        if not any(texts_C):
            raise UserError(f"{self.source}: column {column!r} of {dataset.source} is empty in every row of split {dataset.split!r}")
        proposed = texts_C if self.name == PARAPHRASES else list(_of_images(dataset.every or dataset, column))
        return _select(self, dataset, proposed, {})


def _select(expansion: TextExpansion, dataset: RetrievalSet, proposed: list[list[str]], noted: Mapping[str, int]) -> AdditionalTexts:
    kind = CaptionExpansions if expansion.name == PARAPHRASES else ImageCaptions
    return kind.select(dataset, proposed, name=expansion.name, source=expansion.source, noted=noted)


def _of_images(dataset: RetrievalSet, column: str) -> Iterator[list[str]]:
    """The texts of each image's rows, a row's once: its captions share one list."""
    texts_C = dataset.texts[column]
    for image in range(dataset.num_images):
        rows = texts_C[int(dataset.caption_offsets[image]) : int(dataset.caption_offsets[image + 1])]
        yield [text for number, row in enumerate(rows) if number == 0 or row is not rows[number - 1] for text in row]


def _key(name: str, item: str) -> str:
    """What names an item: a caption's normalised text, or an image's id, which macOS and Linux may compose differently."""
    return normalise(item) if name == PARAPHRASES else normalize("NFC", item)


def _id_fault(value: Any) -> str:
    known = isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""
    return "" if known else f"expected an image's id, found {value!r:.80}"


def _text_fault(value: Any, what: str) -> str:
    """Why a value is no text with words in it; empty where it is one."""
    if isinstance(value, UnreadableList):
        return value.what
    if not isinstance(value, str):
        return f"expected {what}, found {value!r:.80}"
    if not is_unicode(value):
        return f"expected text, found half of a character in {value!r:.80}"
    return (
        "" if normalise(value) else f"empty {what}: nothing is left of {value!r:.80} without blanks, punctuation and invisible characters"
    )
