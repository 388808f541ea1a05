"""Write the demo's dictionary: each word of a caption that can be said in another way, and those ways, the plain one first.

    python -m demo.make_synonyms

The base checkpoint knows the plain words best (demo/phrases.py: the first of each), so an expansion leads from a rare word back to one it knows.
"""

from pathlib import Path

from demo.phrases import WORDS

SYNONYMS = Path(__file__).parent / "synonyms.txt"


def dictionary() -> dict[str, tuple[str, ...]]:
    """Each word with the others that mean the same, in the order of WORDS; words without another are left out."""
    return {word: tuple(other for other in words if other != word) for words in WORDS.values() for word in words if len(words) > 1}


def dictionary_text() -> str:
    """The file: a line a word, `word: synonym, synonym`."""
    return "".join(f"{word}: {', '.join(others)}\n" for word, others in dictionary().items())


if __name__ == "__main__":
    SYNONYMS.write_text(dictionary_text(), encoding="utf-8")
