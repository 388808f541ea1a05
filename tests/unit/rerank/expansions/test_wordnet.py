"""WordNet through nltk over the data that Debian's wordnet-base installs; skipped where either is missing."""

import shutil
from pathlib import Path

import pytest

from eval.errors import UserError
from rerank.expansions.parse import parse_expansion
from rerank.expansions.wordnet import DEBIAN, EXCEPTIONS, FILES, WordNet
from tests.unit.rerank.combine.expansion_set import split_of

pytest.importorskip("nltk")
pytestmark = pytest.mark.skipif(not (Path(DEBIAN) / "index.noun").is_file(), reason="no WordNet here: apt-get install wordnet-base")


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet.read(DEBIAN)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("sofa", ["couch", "lounge"]),
        ("sofas", ["couches", "lounges"]),  # a regular plural gets plurals
        ("dog", ["domestic dog"]),  # Canis familiaris is a name
        ("traffic light", ["traffic signal", "stoplight"]),
        ("bicycle", ["bike", "wheel", "cycle"]),
        ("small", ["little"]),  # an adjective first, though a noun too
        ("begin", ["get down", "get", "start out", "start", "set about", "set out", "commence"]),
        ("men", []),  # of man, no regular plural; and no work force
        ("running", []),  # of the verb run
        ("a", []),
        ("two", []),
        ("left", []),
        ("qqqq", []),
    ],
)
def test_synonyms_are_those_of_the_commonest_sense(wordnet: WordNet, entry: str, expected: list[str]) -> None:
    assert list(wordnet.synonyms(tuple(entry.split()))) == expected


def test_captions_with_words_replaced(wordnet: WordNet) -> None:
    expansions = wordnet.of(split_of(["A small dog on two sofas."], ["qqqq"]))
    assert expansions.of(0) == [
        "A little dog on two sofas.",
        "A small domestic dog on two sofas.",
        "A small dog on two couches.",
        "A little domestic dog on two couches.",
        "A small dog on two lounges.",
        "A little domestic dog on two lounges.",
    ]
    assert expansions.of(1) == [] and expansions.name == "wordnet"


def test_the_usual_places_are_looked_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert parse_expansion("wordnet").source == "wordnet"
    shutil.copytree(DEBIAN, tmp_path / "own")
    (tmp_path / "own" / "index.noun").write_text("sofa n 1 0 1 1 04256520\n", encoding="utf-8")
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "own"))
    only_sofa = parse_expansion("wordnet")
    assert isinstance(only_sofa, WordNet)
    assert list(only_sofa.synonyms(("sofa",))) == ["couch", "lounge"] and not only_sofa.synonyms(("traffic", "light"))


def test_a_folder_that_lacks_files_or_is_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacking are cntlist.rev, index.noun, index.verb, index.adj, .*wordnet-base"):
        parse_expansion(f"wordnet:{tmp_path}")
    for name in (*FILES, *EXCEPTIONS):
        shutil.copy(Path(DEBIAN) / name, tmp_path)
    (tmp_path / "index.verb").write_text("run v many\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read .*Install them again"):
        parse_expansion(f"wordnet:{tmp_path}")


def test_without_nltk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs nltk.*'\.\[wordnet\]'"):
        parse_expansion("wordnet")
