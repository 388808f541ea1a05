"""train/data/caption_pool.py: additional captions are read with their lines, and every fault of their file is named."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.errors import UserError
from tests.unit.train.mining.mining_oracle import dataset_of
from train.data.caption_pool import AdditionalCaptions, CaptionPool, read_additional_captions

TEXTS = ["a fox, running", "Ünï cödé", "an owl"]


def write(folder: Path, kind: str) -> Path:
    """The same captions in a file of each kind; on lines 1, 3, 4 where there are lines."""
    path = folder / f"pool.{kind}"
    if kind == "txt":
        path.write_text(f"{TEXTS[0]}\n\n  {TEXTS[1]}\r\n{TEXTS[2]}", encoding="utf-8")
    elif kind == "jsonl":
        lines = [json.dumps({"caption": text, "by": 1}) for text in TEXTS]
        path.write_text(f"{lines[0]}\n\n{lines[1]}\n{lines[2]}\n", encoding="utf-8")
    elif kind in ("csv", "tsv"):
        cell = "," if kind == "csv" else "\t"
        path.write_text("\n".join([f"id{cell}caption", *(f'{n}{cell}"{text}"' for n, text in enumerate(TEXTS))]), encoding="utf-8")
    else:
        pq.write_table(pa.table({"id": [1, 2, 3], "caption": TEXTS}), path)
    return path


@pytest.mark.parametrize(
    ("kind", "lines"), [("txt", [1, 3, 4]), ("jsonl", [1, 3, 4]), ("csv", [2, 3, 4]), ("tsv", [2, 3, 4]), ("parquet", [1, 2, 3])]
)
def test_every_kind_of_file(tmp_path: Path, kind: str, lines: list[int]) -> None:
    additional = read_additional_captions(str(write(tmp_path, kind)))
    assert list(additional.texts) == TEXTS and additional.lines_A.tolist() == lines


FAULTY = {
    "a.txt": ("a fox\n...\n", "a.txt:2: nothing is left of '...'"),
    "b.jsonl": ('{"caption": "a"}\n{"caption": null}\n{"caption": 3}\n[1]\n', "b.jsonl:2: expected a caption, found None"),
    "c.jsonl": ('{"words": "a"}\n', "expected a column `caption`, found ['words']"),
    "d.csv": ("caption,x\na,1\nb\n", "d.csv:3: 1 cells where the header has 2"),
    "e.csv": ("words\na\n", "expected a column `caption`, found ['words']"),
    "f.txt": ("\n \n", "holds no caption"),
    "g.doc": ("a", "ends in one of .txt, .jsonl"),
    "h.parquet": ("no parquet", "cannot be read"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_faults_are_named_with_their_line(tmp_path: Path, name: str) -> None:
    content, words = FAULTY[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read_additional_captions(str(tmp_path / name))
    assert words in str(caught.value) and str(caught.value).startswith("mining.pool: ")


def test_all_faults_at_once_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(FAULTY["b.jsonl"][0])
    with pytest.raises(UserError, match=r"3 fault\(s\)") as caught:
        read_additional_captions(str(tmp_path / "b.jsonl"))
    assert all(f"b.jsonl:{line}: " in str(caught.value) for line in (2, 3, 4))
    with pytest.raises(UserError, match="cannot be read"):
        read_additional_captions(str(tmp_path / "absent.txt"))


def test_a_pool_is_the_split_and_the_additional_captions() -> None:
    dataset = dataset_of([(["a dog", "two dogs"], "g"), (["a cat"], "g"), (["an owl"], None)])
    pool = CaptionPool(dataset, AdditionalCaptions(["The CAT.", "there is a dog", "a newt"], np.array([2, 3, 9])))
    assert len(pool) == 7 and [pool.text(index) for index in (0, 3, 4, 6)] == ["a dog", "an owl", "The CAT.", "a newt"]
    assert [pool.caption_id(index) for index in (1, 3, 4, 6)] == ["i000#1", "i002#0", "pool#2", "pool#9"]
    assert [pool.index_of(f"pool#{line}", {}) for line in (2, 3, 9)] == [4, 5, 6]
    for line in (1, 4, 10):
        with pytest.raises(LookupError):
            pool.index_of(f"pool#{line}", {})
    near = pool.is_near_duplicate(np.arange(3)[:, None], np.arange(7)[None, :])
    assert near.tolist() == [[True, True, True, False, True, True, False]] * 2 + [[False, False, False, True, False, False, False]]
    assert pool.hash_C[:4].tolist() == dataset.caption_hash_C.tolist() and len(set(pool.hash_C.tolist())) == 7


def test_an_image_may_not_have_the_pools_id() -> None:
    dataset = dataset_of([(["a dog"], None)])
    dataset.image_ids = ["pool"]
    assert CaptionPool(dataset).caption_id(0) == "pool#0"  # without additional captions it is an id like any other
    with pytest.raises(UserError, match="rename the image"):
        CaptionPool(dataset, AdditionalCaptions(["a fox"], np.array([1])))


def test_the_hash_covers_lines_and_captions() -> None:
    one, two = (AdditionalCaptions(["a", "bc"], np.array(lines)) for lines in ([1, 2], [1, 3]))
    other = AdditionalCaptions(["ab", "c"], np.array([1, 2]))
    assert len({one.sha256, two.sha256, other.sha256}) == 3


def test_a_large_file_is_not_held_twice(tmp_path: Path) -> None:
    """A text of 40 characters is some 90 bytes, its number and the two places in lists some 50 more; rows as tuples were 270."""
    path, count = tmp_path / "captions.parquet", 200_000
    pq.write_table(pa.table({"caption": [f"caption number {number:06d} of forty characters" for number in range(count)]}), path)
    tracemalloc.start()
    try:
        found = read_additional_captions(str(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.texts) == count and peak < 200 * count
