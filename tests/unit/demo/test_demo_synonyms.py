"""The demo's dictionaries: the committed files are the script's, and lead from every rare word to the plain one."""

import pytest

from demo.make_synonyms import PLAIN_WORDS, SYNONYMS, dictionary, dictionary_text, plain_words
from demo.phrases import WORDS


def test_the_committed_files_are_the_scripts() -> None:
    for file, entries in ((SYNONYMS, dictionary()), (PLAIN_WORDS, plain_words())):
        assert file.read_text(encoding="utf-8") == dictionary_text(entries), "run: python -m demo.make_synonyms"


def test_plain_words_lead_one_way() -> None:
    assert plain_words()["little"] == ("small",) and plain_words()["azure"] == ("blue",) and "small" not in plain_words()
    assert not set(plain_words()) & {word for others in plain_words().values() for word in others}


@pytest.mark.parametrize(("word", "others"), [("huge", ("large", "big")), ("large", ("big", "huge")), ("azure", ("blue",))])
def test_others_that_mean_the_same_the_plain_one_first(word: str, others: tuple[str, ...]) -> None:
    assert dictionary()[word] == others


def test_every_word_with_another_has_a_line_and_no_line_leads_to_another_meaning() -> None:
    found = dict(line.split(": ") for line in SYNONYMS.read_text(encoding="utf-8").splitlines())
    assert set(found) == {word for words in WORDS.values() if len(words) > 1 for word in words} and "star" not in found
    meaning = {word: value for value, words in WORDS.items() for word in words}
    assert all(meaning[other] == meaning[word] for word, line in found.items() for other in line.split(", "))
    assert all(line.split(", ")[0] == meaning[word] for word, line in found.items() if word != meaning[word])
