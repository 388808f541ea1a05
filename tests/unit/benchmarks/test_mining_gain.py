"""benchmarks/mining_gain.py: differences by seed and pooled are those counted by hand; the committed page is that of its rows."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.demo_table import ROOT
from benchmarks.distillation import KEPT as COLUMNS
from benchmarks.mining_gain import headline, mining_section, page, rows_of, run_record, share_of_time

KEPT = ROOT / "results" / "mining-gain"
ODDS = {("none", 0): 0.4, ("mined", 0): 0.5, ("none", 1): 0.5, ("mined", 1): 0.9}
LINES = [
    {"event": "step", "step": 1, "seconds": 2.0},
    {"event": "step", "step": 2, "seconds": 3.0},
    {"event": "mining", "step": 2, "seconds": 7.0},
]
LINES += [{"event": "eval", "step": 100, "best": True}, {"event": "eval", "step": 200, "best": False}]


def made(num_images: int = 50) -> pa.Table:
    """Two seeds of both systems, one caption an image."""
    draws, parts = np.random.default_rng(0), []
    for (system, seed), odds in ODDS.items():
        rows = []
        for image in range(num_images):
            for direction, query in (("image_to_text", f"{image}"), ("text_to_image", f"{image}#0")):
                rank = 1 if draws.random() < odds else 5
                rows.append(dict(zip(COLUMNS, ("tuned", direction, query, f"{image}", rank, 1 / rank, 1 / rank), strict=True)))
        parts.append(rows_of(pa.Table.from_pylist(rows), system, seed))
    return pa.concat_tables(parts)


def recall(queries: pa.Table, system: str, seed: int) -> float:
    ranks = [row["rank"] for row in queries.to_pylist() if (row["arm"], row["seed"]) == (system, seed)]
    return sum(rank == 1 for rank in ranks) / len(ranks)


def test_differences_are_those_counted_by_hand() -> None:
    queries = made()
    found = headline(queries)
    expected = [recall(queries, "mined", seed) - recall(queries, "none", seed) for seed in (0, 1)]
    assert found["by_seed"] == pytest.approx(expected, abs=1e-12) and found["delta"] == pytest.approx(np.mean(expected), abs=1e-12)
    half = 12.706 * np.std(expected, ddof=1) / 2**0.5
    assert found["ci95_seeds"] == pytest.approx((np.mean(expected) - half, np.mean(expected) + half))
    assert found["ci95"][0] < found["delta"] < found["ci95"][1] and len(found["by_seed_ci95"]) == 2


def test_what_a_run_took() -> None:
    record = run_record("mined", 1, LINES)
    assert record == {"arm": "mined", "seed": 1, "chosen_step": 100, "step_seconds": 5.0, "mining_seconds": 7.0, "num_minings": 1}
    assert share_of_time([record, run_record("none", 1, LINES[:1] + LINES[3:])]) == 6.0


def test_a_whole_job_mines_as_the_demo_does() -> None:
    assert mining_section(400) == yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))["mining"]
    assert mining_section(8)["start_step"] == mining_section(8)["mine_every_steps"] == 2


def test_a_page_from_rows_and_the_demos_own_rules() -> None:
    records = [run_record(system, seed, LINES) for system, seed in ODDS]
    text = page(made(), {"command": "C", "steps": 400, "mining": mining_section(400), "runs": records})
    assert "negatives_per_image 1, weight 0.25" in text and "| mined against none | both |" in text and text.count("\n| 1 | ") == 1


@pytest.mark.skipif(not KEPT.is_dir(), reason="results/mining-gain is not there: python -m benchmarks.mining_gain makes it")
def test_the_committed_page_is_that_of_its_rows() -> None:
    record = json.loads((KEPT / "runs.json").read_text(encoding="utf-8"))
    assert page(pq.read_table(KEPT / "queries.parquet"), record) == KEPT.with_suffix(".md").read_text(encoding="utf-8")
