"""benchmarks/distillation.py: differences, pooled and by seed, are those counted by hand; the committed page is that of its queries."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.demo_table import ROOT
from benchmarks.distillation import KEPT, comparison_rows, comparisons, of_system, over_seeds
from benchmarks.mining_forms import mean_recall

PAGE = ROOT / "results" / "distillation.md"


def made(num_images: int = 40) -> pa.Table:
    """Ranks of two systems and two seeds, two captions an image."""
    draws = np.random.default_rng(0)
    rows = []
    for system, odds in (("hard", 0.3), ("lists", 0.8)):
        for seed in (0, 1):
            for image in range(num_images):
                for direction, query in (("image_to_text", f"{image}"), ("text_to_image", f"{image}#0"), ("text_to_image", f"{image}#1")):
                    rank = 1 if draws.random() < odds else 9
                    values = ("tuned", direction, query, f"{image}", rank, 1 / rank, 1 / rank)
                    rows.append(dict(zip(KEPT, values, strict=True)) | {"arm": system, "seed": seed})
    return pa.Table.from_pylist(rows)


def recall(queries: pa.Table, system: str, direction: str, seed: int | None = None) -> float:
    rows = queries.filter(pc.and_(pc.equal(queries["arm"], system), pc.equal(queries["direction"], direction)))
    ranks = [rank for rank, of in zip(rows["rank"].to_pylist(), rows["seed"].to_pylist(), strict=True) if seed in (None, of)]
    return 100 * sum(rank == 1 for rank in ranks) / len(ranks)


def test_differences_are_those_counted_by_hand() -> None:
    queries = made()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in comparison_rows("lists", "hard", queries)]
    assert [row[:2] for row in rows] == [["lists against hard", name] for name in ("image to text", "text to image", "both")]

    def delta(direction: str, seed: int | None = None) -> float:
        return recall(queries, "lists", direction, seed) - recall(queries, "hard", direction, seed)

    for row, direction in zip(rows[:2], ("image_to_text", "text_to_image"), strict=True):
        assert float(row[2]) == pytest.approx(delta(direction), abs=0.051)
        assert [float(value) for value in row[6].split(",")] == pytest.approx([delta(direction, seed) for seed in (0, 1)], abs=0.051)
    assert float(rows[2][2]) == pytest.approx((delta("image_to_text") + delta("text_to_image")) / 2, abs=0.051)
    low, high = (float(end) for end in rows[2][3].split(" to "))
    assert 0 < low < float(rows[2][2]) < high and rows[2][4] == "better"


def test_the_interval_over_seeds_is_students() -> None:
    assert over_seeds([0.01, 0.02, 0.03]) == pytest.approx((0.02 - 0.0248434, 0.02 + 0.0248434), rel=1e-4)
    assert over_seeds([0.01, 0.01]) == pytest.approx((0.01, 0.01))
    assert over_seeds([0.01]) is None


@pytest.mark.skipif(not PAGE.is_file(), reason="results/distillation.md is not there: python -m benchmarks.distillation makes it")
def test_the_committed_page_is_that_of_its_queries() -> None:
    queries, lines = pq.read_table(PAGE.with_suffix("") / "queries.parquet"), PAGE.read_text(encoding="utf-8").splitlines()
    assert set(comparisons(queries)) <= set(lines)
    for system in dict.fromkeys(queries["arm"].to_pylist()):
        assert any(line.startswith(f"| {system} | {mean_recall({system: of_system(queries, system)}, system):.1f} |") for line in lines)
