"""A job that exports in further precisions: each measured in its report, again by `eval` to the last digit, and exported by command."""

import json
from pathlib import Path

import pytest

from eval.encoder.sealed import verify
from tests.faults.runs import Run
from tests.nursery import Nursery
from tests.small_job import SmallWorld

QUICK = {"mining": None, "train__max_steps": 2, "train__eval_every_steps": 2, "train__checkpoint_every_steps": 2}


@pytest.fixture(scope="module")
def run(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run.make(nursery, small_world, tmp_path_factory.mktemp("forms"), **QUICK, export={"dtypes": ["float32", "bfloat16"]})
    made.finish()
    return made


def test_the_report_has_each_form_and_eval_agrees_to_the_digit(run: Run, nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    report = json.loads((run.folder / "eval" / "test" / "report.json").read_text())
    whole, halved = report["exports"]
    assert [whole["name"], halved["name"]] == ["float32", "bfloat16"] and whole["comparisons"] == [] and halved["max_difference"] > 0
    assert "Export, bfloat16: " in (run.folder / "eval" / "test" / "report.html").read_text()
    for direction, figures in report["stages"]["tuned"].items():
        if direction in whole["stages"]:
            assert whole["stages"][direction] == {"R@1": figures["R@1"], "ci95": {"R@1": figures["ci95"]["R@1"]}}
    models = ["--model", str(run.folder / "export" / "bfloat16"), "--also", f"whole={run.folder / 'export'}", "--compare", "model:whole"]
    child = nursery.start("eval", [*models, "--data", str(small_world.manifest), "--split", "test", "--output", str(tmp_path / "out")])
    assert child.wait() == 0, child.output()
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    for direction, figures in halved["stages"].items():
        found = again["stages"]["model"][direction]
        assert figures == {"R@1": found["R@1"], "ci95": {"R@1": found["ci95"]["R@1"]}}
    for row in halved["comparisons"]:
        (found,) = [one for one in again["comparisons"] if (one["direction"], one["metric"]) == (row["direction"], "R@1")]
        assert (found["delta"], found["ci95"]) == (row["delta"], row["ci95"])


def test_a_finished_run_shows_its_forms_and_refuses_a_damaged_one(run: Run, nursery: Nursery) -> None:
    child = nursery.start("train", [str(run.config)])
    assert child.wait() == 0 and "exports  bfloat16: " in child.output(), child.output()
    config = run.folder / "export" / "bfloat16" / "config.json"
    before = config.read_bytes()
    config.write_bytes(before + b" ")
    child = nursery.start("train", [str(run.config)])
    assert child.wait() == 2 and "export/bfloat16/ (config.json does not have the bytes" in child.output(), child.output()
    config.write_bytes(before)


def test_the_command_exports_what_the_run_says_or_what_it_is_told(run: Run, nursery: Nursery, tmp_path: Path) -> None:
    for number, (options, names) in enumerate(
        [([], {"bfloat16"}), (["--dtypes", "float16", "float32", "--open-clip"], {"float16", "open_clip"})]
    ):
        out = tmp_path / str(number)
        child = nursery.start("train.export", [str(run.folder), "--output", str(out), *options])
        assert child.wait() == 0, child.output()
        assert {path.name for path in out.iterdir() if path.is_dir()} == names
        assert [verify(out), *(verify(out / name) for name in names)] == [""] * (1 + len(names))
        assert (out / "model.safetensors").read_bytes() == (run.folder / "export" / "model.safetensors").read_bytes()
