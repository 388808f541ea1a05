"""docs/forgetting.md's table is that of results/demo/wise, whose figures are those of the committed rows."""

import json
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[4]
WISE = ROOT / "results" / "demo" / "wise"
RECORD = json.loads((WISE / "wise.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["val", "watch-past"])
def test_the_figures_are_those_of_the_rows(name: str) -> None:
    hits: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in pq.read_table(WISE / f"{name}.parquet", columns=["stage", "direction", "rank"]).to_pylist():
        hits[row["stage"], row["direction"]].append(row["rank"] == 1)

    def mean(alpha: float) -> float:
        parts = [hits[f"alpha={alpha}", direction] for direction in ("image_to_text", "text_to_image")]
        return sum(sum(part) / len(part) for part in parts) / 2

    for row in RECORD["sets"][name]:
        assert row["mean_R@1"] == pytest.approx(mean(row["alpha"]), abs=1e-12)
        assert row["delta"] == pytest.approx(mean(row["alpha"]) - mean(0.0), abs=1e-12)
        assert row["dropped"] == (row["delta_ci95"][1] < 0) and row["delta_ci95"][0] <= row["delta"] <= row["delta_ci95"][1]


def test_the_page_holds_them() -> None:
    page = (ROOT / "docs" / "forgetting.md").read_text(encoding="utf-8")
    for val, watched in zip(RECORD["sets"]["val"], RECORD["sets"]["watch-past"], strict=True):
        cells = [f"{val['alpha']:g}"]
        for row in (val, watched):
            low, high = row["delta_ci95"]
            cells += [f"{100 * row['mean_R@1']:.1f}", f"{100 * row['delta']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"]
        note = "forgotten" if watched["dropped"] else "kept" if val["alpha"] == RECORD["kept"] else ""
        assert f"| {' | '.join(cells)} |{f' {note} ' if note else ' '}|\n" in page, cells
