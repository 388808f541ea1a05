"""Write the demo's thesaurus: each word of a caption that can be said in another way, and those ways, the plain one first.

    python -m demo.make_thesaurus

It leads from every word to all that mean the same, as a dictionary does. data/synonyms.txt, by hand, leads one way alone: from words that
the base checkpoint seldom read to the plain ones, which it knows best (demo/phrases.py: the first of each).
"""

from pathlib import Path

from demo.make_data import DATA
from demo.phrases import WORDS

THESAURUS = Path(DATA) / "thesaurus.txt"


def thesaurus() -> dict[str, tuple[str, ...]]:
    """Each word with the others that mean the same, in the order of WORDS; words without another are left out."""
    return {word: tuple(other for other in words if other != word) for words in WORDS.values() for word in words if len(words) > 1}


def thesaurus_text() -> str:
    """The file: a line a word, `word: synonym, synonym`."""
    return "".join(f"{word}: {', '.join(others)}\n" for word, others in thesaurus().items())


if __name__ == "__main__":
    THESAURUS.write_text(thesaurus_text(), encoding="utf-8")
