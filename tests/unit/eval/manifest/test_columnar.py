"""A manifest joined a column at a time is what it is row by row; and large tables in mapped files are what they are in memory."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from eval.dataset.retrieval_set import load_split
from eval.manifest import memory
from eval.manifest.formats import columnar, text
from eval.manifest.formats.arrow import ArrowRows
from eval.manifest.formats.text import TextRows
from eval.manifest.joiner import Joiner
from eval.manifest.manifest import Manifest, ManifestError, read_manifest

ROWS = [
    {"image": "b.jpg", "caption": "A dog (running).", "split": "train", "id": 7, "group": "dogs"},
    {"image": "sub/../a.jpg", "caption": "a DOG, running", "split": "val", "id": 3, "group": ""},
    {"image": "./b.jpg", "caption": "Zwei Hunde\nim grünen Gras", "split": "train", "id": 7, "group": "dogs"},
    {"image": "é.jpg", "caption": "[sic] a cat", "split": "test", "id": 12, "group": None},
    {"image": "c.jpg", "caption": "a cat", "split": "train", "id": 5, "group": "cats"},
    {"image": "b.jpg", "caption": "the same picture in another split", "split": "val", "id": 7, "group": "dogs"},
]
LISTS = [{"image": row["image"], "captions": [row["caption"], f"number {place}"]} for place, row in enumerate(ROWS)]
Write = Callable[[Path, list[dict[str, Any]]], Path]


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=place % 2 == 0) + "\n" for place, row in enumerate(rows)), encoding="utf-8")
    return path


def csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    import csv as writer

    path = folder / "m.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = writer.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "m.parquet")
    return folder / "m.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for place, name in enumerate(("a.jpg", "b.jpg", "c.jpg", "é.jpg")):
        (tmp_path / name).write_bytes(b"x" * (place + 1))
    return tmp_path


@pytest.fixture
def row_by_row(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Manifest]:
    """Reads with columns refused."""

    def read(path: Path) -> Manifest:
        with monkeypatch.context() as patch:
            patch.setattr(TextRows, "as_columns", lambda rows: None)
            patch.setattr(ArrowRows, "as_columns", lambda rows: None)
            return read_manifest(path)

    return read


@pytest.fixture
def by_columns(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Manifest]:
    """Reads with rows refused."""

    def refused(joiner: Joiner, row: object) -> None:
        pytest.fail(f"taken on its own: {row}")

    def read(path: Path) -> Manifest:
        with monkeypatch.context() as patch:
            patch.setattr(Joiner, "add", refused)
            return read_manifest(path)

    return read


def assert_same(one: Manifest, other: Manifest) -> None:
    assert list(one.images) == list(other.images) and one.counts == other.counts and one.splits == other.splits
    assert one.images.caption_hash_C.tolist() == other.images.caption_hash_C.tolist()
    for split in one.splits:
        assert load_split(one, split).sha256() == load_split(other, split).sha256()
        assert load_split(one, split).group_names() == load_split(other, split).group_names()


@pytest.mark.parametrize("rows", [ROWS, [{**row, "id": None} for row in ROWS], ROWS[:1] * 3 + ROWS[4:5]], ids=["ids", "no ids", "repeated"])
@pytest.mark.parametrize("write", [jsonl, csv, parquet])
def test_columns_give_what_rows_give(
    folder: Path, write: Write, rows: list[dict[str, Any]], by_columns: Callable[[Path], Manifest], row_by_row: Callable[[Path], Manifest]
) -> None:
    found = by_columns(write(folder, rows))
    assert_same(found, row_by_row(write(folder, rows)))
    if rows is ROWS:
        assert [image.id for image in found.images] == ["12", "3", "5", "7", "7"] and found.counts.joined == 1
        assert found.images[3].captions == [ROWS[0]["caption"], ROWS[2]["caption"]]
        assert found.images[3].where.endswith((":1", ":2", "row 1"))


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_lists_of_captions(
    folder: Path, write: Write, by_columns: Callable[[Path], Manifest], row_by_row: Callable[[Path], Manifest]
) -> None:
    assert_same(by_columns(write(folder, LISTS)), row_by_row(write(folder, LISTS)))


@pytest.mark.parametrize(
    "change",
    [
        {"caption": '["two captions", "as text"]'},
        {"caption": ". , !"},
        {"caption": None},
        {"image": "not there.jpg"},
        {"image": "../outside.jpg"},
        {"image": "c.jpg"},
        {"id": 5},
        {"id": 99},
        {"id": 1.5},
        {"group": "others"},
        {"captions": "both columns"},
    ],
)
@pytest.mark.parametrize("write", [jsonl, parquet])
def test_what_is_not_plain_is_left_to_the_rows(
    folder: Path, write: Write, change: dict[str, Any], row_by_row: Callable[[Path], Manifest]
) -> None:
    """One row is changed: the same faults, or the same images."""
    rows = [*ROWS[:2], ROWS[2] | change, *ROWS[3:]]
    path = write(folder, rows)

    def outcome(read: Callable[[Path], Manifest]) -> object:
        try:
            found = read(path)
        except ManifestError as error:
            return str(error)
        return list(found.images), found.counts

    assert outcome(read_manifest) == outcome(row_by_row)


def test_all_that_python_strips_is_blank_before_and_after_a_list() -> None:
    blanks = [chr(code) for code in range(sys.maxunicode + 1) if not chr(code).strip()]
    texts = [*(f"{blank}['a', 'b']" for blank in blanks), *(f"array(['a', 'b']){blank}" for blank in blanks)]
    assert len(blanks) == 29 and pc.all(pc.match_substring_regex(pa.array(texts), columnar._MAY_BE_A_LIST)).as_py()
    others = pa.array(["a dog [sic]", "a (big) dog", "_[", "\u200b['a']"])
    assert not pc.any(pc.match_substring_regex(others, columnar._MAY_BE_A_LIST)).as_py()


@pytest.mark.parametrize("caption", ["\u00a0['a', 'b']", "\u3000['a', 'b']", "\x0b['a', 'b']", "array(['a' 'b'])\u3000"])
@pytest.mark.parametrize("write", [jsonl, csv, parquet])
def test_a_list_behind_an_unusual_blank_is_two_captions(folder: Path, write: Write, caption: str) -> None:
    found = read_manifest(write(folder, [{"image": "a.jpg", "caption": caption}, {"image": "b.jpg", "caption": "a dog"}]))
    assert [image.captions for image in found.images] == [["a", "b"], ["a dog"]]


@pytest.mark.parametrize(
    "rows",
    [
        [{"n": 1, "image": "a.jpg", "caption": "a dog"}],
        [{"n": None, "image": "a.jpg", "z": 1}, {"caption": "a dog", "image": "b.jpg"}],
        [{"image": "a.jpg"}, {"y": None, "image": "b.jpg", "x": 1}, {"w": 2, "v": "a", "x": 3, "y": "b"}],
    ],
)
def test_keys_of_json_lines_are_in_order_of_appearance(folder: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(folder, rows)
    found = text.JsonLines(path, [])
    columns = found.as_columns()
    assert columns is not None and list(columns[0]) == found.columns == list(dict.fromkeys(key for row in rows for key in row))
    monkeypatch.setattr(text, "_arrow_table", lambda data: None)
    assert text.JsonLines(path, []).columns == found.columns


@pytest.mark.parametrize(
    "lines",
    [
        '{"image": "a.jpg", "caption": "a dog"}{"image": "b.jpg", "caption": "a cat"}\n',
        '{"image": "a.jpg", "caption": "a dog"\n,"split": "x"}\n{"image": "b.jpg", "caption": "a cat"}{"image": "c.jpg", "caption": "a"}\n',
        '{"image": "a.jpg", "caption": "a dog", "caption": "a cat"}\n',
        '{"image": "a.jpg", "caption": "a \\ud800 dog"}\n',
        '\n{"image": "a.jpg", "caption": "2020-01-01"}\n  \n{"image": "b.jpg", "caption": "2020-01-02"}\n',
        '{"image": "a.jpg", "caption": "2020-01-01"}\r\n{"image": "b.jpg", "caption": "2020-01-02", "split": "2020-01-03"}\n',
        '{"image": "a.jpg", "caption": "a dog"}\n{"image": "b.jpg", "caption": 5}\n',
    ],
)
def test_lines_that_arrow_reads_otherwise_are_read_as_before(folder: Path, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "m.jsonl"
    path.write_text(lines, encoding="utf-8", newline="")

    def outcome() -> object:
        try:
            return list(read_manifest(path).images)
        except ManifestError as error:
            return str(error)

    found = outcome()
    monkeypatch.setattr(text, "_arrow_table", lambda data: None)
    assert found == outcome()


def test_mapped_tables_hold_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every array above the least size of a file; what is written to one stays with the process."""
    expected = read_manifest(jsonl(folder, ROWS))
    monkeypatch.setattr(memory, "LEAST_MAPPED", 1)
    found = read_manifest(jsonl(folder, ROWS))
    assert_same(found, expected)
    for split in ("train", "val"):
        one, other = load_split(found, split), load_split(expected, split)
        for direction in ("image_to_text", "text_to_image"):
            assert [a.tolist() for a in vars(one.positives(direction)).values()] == [
                b.tolist() for b in vars(other.positives(direction)).values()
            ]
    numbers = np.arange(5)
    copy = memory.mapped(numbers)
    copy[0] = 9
    assert numbers.tolist() == [0, 1, 2, 3, 4] and copy.tolist() == [9, 1, 2, 3, 4] and copy.base is not None
    monkeypatch.setattr(memory.tempfile, "TemporaryFile", lambda **options: (_ for _ in ()).throw(OSError("full")))
    assert memory.mapped(numbers) is numbers and memory.empty_mapped((3, 2), np.uint8).shape == (3, 2)


def test_numbers_take_what_they_need() -> None:
    assert memory.compact(np.full(9, 7)).strides == (0,) and memory.compact(np.array([1, 2])).dtype == np.int32
    large = np.array([0, 2**40])
    assert memory.compact(large).tolist() == large.tolist() and memory.compact(large).dtype == np.int64
