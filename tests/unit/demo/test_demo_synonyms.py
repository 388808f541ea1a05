"""The demo's dictionary: the committed file is the script's, and leads from every word to the plain one first."""

import pytest

from demo.make_synonyms import SYNONYMS, dictionary, dictionary_text
from demo.phrases import WORDS


def test_the_committed_file_is_the_scripts() -> None:
    assert SYNONYMS.read_text(encoding="utf-8") == dictionary_text(), "run: python -m demo.make_synonyms"


@pytest.mark.parametrize(("word", "others"), [("huge", ("large", "big")), ("large", ("big", "huge")), ("azure", ("blue",))])
def test_others_that_mean_the_same_the_plain_one_first(word: str, others: tuple[str, ...]) -> None:
    assert dictionary()[word] == others


def test_every_word_with_another_has_a_line_and_no_line_leads_to_another_meaning() -> None:
    found = dict(line.split(": ") for line in SYNONYMS.read_text(encoding="utf-8").splitlines())
    assert set(found) == {word for words in WORDS.values() if len(words) > 1 for word in words} and "star" not in found
    meaning = {word: value for value, words in WORDS.items() for word in words}
    assert all(meaning[other] == meaning[word] for word, line in found.items() for other in line.split(", "))
    assert all(line.split(", ")[0] == meaning[word] for word, line in found.items() if word != meaning[word])
