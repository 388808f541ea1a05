"""Synonyms in captions: whole words, entries of several words, the order, articles; dictionaries and templates with their bad lines."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import UserError
from rerank.expansions.parse import parse_expansion
from rerank.expansions.substitution import find_entries, substitutions, words_of
from rerank.expansions.templates import BUILT_IN, within
from tests.unit.rerank.combine.expansion_set import split_of

ENTRIES = {
    ("dog",): ["hound", "animal"],
    ("small",): ["little"],
    ("fire", "engine"): ["fire truck"],
    ("fire",): ["blaze"],
    ("t-shirt",): ["tee"],
    ("owl",): ["night bird"],
}


def said(caption: str, *, together_first: bool = False) -> list[str]:
    return list(substitutions(caption, lambda entry: ENTRIES.get(entry, ()), 2, together_first=together_first))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("no entry here", []),
        ("dogs, dogged, hot-dog, underdog", []),
        ("a dog", ["a hound", "an animal"]),
        ("Dog sees dog.", ["Hound sees hound.", "Animal sees animal."]),
        ("An owl", ["A night bird"]),
        ("a  fire engine", ["a  fire truck"]),
        ("a fire, engine", ["a blaze, engine"]),
        ("a T-shirt", ["a tee"]),
        ("a shirt", []),
        ("a small DOG", ["a little DOG", "a small hound", "a little hound", "a small animal", "a little animal"]),
    ],
)
def test_what_becomes_of_a_caption(caption: str, expected: list[str]) -> None:
    assert said(caption) == expected


def test_all_words_at_once_stand_first_where_each_synonym_is_trusted() -> None:
    assert said("a small dog", together_first=True) == [
        "a little hound",
        "a little dog",
        "a small hound",
        "a little animal",
        "a small animal",
    ]


@given(st.lists(st.sampled_from(["a", "an", "small", "dog", "fire", "engine", "DOG,", "owl", "hot-dog"]), max_size=8).map(" ".join))
def test_only_entries_and_articles_change(caption: str) -> None:
    matches = find_entries(caption, lambda entry: ENTRIES.get(entry, ()), 2)
    places = sorted(place for match in matches for place in match.places)
    assert all(end <= start for (_, end), (start, _) in zip(places, places[1:], strict=False))
    assert all(words_of(caption[start:end]) in ENTRIES for start, end in places)
    for text in said(caption):
        kept = [word for word in words_of(caption) if word not in ("a", "an") and (word,) not in ENTRIES and word != "engine"]
        assert [word for word in words_of(text) if word in kept] == kept
    assert len(set(said(caption))) == len(said(caption))


DICTIONARY = "# colours\nred : crimson , scarlet\n\nfire engine: fire truck  # not the same everywhere\n"


def test_a_dictionary_of_lines_and_one_of_records(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text(DICTIONARY)
    (tmp_path / "d.jsonl").write_text(
        '{"word": "red", "synonyms": ["crimson", "scarlet"]}\n{"word": "Fire  Engine", "synonyms": "fire truck"}\n'
    )
    for name in ("d.txt", "d.jsonl"):
        expansions = parse_expansion(f"synonyms:{tmp_path / name}").of(split_of(["A red fire engine."], ["a blue bus"]))
        expected = [
            "A crimson fire truck.",
            "A crimson fire engine.",
            "A red fire truck.",
            "A scarlet fire truck.",
            "A scarlet fire engine.",
        ]
        assert expansions.of(0) == expected and expansions.of(1) == [] and expansions.name == "synonyms"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.txt",
            "dog: hound\ncat\n: x\nowl: bird,\nowl: a, owl\nDOG: cur\n",
            [
                "5 fault(s)",
                ":2: expected `word:",
                ":3: expected",
                ":4: an empty synonym",
                ":5: 'owl' is given as its own",
                ":6: 'DOG' has an entry on line 1",
            ],
        ),
        ("b.txt", "cat: !!\n", [":1: an empty synonym of 'cat'"]),
        ("c.txt", b"caf\xe9: bar\nb\xe9\n", [":1: not UTF-8", ":2: not UTF-8"]),
        ("d.txt", "# nothing\n\n", ["holds no entry"]),
        (
            "e.jsonl",
            '{"word": "a", "synonyms": []}\n{"word": 3, "synonyms": ["b"]}\n{"word": "c", "synonyms": [null]}\nx\n',
            [":1: an empty", ":2: expected text", ":3: expected text", ":4: not a JSON"],
        ),
        ("f.jsonl", '{"word": "a", "synonym": "b"}\n', ["expected a column `synonyms`, found ['word', 'synonym']"]),
    ],
)
def test_bad_lines_of_a_dictionary_are_all_named(tmp_path: Path, name: str, content: str | bytes, words: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        parse_expansion(f"synonyms:{path}")
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_dictionary_that_no_caption_needs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("dog: hound\n")
    with pytest.raises(
        UserError, match=r"no caption of made \(split 'test'\) holds any of its 1 entries as a whole word, e.g. 'dog' in 'dogs'"
    ):
        parse_expansion(f"synonyms:{tmp_path / 'd.txt'}").of(split_of(["dogs"]))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog runs.", "a dog runs"),
        ("A dog runs. It barks.", "a dog runs. It barks"),
        ("Wait...", "Wait..."),
        ("made in the U.S.", "made in the U.S."),
        ("NASA launches", "NASA launches"),
        ("T-shirt on a line", "T-shirt on a line"),
        ("I see a dog", "I see a dog"),
        ("McDonald sits", "McDonald sits"),
        ("Über cars", "Über cars"),
        ("Is it a dog?", "is it a dog?"),
    ],
)
def test_a_caption_within_a_sentence(caption: str, expected: str) -> None:
    assert within(caption) == expected


def test_templates_built_in_and_from_a_file(tmp_path: Path) -> None:
    dataset = split_of(["A dog runs."])
    assert parse_expansion("templates").of(dataset).of(0) == [
        template.replace("{}", "A dog runs" if template.startswith("{}") else "a dog runs") for template in BUILT_IN
    ]
    path = tmp_path / "t.txt"
    path.write_text("a drawing of {}\n\n  {}, drawn \na DRAWING of {}!\n")
    drawn = parse_expansion(f"templates:{path}").of(dataset)
    assert (
        drawn.of(0) == ["a drawing of a dog runs", "A dog runs, drawn"] and drawn.dropped == {"said twice": 1} and drawn.name == "templates"
    )


def test_bad_templates_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"a photo\n{} and {}\na photo of {}\n{}!\ncaf\xe9 {}\n")
    with pytest.raises(UserError) as caught:
        parse_expansion(f"templates:{path}")
    message = str(caught.value)
    assert "4 fault(s)" in message and ":1: expected exactly one {}" in message and "found 2 in '{} and {}'" in message
    assert ":4: expected words next to the {}" in message and ":5: not UTF-8" in message
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no template"):
        parse_expansion(f"templates:{path}")
