"""FILE_OR_METHOD: what is understood, what is refused, and what the expansions say of themselves."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.phrases import WORDS
from eval.captions import normalise
from eval.errors import UserError
from rerank.expansions.additional_texts import CaptionExpansions
from rerank.expansions.base import TextExpansion
from rerank.expansions.parse import parse_expansion
from rerank.expansions.synonyms import Dictionary
from tests.unit.rerank.combine.expansion_set import split_of

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "expected one of FILE"),
        ("synonym:words.txt", "expected one of FILE"),
        ("synonyms", "expected one of FILE"),
        ("synonyms:", "found nothing after the colon"),
        ("column:", "found nothing after the colon"),
        ("crops:", "found nothing after the colon"),
        ("crops:3", "expected one of FILE"),
        ("nowhere.jsonl", "there is no file 'nowhere.jsonl'"),
        ("synonyms:nowhere.txt", "there is no file 'nowhere.txt'"),
        ("templates:nowhere.txt", "there is no file 'nowhere.txt'"),
        ("captions:nowhere.csv", "there is no file 'nowhere.csv'"),
        ("captions:README.md", "expected a file that ends in one of .jsonl"),
        ("wordnet:nowhere", "expected WordNet's files in nowhere"),
        ("paraphrase:nowhere", "nowhere: no such folder is here"),
    ],
)
def test_what_is_refused_is_said_at_once(text: str, words: str) -> None:
    if text.startswith("wordnet"):
        pytest.importorskip("nltk")
    with pytest.raises(UserError) as caught:
        parse_expansion(text)
    assert words in str(caught.value) and str(caught.value).startswith(f"{text}: ")


@pytest.mark.parametrize(
    ("text", "is_text"), [("templates", True), ("column:said", True), ("captions-column:said", True), ("crops", False), ("flips", False)]
)
def test_each_knows_its_name_and_what_it_was_asked_for_by(text: str, is_text: bool) -> None:
    expansion = parse_expansion(text)
    assert expansion.source == text and isinstance(expansion, TextExpansion) == is_text
    assert expansion.name == {"column:said": "paraphrases", "captions-column:said": "captions"}.get(text, text)


TEXTS = st.lists(st.sampled_from(["a dog", "A DOG!", "a cat", "", "?!", "one", "One.", "two", "three", "four"]), max_size=9)


@given(st.lists(TEXTS, min_size=3, max_size=3), st.integers(1, 4))
def test_what_is_kept_is_new_and_every_text_is_kept_or_counted(said: list[list[str]], most: int) -> None:
    dataset = split_of(["a dog"], ["a cat", "an owl"])
    with patch("rerank.expansions.additional_texts.MOST", most):
        kept = CaptionExpansions.select(dataset, said, name="x", source="y")
        cut = CaptionExpansions.select(dataset, map(iter, said), name="x", source="y", cut=True)
    assert cut.sha256() == kept.sha256() and "beyond the most" not in cut.dropped
    for caption, texts in enumerate(said):
        expected: dict[str, str] = {}
        for text in texts:
            if normalise(text) and normalise(text) != normalise(dataset.captions[caption]):
                expected.setdefault(normalise(text), text)
        assert kept.of(caption) == list(expected.values())[:most]
    assert len(kept.texts) + sum(kept.dropped.values()) == sum(map(len, said))
    others = sum(normalise(text) in {"a dog", "a cat", "an owl"} for text in kept.texts)
    assert kept.noted == ({"equal to another caption of the set": others} if others else {})


def test_the_hash_is_of_what_is_said_and_of_what() -> None:
    def hashed(texts: list[str], offsets: list[int]) -> str:
        return CaptionExpansions(texts, np.array(offsets), "x", "y").sha256()

    assert hashed(["a", "b"], [0, 1, 2]) == hashed(["a", "b"], [0, 1, 2])
    assert (
        len({hashed(["a", "b"], [0, 1, 2]), hashed(["a", "b"], [0, 2, 2]), hashed(["a", "c"], [0, 1, 2]), hashed(["ab"], [0, 1, 1])}) == 4
    )


def test_the_record(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_text("dog: hound, cur\n")
    expansions = parse_expansion(f"synonyms:{path}").of(split_of(["a dog"], ["a cat", "a hound"]))
    record = expansions.record()
    assert (record["num_items"], record["num_with"], record["num_texts"]) == (3, 1, 2)
    assert record["noted"] == {"equal to another caption of the set": 1} and record["source"] == f"synonyms:{path}"


def test_the_page_shows_the_message_of_a_bad_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "expansion-sources.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("# words\nazure: blue\nazure blue\n\nbig: large\n\nAzure: sky blue\n")
    with pytest.raises(UserError) as caught:
        parse_expansion("synonyms:words.txt")
    assert f"```text\n--expand: {caught.value}\n```" in page


def test_the_demos_dictionary_knows_every_word_that_has_a_plainer_one() -> None:
    expansion = parse_expansion(f"synonyms:{ROOT / 'demo' / 'data' / 'synonyms.txt'}")
    assert isinstance(expansion, Dictionary)
    plainer = {(word,): [plain] for plain, *others in WORDS.values() for word in others}
    relations = {("under",): ["below"], ("beneath",): ["below"], ("over",): ["above"]}
    assert expansion.entries == plainer | relations
