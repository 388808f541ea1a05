"""python -m train.soup on what a run leaves: its checkpoints by step, full and with adapters, chosen on the run's own val."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.faults.runs import Run, lines
from tests.nursery import Nursery
from tests.small_job import SmallWorld
from train.config.load import read_run
from train.siglip.export import export_checkpoint
from train.soup import ingredients


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_a_soup_of_a_runs_checkpoints(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, lora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"mining": None, "model__lora": lora, "train__max_steps": 4, "train__eval_every_steps": 2, "train__keep_checkpoints": 9}
    run = Run.make(nursery, small_world, tmp_path, **changes)
    run.finish()
    names, output = [f"{run.folder}@2", f"{run.folder}@4"], tmp_path / "soup"
    child = nursery.start("train.soup", [*names, "--output", str(output), "--greedy", "--num-workers", "0"])
    assert child.wait() == 0, child.output()
    record = json.loads((output / "soup.json").read_text())
    assert [row["name"] for row in record["ingredients"]] == names and record["data"]["split"] == "val"
    measured = {line["step"]: line["mean_R@1"] for line in lines(run.folder) if line["event"] == "eval"}
    found = [row["mean_R@1"] for row in record["ingredients"]]
    assert found == pytest.approx([measured[2], measured[4]], abs=0 if lora is None else 0.04)  # merged adapters round otherwise
    config = read_run(run.folder)
    for step in (2, 4):
        export_checkpoint(config, str(step), tmp_path / f"step-{step}")
    kept = [load_file(tmp_path / f"step-{name.rpartition('@')[2]}" / "model.safetensors") for name in record["soup"]["members"]]
    exported = load_file(output / "export" / "model.safetensors")
    for name, value in exported.items():
        np.testing.assert_allclose(value.numpy(), np.mean([state[name].double().numpy() for state in kept], axis=0), rtol=3e-7, atol=1e-12)
    for bad, words in ((f"{run.folder}@99", "one of the steps"), (f"{run.folder}/checkpoints/step-2", f"give {run.folder}@2")):
        child = nursery.start("train.soup", [names[0], bad, "--output", str(tmp_path / "other")])
        assert child.wait() == 2 and words in child.output()
    child = nursery.start("train.soup", [*names, "--output", str(run.folder)])
    assert child.wait() == 2 and "a run or a checkpoint" in child.output() and (run.folder / "export" / "model.safetensors").is_file()
    if lora is None:  # one model is in memory: the base is not read once more next to it
        one = ingredients.read_ingredient(names[0])
        monkeypatch.setattr(ingredients, "load_siglip", lambda name: pytest.fail(f"{name} was read, too"))
        assert one.load().base_sha256 == record["ingredients"][0]["weights_sha256"]
