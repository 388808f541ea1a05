"""The demo's dictionaries: the thesaurus is the script's, and data/synonyms.txt leads from every rare word to the plain one."""

import pytest

from demo.make_data import DATA
from demo.make_thesaurus import THESAURUS, thesaurus, thesaurus_text
from demo.phrases import WORDS


def entries(text: str) -> dict[str, list[str]]:
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return {word: others.split(", ") for word, _, others in (line.partition(": ") for line in lines if line)}


def test_the_committed_thesaurus_is_the_scripts() -> None:
    assert THESAURUS.read_text(encoding="utf-8") == thesaurus_text(), "run: python -m demo.make_thesaurus"


@pytest.mark.parametrize(("word", "others"), [("huge", ("large", "big")), ("large", ("big", "huge")), ("azure", ("blue",))])
def test_others_that_mean_the_same_the_plain_one_first(word: str, others: tuple[str, ...]) -> None:
    assert thesaurus()[word] == others


def test_every_word_with_another_has_a_line_and_no_line_leads_to_another_meaning() -> None:
    found = entries(THESAURUS.read_text(encoding="utf-8"))
    assert set(found) == {word for words in WORDS.values() if len(words) > 1 for word in words} and "star" not in found
    meaning = {word: value for value, words in WORDS.items() for word in words}
    assert all(meaning[other] == meaning[word] for word, others in found.items() for other in others)


def test_synonyms_lead_from_every_rare_word_to_the_plain_one_and_not_back() -> None:
    found = entries((DATA / "synonyms.txt").read_text(encoding="utf-8"))
    assert {word: others for word, others in found.items() if word not in ("under", "beneath", "over")} == {
        word: [words[0]] for words in WORDS.values() for word in words[1:]
    }
    assert not set(found) & {other for others in found.values() for other in others}
