"""The table of answers: the rows of all three forms, and the numbers in them to the last bit."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rerank.answers import table as answers_table
from rerank.answers.answers import Answers
from rerank.answers.captions import read_captions
from rerank.answers.collection import Collection
from rerank.answers.files import SUFFIXES
from rerank.answers.first_stage import FirstAnswers
from rerank.answers.pictures import read_folder
from rerank.answers.table import write_answers

CAPTIONS = ['say "a, b"', "=1+1", "Ünïcode \u2028 ✓", "plain"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> FirstAnswers:
    """Three pictures and four captions; the lists are made up by the tests."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("a,b.png", "c.png", "d.png"):
        Image.new("RGB", (4, 4)).save(root / name)
    (root / "captions.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")
    collection = Collection(read_folder(str(root)), read_captions(str(root / "captions.txt")))
    return FirstAnswers(collection, {}, 117.33, -12.7, [], 0.0, 0.0)


def made_up(reranked: bool) -> list[Answers]:
    draws = np.random.default_rng(0)
    lists = []
    for direction, num_queries, num_items in (("image_to_text", 3, 4), ("text_to_image", 4, 3)):
        shape = (num_queries, 2)
        indices = np.array([draws.permutation(num_items)[:2] for _ in range(num_queries)])
        scores = draws.normal(size=shape).astype(np.float32) if reranked else None
        lists.append(
            Answers(
                direction,
                indices,
                draws.uniform(-1, 1, shape).astype(np.float32),
                np.tile(np.array([2, 1], dtype=np.int32), (num_queries, 1)),
                scores,
            )
        )
    return lists


def rows_by_hand(found: FirstAnswers, answers: list[Answers]) -> list[dict]:
    folder = Path(found.collection.pictures.source)
    names = {"image": [(name, str(folder / name)) for name in ("a,b.png", "c.png", "d.png")]}
    names["text"] = [(str(line), text) for line, text in enumerate(CAPTIONS, 1)]
    rows = []
    for one in answers:
        asking, answering = one.direction.split("_to_")
        for query in range(one.num_queries):
            for place in range(2):
                cosine = one.cosines_QK[query, place]
                row = {"direction": one.direction}
                row["query_id"], row["query"] = names[asking][query]
                row["candidate_id"], row["candidate"] = names[answering][one.indices_QK[query, place]]
                row |= {"first_cosine": cosine, "first_logit": np.float32(117.33) * cosine + np.float32(-12.7), "first_rank": 2 - place}
                if one.rerank_scores_QK is not None:
                    row |= {"rerank_score": one.rerank_scores_QK[query, place], "rank": place + 1}
                rows.append(row)
    return rows


def read(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("reranked", [True, False])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("queries_at_once", [2, 2048])
def test_every_form_holds_the_same_rows(
    found: FirstAnswers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, reranked: bool, queries_at_once: int
) -> None:
    monkeypatch.setattr(answers_table, "QUERIES_AT_ONCE", queries_at_once)
    answers = made_up(reranked)
    path = tmp_path / f"answers{suffix}"
    write_answers(path, suffix, found, answers, {"model": "m"})
    wanted, rows = rows_by_hand(found, answers), read(path)
    assert len(rows) == len(wanted) == 14 and [list(row) for row in rows] == [list(row) for row in wanted]
    for row, expected in zip(rows, wanted, strict=True):
        for name, value in expected.items():
            got = type(value)(row[name])
            if suffix == ".csv" and isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
                value = f"'{value}"  # a spreadsheet would take it for a formula
            assert got == value, f"{name}: {row[name]!r}, expected {value!r}"


def test_a_parquet_file_says_what_made_it_and_holds_float32(found: FirstAnswers, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_answers(path, ".parquet", found, made_up(True), {"model": "m", "top_k": 2})
    described = pq.read_schema(path)
    assert json.loads(described.metadata[b"siglip_tuner"]) == {"model": "m", "top_k": 2}
    assert {name: str(described.field(name).type) for name in ("first_cosine", "rerank_score", "first_rank", "rank")} == {
        "first_cosine": "float",
        "rerank_score": "float",
        "first_rank": "int32",
        "rank": "int32",
    }


def test_the_same_answers_are_the_same_bytes(found: FirstAnswers, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_answers(tmp_path / name, ".parquet", found, made_up(True), {"model": "m"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_cells_that_a_spreadsheet_would_take_for_formulas_are_defused() -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "a=b", "", None, "'=", "\n=1"]
    table = answers_table._without_formulas(pa.table({"text": pa.array(texts, pa.string()), "number": [-1.5] * len(texts)}))
    assert table["text"].to_pylist() == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "'\rx", "a=b", "", None, "'=", "\n=1"]
    assert table["number"].to_pylist() == [-1.5] * len(texts), "a number is no text"
