"""A whole job whose final report has the stages of score interpolation and adaptive reranking, chosen on val."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from tests.nursery import ROOT, Nursery
from tests.small_job import SmallWorld


def test_the_final_report_has_what_was_chosen_on_val(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    rerank = {"model": str(ROOT / "demo" / "models" / "blip-itm"), "top_k": 6, "fusion": True, "adaptive": True, "adaptive_max_loss": 0.05}
    config = small_world.write_config(tmp_path, train__max_steps=4, mining=None, rerank=rerank)
    child = nursery.start("train", [str(config)])
    assert child.wait() == 0, child.output()
    folder = tmp_path / "runs" / "job" / "eval" / "test"
    record = json.loads((folder / "report.json").read_text())
    arms = ["tuned+blip+sum", "tuned+blip+fused", "tuned+blip+adaptive"]
    assert list(record["stages"]) == ["base", "tuned", "base+blip", "tuned+blip", *arms]
    assert [(row["stage"], row["against"]) for row in record["comparisons"][::9]][-2:] == [(arm, "tuned+blip") for arm in arms[1:]]
    (fusion,), (adaptive,) = record["fusion"], record["adaptive"]
    assert fusion["chosen_on"]["split"] == adaptive["chosen_on"]["split"] == "val" and record["data"]["split"] == "test"
    assert adaptive["chosen"]["lost"] <= 0.05
    rows = pq.read_table(folder / "queries.parquet", columns=["stage", "direction", "rank"]).to_pandas()
    for row in fusion["measured"]:
        own = rows[rows["stage"] == row["stage"]]
        assert abs(row["R@1"]["both"] - (own["rank"] == 1).groupby(own["direction"]).mean().mean()) < 1e-12
    assert "tuned+blip+adaptive: " in child.output()
    again = nursery.start("train", [str(config)])  # finished: the figures are read back and shown
    assert again.wait() == 0 and "tuned+blip+fused: weight" in again.output()
