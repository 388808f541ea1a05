"""Paraphrases and additional captions that a user gives, in files and in columns: what is matched, dropped, counted and refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.manifest.manifest import ManifestError, read_manifest
from rerank.expansions.additional_texts import CaptionExpansions, ImageCaptions
from rerank.expansions.parse import kept_columns, parse_expansion
from rerank.expansions.text_file import read_table
from tests.unit.rerank.combine.expansion_set import split_of

SPLIT = split_of(["A dog runs.", "two cats"], ["an owl", "a DOG runs"])
ROWS = [
    {"caption": "a dog, runs", "expansions": ["a hound runs", "A HOUND runs!", "a dog runs", "two cats"]},
    {"caption": "an owl", "expansions": ["a night bird"]},
    {"caption": "a dog runs", "expansions": ["the dog is running"]},
    {"caption": "a fish", "expansions": ["it swims"]},
]


def write(folder: Path, kind: str, rows: list[dict[str, Any]], name: str = "said") -> Path:
    """The rows as a file of a kind."""
    path = folder / f"{name}.{kind}"
    columns = list(rows[0])
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    elif kind == "parquet":
        pq.write_table(pa.table({column: [row[column] for row in rows] for column in columns}), path)
    else:
        cells = [[json.dumps(value) if isinstance(value, list) else value for value in row.values()] for row in rows]
        quoted = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in cells]
        path.write_text("\n".join(("," if kind == "csv" else "\t").join(line) for line in [columns, *quoted]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_paraphrases_of_a_file_reach_every_caption_that_says_the_same(tmp_path: Path, kind: str) -> None:
    expansions = parse_expansion(str(write(tmp_path, kind, ROWS))).of(SPLIT)
    assert isinstance(expansions, CaptionExpansions)
    dog = ["a hound runs", "two cats", "the dog is running"]
    assert [expansions.of(caption) for caption in range(4)] == [dog, [], ["a night bird"], dog]
    assert expansions.offsets.tolist() == [0, 3, 3, 4, 7] and expansions.offsets.dtype == np.int64
    assert expansions.name == "paraphrases"
    assert expansions.dropped == {"said twice": 2, "equal to the original": 2}
    assert expansions.noted == {"rows whose caption is not in the split": 1, "equal to another caption of the set": 2}


def test_one_expansion_a_row_in_the_order_of_the_file_and_at_most_eight(tmp_path: Path) -> None:
    rows = [{"caption": "an owl", "expansion": f"owl number {number}"} for number in range(11)]
    found = parse_expansion(str(write(tmp_path, "csv", rows))).of(SPLIT)
    assert found.of(2) == [f"owl number {number}" for number in range(8)] and found.dropped == {"beyond the most": 3}


def test_a_file_of_another_split_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"caption": "a fish", "expansion": "it swims"}])
    with pytest.raises(UserError, match="`caption` of none of its 1 row.* is in made.*such as 'A dog runs.', found 'a fish'"):
        parse_expansion(str(path)).of(SPLIT)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.jsonl",
            '{"caption": "x", "expansion": "..."}\n{"caption": 3, "expansion": "y"}\n[1]\n',
            ["a.jsonl:1: empty expansion", "a.jsonl:2", "a.jsonl:3"],
        ),
        (
            "b.jsonl",
            '{"caption": "x", "expansions": []}\n{"caption": "x", "expansions": ["a", null]}\n',
            ["b.jsonl:1: empty", "b.jsonl:2: exp"],
        ),
        ("c.csv", "caption,expansion\nx,y\nz\n", ["c.csv:3: 1 cells where the header has 2"]),
        ("d.csv", "caption,expansion\nx,\n,y\n", ["d.csv:2: empty expansion", "d.csv:3: empty caption"]),
        ("e.csv", "caption,text\nx,y\n", ["expected a column `expansion` or `expansions`, found ['caption', 'text']"]),
        ("f.csv", "words,expansion\nx,y\n", ["expected a column `caption`, found ['words', 'expansion']"]),
        ("g.jsonl", "", ["is empty; write rows with `caption`"]),
        ("h.csv", "caption,expansion\n", ["holds no rows"]),
        ("i.parquet", "no parquet", ["cannot be read"]),
    ],
)
def test_every_fault_of_a_file_is_named_with_its_line(tmp_path: Path, name: str, content: str, words: list[str]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        parse_expansion(str(tmp_path / name))
    assert [word for word in words if word not in str(caught.value)] == []
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_a_hundred_faults_are_counted_and_twenty_shown(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"caption": "x", "expansion": "!"}] * 100)
    with pytest.raises(UserError, match=r"100 fault\(s\)") as caught:
        parse_expansion(str(path))
    assert len(str(caught.value).splitlines()) == 22 and "and 80 more" in str(caught.value)


@pytest.mark.parametrize("column", ["caption", "captions"])
def test_additional_captions_of_images_from_a_file(tmp_path: Path, column: str) -> None:
    said = {"i1": ["a night bird", "AN OWL", "two cats"], "i9": ["nobody"]}
    rows = [{"image": image, column: text if column == "caption" else [text]} for image, texts in said.items() for text in texts]
    captions = parse_expansion(f"captions:{write(tmp_path, 'jsonl', rows)}").of(SPLIT)
    assert isinstance(captions, ImageCaptions)
    assert [captions.of(image) for image in range(2)] == [[], ["a night bird", "two cats"]]
    assert captions.dropped == {"equal to the original": 1}
    assert captions.noted == {"rows whose image is not in the split": 1, "equal to another caption of the set": 1}
    with pytest.raises(UserError, match="the `image` of none of its 1 row.* is in made.*expected one such as 'i0', found 'i9'"):
        parse_expansion(f"captions:{write(tmp_path, 'jsonl', rows[-1:], 'other')}").of(SPLIT)


def manifest(folder: Path, kind: str) -> Path:
    """Three rows of two images with a column of texts."""
    (folder / "a.jpg").write_bytes(b"x")
    (folder / "b.jpg").write_bytes(b"y")
    rows = [
        {"image": "b.jpg", "captions": ["x", "y"], "said": ["one", "two"]},
        {"image": "a.jpg", "captions": ["z"], "said": None},
        {"image": "b.jpg", "captions": ["w"], "said": ["three"]},
    ]
    if kind == "jsonl":
        rows[2]["said"] = "three"  # a text is a list of one
    if kind == "csv":
        path = folder / "m.csv"
        path.write_text('image,captions,said\nb.jpg,"[""x"", ""y""]","[""one"", ""two""]"\na.jpg,z,\nb.jpg,w,three\n')
        return path
    return write(folder, kind, rows, "m")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_of_the_manifest(tmp_path: Path, kind: str) -> None:
    asked = [parse_expansion("column:said"), parse_expansion("captions-column:said"), parse_expansion("templates")]
    assert kept_columns(asked) == ["said"]
    read = read_manifest(manifest(tmp_path, kind), keep=kept_columns(asked))
    dataset = load_split(read, None)
    assert dataset.texts == {"said": [[], ["one", "two"], ["one", "two"], ["three"]]} and dataset.columns == {}
    of_captions, of_images = asked[0].of(dataset), asked[1].of(dataset)
    assert [of_captions.of(caption) for caption in range(4)] == [[], ["one", "two"], ["one", "two"], ["three"]]
    assert [of_images.of(image) for image in range(2)] == [[], ["one", "two", "three"]]
    assert of_images.dropped == {}  # a row's list counts once, though two captions share it


def test_a_column_that_is_not_there_or_empty_or_no_texts_is_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, "jsonl")
    with pytest.raises(ManifestError, match="texts of 'nothing' were asked for"):
        read_manifest(path, keep=["nothing"])
    with pytest.raises(UserError, match="read without its column 'said'"):
        parse_expansion("column:said").of(load_split(read_manifest(path), None))
    path.write_text('{"image": "a.jpg", "caption": "x", "said": null, "size": 3, "bad": ["ok", "..."]}\n')
    with pytest.raises(UserError, match="column 'said' of .* is empty in every row"):
        parse_expansion("column:said").of(load_split(read_manifest(path, keep=["said"]), None))
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, keep=["size", "bad"])
    assert [fault.kind for fault in caught.value.faults] == ["caption is not text", "empty caption"]
    assert "column 'size': expected text, found int" in str(caught.value)


def test_both_columns_count_and_a_row_needs_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    rows = [{"caption": "an owl", "expansion": "one", "expansions": ["two"]}, {"caption": "a dog runs", "expansions": ["three"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [parse_expansion(str(path)).of(SPLIT).of(caption) for caption in (2, 0)] == [["one", "two"], ["three"]]
    path.write_text(path.read_text() + json.dumps({"caption": "an owl"}) + "\n")
    with pytest.raises(UserError, match=r"said.jsonl:3: empty expansion"):
        parse_expansion(str(path))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_an_empty_file_and_one_of_another_encoding_are_called_that(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"said.{kind}"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        parse_expansion(str(path))
    row = "caption,expansion\nan owl,un oiseau \u00e9l\u00e9gant\n" if kind == "csv" else '{"caption": "\u00e9"}\n'
    path.write_bytes(row.encode("cp1252"))
    with pytest.raises(UserError, match=f"said.{kind}:{2 if kind == 'csv' else 1}: (?i:.*utf-8)"):
        parse_expansion(str(path))


def test_rows_of_a_parquet_file_are_read_as_they_are_taken(tmp_path: Path) -> None:
    """The first rows come although the second group of rows is damaged; reading on names the file."""
    path, half = tmp_path / "two.parquet", 70_000
    table = pa.table({"caption": [f"a dog {number}" for number in range(2 * half)], "image": [b"not read"] * 2 * half})
    pq.write_table(table, path, row_group_size=half, compression="none", use_dictionary=False)
    content, page = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content[page : page + 64] = bytes(64)
    path.write_bytes(content)
    columns, records = read_table("captions:two", path, [])
    rows = iter(records)
    assert columns == ["caption", "image"] and next(rows) == (1, {"caption": "a dog 0"})
    with pytest.raises(UserError, match=r"captions:two: .*two\.parquet cannot be read as parquet"):
        list(rows)
