"""benchmarks/combining_demo.py: which command it calls, what it compares, and its page from a made-up report."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.combining_demo import (
    EXPANSIONS,
    WORDS_QUESTION,
    base_systems,
    eval_command,
    gain_lines,
    in_words,
    kept,
    page,
    questions_of,
    scorer_of,
    tuned_systems,
)
from benchmarks.demo_table import ROOT
from benchmarks.kept_report import comparison, comparison_lines, comparisons_of, mean_recall, read_kept, recall_lines

KEPT = ROOT / "results" / "combining-demo"
SYSTEMS = base_systems("TUNED", "LARGE", {"soup": "SOUP"})
ODDS = {"model": 0.2, "tuned": 0.5, "model-2": 0.4, "ensemble": 0.7, "soup": 0.5, "model+synonyms": 0.3}


def made(num_images: int = 60) -> pa.Table:
    """Rows of every stage and its reranked variant: one caption an image more than one."""
    draws = np.random.default_rng(0)
    rows = []
    for stage, odds in [*ODDS.items(), *((f"{name}+blip", min(1.0, odds + 0.3)) for name, odds in ODDS.items())]:
        for image in range(num_images):
            for direction, query in (("image_to_text", f"{image}"), ("text_to_image", f"{image}#0"), ("text_to_image", f"{image}#1")):
                rank = 1 if draws.random() < odds else 7
                row = {"stage": stage, "direction": direction, "query_id": query, "image_id": f"{image}", "rank": rank}
                rows.append(row | {"num_positives": 1, "ap_at_r": 1 / rank, "r_precision": 1 / rank, "top_ids": ["x"], "top_scores": [0.5]})
    return pa.Table.from_pylist(rows)


def record_of(queries: pa.Table) -> dict:
    stages = {
        name: {"cost": {"seconds": 2.0 + number} | ({"rerank_seconds": 9.0} if "blip" in name else {})}
        for number, name in enumerate(dict.fromkeys(queries["stage"].to_pylist()))
    }
    data = {"source": "scenes", "split": "test", "num_images": 60, "num_captions": 120}
    return {"data": data, "stages": stages, "comparisons": [], "failures": ["left out"]}


def share(queries: pa.Table, stage: str, direction: str, k: int = 1) -> float:
    ranks = [row["rank"] for row in queries.to_pylist() if (row["stage"], row["direction"]) == (stage, direction)]
    return 100 * sum(rank <= k for rank in ranks) / len(ranks)


def test_recalls_are_those_counted_by_hand() -> None:
    queries = made()
    (line,) = recall_lines(queries, ["ensemble"])[2:]
    cells = [float(cell) for cell in line.strip("| ").split(" | ")[1:]]
    ways = ("image_to_text", "text_to_image")
    expected = [share(queries, "ensemble", way, k) for way in ways for k in (1, 5, 10)]
    assert cells[:6] == pytest.approx(expected, abs=0.051)
    assert cells[6] == pytest.approx(np.mean([share(queries, "ensemble", way) for way in ways]), abs=0.051)
    with pytest.raises(ValueError, match="no row of stage 'nobody'"):
        mean_recall(queries, "nobody")


def test_differences_are_those_counted_by_hand() -> None:
    queries = made()
    rows = comparisons_of(queries, [("ensemble", "model")])
    for way in ("image_to_text", "text_to_image"):
        expected = (share(queries, "ensemble", way) - share(queries, "model", way)) / 100
        assert comparison(rows, "ensemble", "model", way)["delta"] == pytest.approx(expected, abs=1e-12)
    low, high = comparison(rows, "ensemble", "model")["ci95"]
    assert 0 < low < comparison(rows, "ensemble", "model")["delta"] < high
    with pytest.raises(ValueError, match="not compared"):
        comparison_lines(rows, [("model", "ensemble")])


def test_what_is_compared_of_what_is_there() -> None:
    """synonyms was measured; templates val switched off."""
    found = questions_of(list(record_of(made())["stages"]), SYSTEMS, "blip")
    assert found["Several checkpoints"] == [
        ("model-2", "model"),
        ("ensemble", "model"),
        ("ensemble", "model-2"),
        ("tuned", "model"),
        ("soup", "tuned"),
    ]
    assert found[WORDS_QUESTION] == [("model+synonyms", "model")]
    assert ("ensemble+blip", "ensemble") in found["BLIP on top"] and ("model+blip", "model") in found["BLIP on top"]
    assert {("ensemble+blip", "model+blip"), ("soup+blip", "tuned+blip"), ("model+synonyms+blip", "model+blip")} < set(
        found["All with BLIP on top"]
    )
    assert not any("templates" in stage for pairs in found.values() for pair in pairs for stage in pair)
    tuned = questions_of(["model", "model-2", "ensemble", "soup"], tuned_systems("T", "L", {"soup": "S"}), "blip")
    assert ("ensemble", "soup") in tuned["Several checkpoints"] and tuned["BLIP on top"] == []


def test_the_evaluation_is_called_with_every_system(tmp_path: Path) -> None:
    words = eval_command(SYSTEMS, "BLIP", 16, tmp_path)
    asked = dict(zip(words[2::2], words[3::2], strict=False))
    assert asked["--model"] == "demo/models/siglip-base" and asked["--ensemble"] == "LARGE" and asked["--choose-on"] == "val"
    assert [word for before, word in zip(words, words[1:], strict=False) if before == "--also"] == ["tuned=TUNED", "soup=SOUP"]
    assert [word for before, word in zip(words, words[1:], strict=False) if before == "--expand"] == list(EXPANSIONS.values())
    assert (ROOT / "demo" / "data" / "thesaurus.txt").is_file()
    assert (ROOT / "demo" / "data" / "synonyms.txt").is_file() and asked["--rerank"] == "BLIP" and asked["--split"] == "test"


def test_gain_stands_beside_cost() -> None:
    queries = made()
    lines = gain_lines(queries, record_of(queries)["stages"], [("ensemble", "model")], SYSTEMS.shown)
    cells = lines[2].strip("| ").split(" | ")
    assert cells[0] == "base & large" and cells[2] == "base" and cells[6:] == ["5.0", "2.0"]
    assert float(cells[3]) == pytest.approx(100 * (mean_recall(queries, "ensemble") - mean_recall(queries, "model")), abs=0.051)
    (line,) = gain_lines(queries, record_of(queries)["stages"], [("model+synonyms", "model")], SYSTEMS.shown, "text_to_image")[2:]
    shares = [share(queries, stage, "text_to_image") for stage in ("model+synonyms", "model")]
    assert [float(line.split(" | ")[column]) for column in (1, 3)] == pytest.approx([shares[0], shares[0] - shares[1]], abs=0.051)
    assert in_words("model+synonyms+blip", SYSTEMS.shown) == "base + synonyms + blip"
    assert in_words("ensemble+synonyms-2", SYSTEMS.shown) == "base & large + thesaurus" and in_words("soup", SYSTEMS.shown) == "soup"
    assert scorer_of(record_of(queries)["stages"]) == "blip"


def test_a_page_is_made_of_what_is_kept(tmp_path: Path) -> None:
    import json

    queries = made()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(json.dumps(record_of(queries)))
    pq.write_table(queries, tmp_path / "report" / "queries.parquet")
    kept(SYSTEMS, "BLIP", 16, tmp_path / "report", tmp_path / "kept")
    record, rows = read_kept(tmp_path / "kept")
    assert "top_ids" not in rows.column_names and "failures" not in record and len(rows) == len(queries)
    text = page([(record, rows)], "COMMAND")
    assert (
        "| base & large |" in text
        and "| base + synonyms + blip |" in text
        and "### Other words" in text
        and "--ensemble LARGE" in text
        and "model-2 |" not in text
    )


@pytest.mark.skipif(not KEPT.is_dir(), reason="results/combining-demo is not there: python -m benchmarks.combining_demo makes it")
def test_the_committed_page_is_that_of_its_rows() -> None:
    lines = KEPT.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    made_anew = page([read_kept(KEPT / name) for name in ("base", "tuned")], "any").splitlines()
    assert [line for line in made_anew if line.startswith(("|", "-"))] == [line for line in lines if line.startswith(("|", "-"))]
