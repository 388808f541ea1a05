"""Lists that are written into the text of a cell, at every reader: the very texts, or a fault that names the row."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval.errors import UserError
from eval.manifest.formats.lists import UnreadableList, as_list, parsed_list
from eval.manifest.manifest import ManifestError, read_manifest
from rerank.answers.captions import read_captions
from rerank.expansions.parse import parse_expansion
from train.data.caption_pool import read_additional_captions

CASES = Path(__file__).parents[5] / "shared/cases/csv_numpy_lists"
SHORTENED = str(np.array([f"caption {number}" for number in range(1001)], dtype=object))
"""numpy leaves out what is between the first and the last three of more than a thousand."""

LISTS = [
    ("['a dog' 'a cat']", ["a dog", "a cat"]),
    ("['a dog'\n 'a cat']", ["a dog", "a cat"]),
    (str(np.array(["it's", 'a "dog"', "it's a \"cat\""], dtype=object)), ["it's", 'a "dog"', "it's a \"cat\""]),
    (repr(np.array(["a dog", "a cat"], dtype=object)), ["a dog", "a cat"]),
    (repr(np.array(["a dog", "a cat"])), ["a dog", "a cat"]),
    (str([np.str_("a dog"), np.str_("a cat")]), ["a dog", "a cat"]),
    ("""["a dog", 'a cat']""", ["a dog", "a cat"]),
    ('["a dog", "a cat"]', ["a dog", "a cat"]),
    ('[\n  "a dog",\n  "a cat"\n]', ["a dog", "a cat"]),
    ("['a dog', 'a cat',]", ["a dog", "a cat"]),
    ("('a dog', 'a cat')", ["a dog", "a cat"]),
    ("('a dog',)", ["a dog"]),
    ("{'a dog'}", ["a dog"]),
    ("frozenset({'a dog', 'a cat'})", ["a dog", "a cat"]),
    ("['a dog ...' 'a [cat], too']", ["a dog ...", "a [cat], too"]),
    (r"['a \'dog\'', 'a\ncat']", ["a 'dog'", "a\ncat"]),
]
FAULTS = [
    (SHORTENED, "was shortened where it was written"),
    ("['a dog', 'a cat', ...", "was shortened where it was written"),
    ("['a dog', 'a ca", "was shortened where it was written"),
    ('["a dog", … "a cat"]', "was shortened where it was written"),
    ("['a dog''a cat']", "cannot be taken apart"),
    ("['a dog', 'a cat' 'a hen']", "cannot be taken apart"),
    ("['a dog' and 'a cat']", "cannot be taken apart"),
]
TEXTS = ["[Applause] a man", "(left) a dog", "('a dog')", "['Stop'] a sign", "['tis the season", "[sic]", "[", '("Hello" he says)', "{}"]


@pytest.mark.parametrize(("text", "items"), LISTS)
def test_a_list_is_read_as_its_items(text: str, items: list[str]) -> None:
    assert parsed_list(text) == parsed_list(text, quoted=True) == as_list(text) == items


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab'\"\\[](),{} \n.é\u2028\x07", min_size=1, max_size=12), min_size=1, max_size=5))
def test_whatever_the_texts_are_they_come_back(items: list[str]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    for text in (json.dumps(items), json.dumps(items, ensure_ascii=False), repr(items), str(array), repr(array), repr((*items, "x"))):
        assert parsed_list(text, quoted=True) == (items if text[0] != "(" else [*items, "x"]), text


@pytest.mark.parametrize(("text", "what"), FAULTS)
def test_a_list_that_cannot_be_read_is_a_fault(text: str, what: str) -> None:
    for found in (parsed_list(text), parsed_list(text, quoted=True), *as_list(text)):
        assert isinstance(found, UnreadableList) and what in found.what and 'JSON: ["one", "two"]' in found.what


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_with_brackets_stays_a_text(text: str) -> None:
    assert parsed_list(text) == text and as_list(text) == [text]


def test_a_list_without_quotes_is_a_fault_in_a_column_of_lists_alone() -> None:
    assert isinstance(parsed_list("[a dog, a cat]"), UnreadableList)
    assert parsed_list("[a dog, a cat]", quoted=True) == "[a dog, a cat]"


def write(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.parametrize("column", ["caption", "captions"])
def test_a_manifest_reads_lists_and_names_the_rows_of_others(tmp_path: Path, column: str) -> None:
    for number in range(len(LISTS)):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number:02}.png")
    path = write(tmp_path / "m.csv", ["image", column], *([f"{number:02}.png", text] for number, (text, _) in enumerate(LISTS)))
    assert [image.captions for image in read_manifest(path).images] == [items for _, items in LISTS]
    write(path, ["image", column], *([f"{number:02}.png", text] for number, (text, _) in enumerate(FAULTS)))
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert [fault.kind for fault in caught.value.faults] == ["unreadable list"] * len(FAULTS)
    assert caught.value.faults[0].where == f"{path}:2"


def test_a_column_of_texts_reads_lists(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path = write(tmp_path / "m.csv", ["image", "caption", "other"], ["a.png", "a dog", "['one' 'two']"])
    assert read_manifest(path, keep=["other"]).images[0].texts == {"other": [["one", "two"]]}
    write(path, ["image", "caption", "other"], ["a.png", "a dog", "['one' ... 'two']"])
    with pytest.raises(ManifestError, match=r"m\.csv:2: column 'other': a list that was shortened"):
        read_manifest(path, keep=["other"])


def test_files_of_texts_read_lists_and_name_the_rows_of_others(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", ["caption", "expansions"], ["a dog", "['one' 'two']"])
    assert list(parse_expansion(str(path)).texts.values()) == [["one", "two"]]  # type: ignore[attr-defined]
    write(path, ["caption", "expansions"], ["a dog", "['one' ... 'two']"])
    with pytest.raises(UserError, match=r"p\.csv:2: a list that was shortened"):
        parse_expansion(str(path))
    words = tmp_path / "words.jsonl"
    words.write_text('{"word": "dog", "synonyms": "[\'hound\' \'puppy\']"}')
    assert list(parse_expansion(f"synonyms:{words}").entries.values()) == [["hound", "puppy"]]  # type: ignore[attr-defined]
    words.write_text('{"word": "dog", "synonyms": "[\'hound\' ... \'puppy\']"}')
    with pytest.raises(UserError, match=r"words\.jsonl:1: a list that was shortened"):
        parse_expansion(f"synonyms:{words}")


@pytest.mark.parametrize("column", ["caption", "captions", "text"])
def test_captions_to_rerank_read_lists(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "c.csv", [column], ["['a dog' 'a cat']"], ["a hen"])
    found = read_captions(str(path))
    assert list(zip(found.ids, found.texts, strict=True)) == [("2#0", "a dog"), ("2#1", "a cat"), ("3", "a hen")]
    write(path, [column], ["['a dog' ... 'a cat']"])
    with pytest.raises(ManifestError, match=r"c\.csv:2: a list that was shortened"):
        read_captions(str(path))


def test_a_pool_with_a_list_in_a_row_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "pool.csv", ["caption"], ["a hen"], ["['a dog' 'a cat']"])
    with pytest.raises(UserError, match=r"pool\.csv:3: expected a caption, found \"\['a dog' 'a cat'\]\""):
        read_additional_captions(str(path))


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not next to this repository")
def test_case_csv_numpy_lists() -> None:
    assert [len(image.captions) for image in read_manifest(CASES / "pairs.csv").images] == [3, 4, 5, 4]
    texts = parse_expansion(str(CASES / "paraphrases.csv")).texts.values()  # type: ignore[attr-defined]
    assert list(texts) == [["first wording of it", "second wording of it"]] * 2
    assert read_captions(str(CASES / "pairs.csv")).ids[:4] == ["2#0", "2#1", "2#2", "5#0"]
