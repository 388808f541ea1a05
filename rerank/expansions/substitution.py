"""Words of a caption replaced by synonyms: which words, and in which order.

Whole words only, in any case; a word is letters and digits with the hyphens and apostrophes inside it ("t-shirt", "dog's"). An entry of
several words is taken before a shorter one. The article "a" or "an" in front follows the new word.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ARTICLE = re.compile(r"\b([Aa])n?(\s+)$")
_VOWELS = frozenset("aeiou")

Words = tuple[str, ...]
Synonyms = Callable[[Words], Sequence[str]]
"""The synonyms of an entry (its words in lower case), the most trusted first; empty: it has none."""


def words_of(text: str) -> Words:
    """The words of a text, in lower case."""
    return tuple(match.group().lower() for match in _WORD.finditer(text))


@dataclass(frozen=True)
class Match:
    """An entry found in a caption: all its places (start, end), and its synonyms."""

    places: list[tuple[int, int]]
    synonyms: Sequence[str]


def find_entries(caption: str, synonyms: Synonyms, longest: int) -> list[Match]:
    """The entries a caption holds, in the order of their first place; of overlapping ones the first, and there the longest.

    Args:
        longest: words that an entry has at most.
    """
    found: dict[Words, Match] = {}
    tokens = list(_WORD.finditer(caption))
    place = 0
    while place < len(tokens):
        for length in range(min(longest, len(tokens) - place), 0, -1):
            run = tokens[place : place + length]
            between = [caption[one.end() : other.start()] for one, other in zip(run, run[1:], strict=False)]
            if any(gap.strip() for gap in between):  # "red, square" is not "red square"
                continue
            entry = tuple(token.group().lower() for token in run)
            if instead := synonyms(entry):
                found.setdefault(entry, Match([], instead)).places.append((run[0].start(), run[-1].end()))
                place += length - 1
                break
        place += 1
    return list(found.values())


def replaced(caption: str, chosen: Sequence[tuple[Match, str]]) -> str:
    """A caption with every place of each match taken by its synonym."""
    text = caption
    places = [(start, end, synonym) for match, synonym in chosen for start, end in match.places]
    for start, end, synonym in sorted(places, reverse=True):
        before = text[:start]
        if article := _ARTICLE.search(before):
            before = before[: article.start()] + article[1] + ("n" if synonym[0].lower() in _VOWELS else "") + article[2]
        word = synonym[0].upper() + synonym[1:] if text[start].isupper() and start == 0 else synonym
        text = before + word + text[end:]
    return text


def substitutions(caption: str, synonyms: Synonyms, longest: int, *, together_first: bool) -> Iterator[str]:
    """The caption with words replaced, the most trusted first.

    With first synonyms: all words at once, and each word alone; then the same with the second ones, and so on. A word that has fewer
    synonyms keeps its last one where all are replaced.

    Args:
        together_first: whether all at once comes before each alone: where each synonym is right. Where some are wrong, all at once has
            them all.
    """
    matches = find_entries(caption, synonyms, longest)
    for rank in range(max((len(match.synonyms) for match in matches), default=0)):
        alone = [[(match, match.synonyms[rank])] for match in matches if rank < len(match.synonyms)]
        together = [[(match, match.synonyms[min(rank, len(match.synonyms) - 1)]) for match in matches]] if len(matches) > 1 else []
        for chosen in together + alone if together_first else alone + together:
            yield replaced(caption, chosen)
