"""A dictionary of synonyms that a user gives: lines of `word: synonym, synonym`, or .jsonl of {"word": ..., "synonyms": [...]}."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.manifest.formats.lists import UnreadableList, as_list
from eval.manifest.rows import is_unicode
from eval.processes import Processes
from rerank.expansions.additional_texts import CaptionExpansions
from rerank.expansions.base import TextExpansion
from rerank.expansions.substitution import Words, substitutions, words_of
from rerank.expansions.text_file import TableFaults, existing_file, one_of, read_table, read_text

_FORM = "word: synonym, synonym"


@dataclass(frozen=True, kw_only=True)
class Dictionary(TextExpansion):
    """A dictionary: entry -> its synonyms, the most trusted first. One way: a synonym is no entry."""

    name: str = "synonyms"
    entries: Mapping[Words, Sequence[str]]

    @classmethod
    def read(cls, path: str) -> "Dictionary":
        """Read one whole: .jsonl, or any other file as lines, where `#` begins a comment and empty lines are left out.

        Raises:
            UserError: it is not there or no text, holds nothing, or with every bad line.
        """
        source = f"synonyms:{path}"
        faults = TableFaults(source, path)
        reader = _jsonl_entries if path.lower().endswith(".jsonl") else _line_entries
        entries: dict[Words, Sequence[str]] = {}
        lines: dict[Words, int] = {}
        for line, word, synonyms in reader(source, path, faults):
            what = _fault(word, synonyms)
            if not what and words_of(word) in lines:
                what = f"{word!r} has an entry on line {lines[words_of(word)]} already; write its synonyms there"
            if what:
                faults.add(line, what)
                continue
            entries[words_of(word)], lines[words_of(word)] = synonyms, line
        faults.raise_any()
        if not entries:
            raise UserError(f"{source}: {path} holds no entry; write one a line: {_FORM}")
        return cls(source=source, entries=entries)

    def of(self, dataset: RetrievalSet, processes: Processes = Processes()) -> CaptionExpansions:
        """Each caption of a split with words replaced.

        Raises:
            UserError: no caption of the split holds an entry.
        """
        longest = max(map(len, self.entries))

        def synonyms(entry: Words) -> Sequence[str]:
            return self.entries.get(entry, ())

        proposed = (substitutions(caption, synonyms, longest, together_first=True) for caption in dataset.captions)
        expansions = CaptionExpansions.select(dataset, proposed, name=self.name, source=self.source, cut=True)
        if not len(expansions.texts):
            raise UserError(
                f"{self.source}: no caption of {dataset.source} (split {dataset.split!r}) holds any of its {len(self.entries)} "
                f"entries as a whole word, e.g. {' '.join(next(iter(self.entries)))!r} in {dataset.captions[0]!r:.80}"
            )
        return expansions


def _line_entries(source: str, path: str, faults: TableFaults) -> Iterator[tuple[int, str, list[str]]]:
    """(line, word, synonyms) of each line that has the form of one."""
    for number, raw in enumerate(read_text(source, path).split("\n"), 1):
        line = raw.split("#")[0].strip()
        if not line:
            continue
        word, colon, synonyms = line.partition(":")
        if colon:
            yield number, word.strip(), [synonym.strip() for synonym in synonyms.split(",")]
        elif is_unicode(line):
            faults.add(number, f"expected `{_FORM}`, found no colon in {line!r:.80}")
        else:
            faults.add(number, "not UTF-8 text; save the file as UTF-8")


def _jsonl_entries(source: str, path: str, faults: TableFaults) -> Iterator[tuple[int, Any, list[Any]]]:
    """(line, word, synonyms) of each record."""
    file = existing_file(source, path)
    columns, records = read_table(source, file, faults.found)
    for column in ("word", "synonyms") if columns else ():
        one_of(source, file, columns, (column,))
    for line, record in records:
        yield line, record.get("word"), as_list(record.get("synonyms"))


def _fault(word: Any, synonyms: list[Any]) -> str:
    """What is wrong with an entry; empty where nothing is."""
    for text in (word, *synonyms):
        if isinstance(text, UnreadableList):
            return text.what
        if not isinstance(text, str):
            return f"expected text, found {text!r:.80}"
        if not is_unicode(text):
            return "not UTF-8 text; save the file as UTF-8"
    if not words_of(word):
        return f"expected `{_FORM}`, found no word before the colon: {word!r:.80}"
    if not synonyms or not all(words_of(synonym) for synonym in synonyms):
        return f"an empty synonym of {word!r:.80}; write one, or take the comma out"
    if same := [synonym for synonym in synonyms if words_of(synonym) == words_of(word)]:
        return f"{word!r:.80} is given as its own synonym ({same[0]!r:.80}); take it out"
    return ""
