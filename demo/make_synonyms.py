"""Write the demo's two dictionaries: each word of a caption that can be said in another way, and those ways.

    python -m demo.make_synonyms

The base checkpoint knows the plain words best (demo/phrases.py: the first of each). synonyms.txt maps every word to the others that mean
the same, the plain one first, as a dictionary would; plain-words.txt leads one way alone, from a rare word to the plain one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from demo.phrases import WORDS

SYNONYMS, PLAIN_WORDS = (Path(__file__).parent / name for name in ("synonyms.txt", "plain-words.txt"))


def dictionary() -> dict[str, tuple[str, ...]]:
    """Each word with the others that mean the same, in the order of WORDS; words without another are left out."""
    return {word: tuple(other for other in words if other != word) for words in WORDS.values() for word in words if len(words) > 1}


def plain_words() -> dict[str, tuple[str, ...]]:
    """Each rare word with the plain one."""
    return {word: words[:1] for words in WORDS.values() for word in words[1:]}


def dictionary_text(entries: Mapping[str, Sequence[str]]) -> str:
    """The file: a line a word, `word: synonym, synonym`."""
    return "".join(f"{word}: {', '.join(others)}\n" for word, others in entries.items())


if __name__ == "__main__":
    SYNONYMS.write_text(dictionary_text(dictionary()), encoding="utf-8")
    PLAIN_WORDS.write_text(dictionary_text(plain_words()), encoding="utf-8")
