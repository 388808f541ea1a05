"""A whole job whose final report has the stages of score interpolation and adaptive reranking, chosen on val, and a calibration."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from eval.atomic import hash_file
from eval.encoder.checkpoint import hash_weights, load_siglip
from eval.report.calibration import Calibration
from tests.nursery import ROOT, Nursery
from tests.small_job import SmallWorld


def test_the_final_report_has_what_was_chosen_on_val(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    rerank = {"model": str(ROOT / "demo" / "models" / "blip-itm"), "top_k": 6, "fusion": True, "adaptive": True, "adaptive_max_loss": 0.05}
    changes = {"train__max_steps": 4, "mining": None, "rerank": rerank, "evaluation": {"calibration": True}}
    config = small_world.write_config(tmp_path, **changes)
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
    path = tmp_path / "runs" / "job" / "export" / "calibration.json"
    written, shown = json.loads(path.read_text()), dict(record["calibration"])
    measured = shown.pop("measured")
    assert written == shown and list(written["stages"]) == list(measured["stages"]) == ["tuned", "tuned+blip"]
    assert written["fitted_on"]["split"] == "val" and (measured["split"], measured["is_fitted"]) == ("test", False)
    assert [stage["text_to_image"]["score"] for stage in written["stages"].values()] == ["cosine", "match_logit"]
    weights = hash_weights(load_siglip(path.parent)[0])  # the export is read as before: its seal does not know the file
    assert Calibration.read(path).stage(weights, None).name == "tuned"
    ended = json.loads((tmp_path / "runs" / "job" / "finished.json").read_text())
    assert ended["reports_sha256"]["export/calibration.json"] == hash_file(path)
    assert "calibration of tuned+blip, text to image, on val (14 images): " in child.output()
    again = nursery.start("train", [str(config)])  # finished: the figures are read back and shown
    assert again.wait() == 0 and "tuned+blip+fused: weight" in again.output()
