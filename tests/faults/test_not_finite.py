"""Weights, losses and embeddings that are not finite: exit code 5, nothing of them kept, and the advice given can be followed."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from eval.atomic import hash_file
from tests.faults.runs import Run, assert_same, lines, said
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld
from train.__main__ import run as train
from train.engine.checkpoint import Checkpoints
from train.export.__main__ import main as export
from train.soup.__main__ import main as soup
from train.wise.__main__ import main as wise

WEIGHT = "vision_model.encoder.layers.0.mlp.fc1.weight"


def weights(folder: Path, step: int, name: str = "weights") -> dict[str, torch.Tensor]:
    """Weights, or optimizer state, of a checkpoint of a run."""
    return load_file(folder / "checkpoints" / f"step-{step}" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def old(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run."""
    run = Run.make(nursery, small_world, tmp_path_factory.mktemp("old"))
    run.finish()
    return run


def steps(folder: Path) -> list[int]:
    return Checkpoints(folder / "checkpoints").steps()


def advised(text: str) -> list[str]:
    """The overrides that a message names."""
    found = re.search(r"(name=NEW train\.begin_at=\S+ train\.learning_rate=\S+)", text)
    assert found is not None, text
    return found[1].split()


def spoil(folder: Path, step: int) -> None:
    """Make a checkpoint what one of an earlier version could be: whole, and one weight of it infinite."""
    checkpoint = folder / "checkpoints" / f"step-{step}"
    tensors = load_file(checkpoint / "weights.safetensors")
    next(iter(tensors.values())).view(-1)[0] = torch.inf
    save_file(tensors, checkpoint / "weights.safetensors")
    names = [path.name for path in checkpoint.iterdir() if path.name != "manifest.json"]
    (checkpoint / "manifest.json").write_text(json.dumps({"sha256": {name: hash_file(checkpoint / name) for name in names}}))


@pytest.mark.parametrize("rate", ["1e38", "3e38", "1e308"])
def test_weights_that_are_not_finite_are_never_saved_and_the_advice_can_be_followed(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, rate: str
) -> None:
    run = Run.make(nursery, small_world, tmp_path, train__learning_rate=float(rate), train__warmup_steps=0)
    for _ in range(2):  # the same command again says the same: the last good checkpoint is still the newest
        (child,) = run.start()
        assert child.wait() == 5, child.output()
        assert "not finite" in child.output() or "beyond" in child.output()
        assert "Traceback" not in child.output() and steps(run.folder) == [0]
    if rate == "1e308":
        followed = nursery.start("train", [str(run.config), *advised(child.output()), "train.learning_rate=1e-3"])
        assert followed.wait() == 0, followed.output()
        assert "Began at: `" in (run.folder.with_name("NEW") / "export" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["siglip", "reranker"])
def test_a_weight_that_one_update_spoils_costs_no_checkpoint(
    small_world: SmallWorld,
    reranker_world: RerankerWorld,
    old: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """As a bit that a broken memory turns: step 5 makes one weight infinite; without the fault the same command goes on, bit for bit."""
    world = small_world if kind == "siglip" else reranker_world
    config = world.write_config(tmp_path)
    folder = tmp_path / "runs" / "job"
    update, calls = torch.optim.AdamW.step, []

    def spoiling(self: torch.optim.AdamW, *arguments: Any) -> None:
        update(self, *arguments)
        calls.append(1)
        if len(calls) == 5:
            self.param_groups[-1]["params"][-1].data.view(-1)[-1] = torch.inf

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spoiling)
        assert train([str(config)]) == 5
    message = capsys.readouterr().err
    assert "step 5: weights not finite after the update" in message and "in 1 tensor(s)" in message
    assert steps(folder)[-1] == 4 and max(line["step"] for line in lines(folder)) == 4
    assert all(bool(tensor.isfinite().all()) for tensor in weights(folder, 4).values())
    if kind == "siglip":
        assert train([str(config)]) == 0
        assert said(folder) == said(old.folder)


@pytest.mark.parametrize("where", ["evaluation", "mining"])
def test_a_blow_up_met_in_an_evaluation_or_a_mining_is_exit_5(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, where: str
) -> None:
    """Weights of 1e16 are finite, and what they embed is not."""
    changes: dict[str, Any] = {"train__learning_rate": 1e16, "train__warmup_steps": 0, "mining__mine_every_steps": 1}
    changes |= {"train__eval_every_steps": 1} if where == "evaluation" else {"mining__start_step": 1, "data__val_split": None}
    run = Run.make(nursery, small_world, tmp_path, **changes)
    (child,) = run.start()
    assert child.wait() == 5, child.output()
    assert "embedding(s) of" in child.output() and "Traceback" not in child.output()
    assert advised(child.output())[1].endswith("step-0")


def test_a_blow_up_met_in_an_evaluation_of_a_reranker_is_exit_5(nursery: Nursery, reranker_world: RerankerWorld, tmp_path: Path) -> None:
    changes = {"train__learning_rate": 1e16, "train__warmup_steps": 0, "train__eval_every_steps": 1}
    run = Run.make(nursery, reranker_world, tmp_path, **changes)
    (child,) = run.start()
    assert child.wait() == 5, child.output()
    assert "expected finite scores; found nan for image" in child.output() and "Traceback" not in child.output()
    assert steps(run.folder) == [0]


def test_every_process_ends_with_5(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    run = Run.make(nursery, small_world, tmp_path, 2, train__learning_rate=1e308, train__warmup_steps=0)
    assert [child.wait() for child in run.start()] == [5, 5]
    assert steps(run.folder) == [0]


def test_weights_that_are_not_finite_are_neither_resumed_nor_exported_by_any_writer(
    old: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(old.folder, tmp_path / "job")
    for step in steps(tmp_path / "job"):
        spoil(tmp_path / "job", step)
    last = steps(tmp_path / "job")[-1]
    for command, arguments in (
        (export, [str(tmp_path / "job"), "--checkpoint", "last"]),
        (wise, [str(tmp_path / "job"), "--alphas", "0,1", "--keep", "1"]),
        (soup, [f"{tmp_path}/job@{last}", str(old.folder / "export")]),
    ):
        assert command([*arguments, "--output", str(tmp_path / "out")]) == 5
        assert "weight(s) are not finite" in capsys.readouterr().err
        assert not list(tmp_path.rglob("out/**/model.safetensors"))


# -- train.begin_at ------------------------------------------------------------------------------------------------------------------------


def begun(old: Run, folder: Path, step: int, **changes: Any) -> Run:
    """A job that begins at a checkpoint of a finished one."""
    world = SmallWorld(Path(record(old)["data"]["source"]), Path(record(old)["model"]["base"]))
    changes = {"train__begin_at": str(old.folder / "checkpoints" / f"step-{step}")} | changes
    return Run(old.nursery, world.write_config(folder, **changes))


def record(run: Run) -> Any:
    """Its configuration as it was written."""
    return yaml.safe_load(run.config.read_text())


def test_a_run_begins_at_another_runs_checkpoint_with_its_optimizer_state(old: Run, tmp_path: Path) -> None:
    step = steps(old.folder)[-2]
    new = begun(old, tmp_path, step, train__learning_rate=1e-4, train__batch_size=4, train__precision="bf16", train__keep_checkpoints=99)
    (child,) = new.finish()
    assert f"begins at {old.folder}/checkpoints/step-{step}" in child.output()
    for name in ("weights", "optimizer"):
        before, now = weights(old.folder, step, name), weights(new.folder, 0, name)
        assert before.keys() == now.keys() and all(torch.equal(before[key], now[key]) for key in before)
    states = [Checkpoints(new.folder / "checkpoints").state(number) for number in (0, 9)]
    assert [(state.step, state.num_updates) for state in states] == [(0, step), (9, step + 9)]
    # AdamW's first update by hand, of a weight that decays, at the new rate and with the count of updates that the moments have.
    rate, (beta, beta_2), epsilon, decay, count = 1e-4, (0.9, 0.95), 1e-6, 1e-4, step + 1
    one = replace_steps(new, tmp_path / "one")
    (weight, moment, square), (weight_1, moment_1, square_1) = (
        [weights(folder, number)[WEIGHT], *(weights(folder, number, "optimizer")[f"{key}.{WEIGHT}"] for key in ("exp_avg", "exp_avg_sq"))]
        for folder, number in ((new.folder, 0), (one.folder, 1))
    )
    assert not torch.equal(moment, moment_1) and not torch.equal(square, square_1)
    mean, variance = moment_1.double() / (1 - beta**count), square_1.double() / (1 - beta_2**count)
    expected = weight.double() * (1 - rate * decay) - rate * mean / (variance.sqrt() + epsilon)
    torch.testing.assert_close(weight_1.double(), expected, rtol=0, atol=1e-7)
    card = (new.folder / "export" / "README.md").read_text()
    assert f"- Began at: `{old.folder.name}, step {step}`, with its weights and optimizer state." in card


def replace_steps(run: Run, folder: Path) -> Run:
    """The same run with a checkpoint at every step and no evaluation but at the ends."""
    changed = record(run)
    changed["runs_folder"] = str(folder / "runs")
    changed["train"] |= {"checkpoint_every_steps": 1, "eval_every_steps": 99}
    folder.mkdir()
    (folder / "job.yaml").write_text(json.dumps(changed))
    one = replace(run, config=folder / "job.yaml")
    one.finish()
    return one


def test_a_run_that_began_at_a_checkpoint_resumes_exactly(old: Run, tmp_path: Path) -> None:
    watch = [{"name": "w", "source": record(old)["data"]["source"], "split": "test"}]
    runs = [begun(old, tmp_path / name, steps(old.folder)[-1], watch=watch) for name in ("straight", "killed")]
    runs[0].finish()
    for trap in (Trap("train.engine.loop:begin_at", after=True), Trap("train.siglip.step:Stepper.train_step", 5, after=True)):
        (child,) = runs[1].start(trap=trap)
        assert child.wait() == -9, child.output()
    runs[1].finish()
    assert_same(*runs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__begin_at": "runs/nowhere"}, "expected the folder of a checkpoint, runs/NAME/checkpoints/step-N"),
        ({"train__begin_at": "OLD/checkpoints/step-77"}, "is not there; the checkpoints there are of the steps"),
        ({"train__begin_at": "OLD/checkpoints/step-1"}, "step-1 is damaged"),
        ({"model__lora": {"rank": 4}}, "model.lora.rank: None -> 4"),
        ({"model__logit_bias": -3.0}, "model.logit_bias: None -> -3.0"),
        ({"data__train_split": "val"}, "was trained on other data"),
        ({"model__base": "OTHER"}, "was trained on another base"),
    ],
)
def test_a_checkpoint_of_another_model_or_of_other_data_is_not_begun_at(
    old: Run, small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    copy, last = tmp_path / "old", steps(old.folder)[-1]
    shutil.copytree(old.folder, copy)
    shutil.copytree(copy / "checkpoints" / f"step-{last}", copy / "checkpoints" / "step-1")
    (copy / "checkpoints" / "step-1" / "optimizer.safetensors").write_bytes(b"short")
    if "model__base" in changes:
        changes = {"model__base": str(copy / "export")}
    begin = str(changes.get("train__begin_at", f"OLD/checkpoints/step-{last}")).replace("OLD", str(copy))
    config = small_world.write_config(tmp_path / "new", **changes | {"train__begin_at": begin})
    assert train([str(config)]) == 2
    assert words in capsys.readouterr().err
    assert steps(tmp_path / "new" / "runs" / "job") == []


def test_a_reranker_begins_at_another_ones_checkpoint(reranker_world: RerankerWorld, tmp_path: Path) -> None:
    for number, (name, changes) in enumerate((("old", {}), ("new", {"train__learning_rate": 1e-4, "train__batch_size": 4}))):
        begin = {"train__begin_at": str(tmp_path / "old" / "runs" / "job" / "checkpoints" / "step-6")} if number else {}
        assert train([str(reranker_world.write_config(tmp_path / name, train__keep_checkpoints=9, **begin, **changes))]) == 0
    old, new = (tmp_path / name / "runs" / "job" for name in ("old", "new"))
    for name in ("weights", "optimizer"):
        before, now = weights(old, 6, name), weights(new, 0, name)
        assert all(torch.equal(before[key], now[key]) for key in before | now)
    assert "- Began at: `" in (new / "export" / "README.md").read_text()


def test_what_changes_no_gradient_may_change_on_resume(small_world: SmallWorld, tmp_path: Path) -> None:
    """And the same command with another seed is refused."""
    config = small_world.write_config(tmp_path)
    assert train([str(config)]) == 0
    folder = tmp_path / "runs" / "job"
    for name in ("finished.json", "checkpoints/step-9/manifest.json"):
        (folder / name).unlink()
    assert train([str(config), "seed=4"]) == 2 and steps(folder)[-1] == 9
    assert train([str(config), "train.micro_batch_size=3", "model.gradient_checkpointing=true", "data.num_workers=1"]) == 0
    assert steps(folder)[-1] == 9 and (folder / "finished.json").is_file()
