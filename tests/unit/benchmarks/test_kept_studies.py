"""The pages of studies kept under results/ say what their rows say."""

import pyarrow as pa
import pytest

from benchmarks.demo_table import ROOT
from benchmarks.kept_report import WAYS, mean_recall, points, read_kept_study
from train.study.comparison import compare_systems

KEPT = {
    "mining-gain": [("mined", "none")],
    "distillation": [("hard", "none"), *((system, against) for system in ("labels", "lists") for against in ("hard", "none"))],
}


@pytest.mark.parametrize("name", KEPT)
def test_a_page_is_that_of_its_rows(name: str) -> None:
    lines = (ROOT / "results" / f"{name}.md").read_text(encoding="utf-8").splitlines()
    results = read_kept_study(ROOT / "results" / name)
    for system, runs in results.items():
        recall = mean_recall(pa.concat_tables([run.queries for run in runs]), "tuned")
        assert any(line.startswith(f"| {system} | {100 * recall:.1f} |") for line in lines)
    for row in compare_systems(results, KEPT[name]):
        for way, words in WAYS.items():
            found = row[way]
            difference = f"{100 * found['delta']:+.1f} | {points(found['ci95_images'])}"
            begin = f"| {row['system']} against {row['against']} | {words} | {difference} | "
            over_seeds = "" if found["ci95_seeds"] is None else points(found["ci95_seeds"])
            end = f" | {over_seeds} | {', '.join(f'{100 * delta:+.1f}' for delta in found['by_seed'])} |"
            assert [line for line in lines if line.startswith(begin) and line.endswith(end)], begin
