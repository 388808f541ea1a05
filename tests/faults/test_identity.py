"""A run knows its base and its configuration: what changed since it began is refused by name, and what did not is no change."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from eval.encoder.checkpoint import load_siglip
from eval.encoder.sealed import seal
from tests.faults.runs import Run, assert_same
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld

UNTOUCHED = {".lock", "log.txt"}
"""What every start writes, refused or not."""
KILL_IN_STEP_7 = Trap("train.model.grad_cache:image_features", 8, settled=True)


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Change a JSON file in place; what it held before."""
    before = path.read_bytes()
    record = json.loads(before)
    change(record)
    path.write_text(json.dumps(record))
    return before


@pytest.fixture(scope="module")
def killed(nursery: Nursery, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a base of its own, killed in step 7: with the checkpoints of steps 4 and 6, and the best. To be left as it is."""
    folder = tmp_path_factory.mktemp("killed")
    shutil.copytree(small_world.base, folder / "base")
    run = Run.make(nursery, small_world, folder, model__base=str(folder / "base"))
    (child,) = run.start(trap=KILL_IN_STEP_7)
    assert child.wait() == -9, child.output()
    return run


@pytest.fixture
def copy(killed: Run, tmp_path: Path) -> Run:
    """The same in a folder of the test's own, as a person would copy it: times and all else are new. Its base is the killed one's."""
    shutil.copytree(killed.config.parent / "runs", tmp_path / "runs", copy_function=shutil.copy)
    (tmp_path / "job.yaml").write_text(killed.config.read_text().replace(str(killed.config.parent / "runs"), str(tmp_path / "runs")))
    return replace(killed, config=tmp_path / "job.yaml")


def base_of(run: Run) -> Path:
    return run.config.parent / "base"


def refused(run: Run, *words: str, module: str = "train", arguments: list[str] | None = None, code: int = 2) -> None:
    """The command ends with 2 and these words, on standard error no traceback, and nothing of the run is changed."""
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path.name not in UNTOUCHED}
    child = run.nursery.start(module, [str(run.config)] if arguments is None else arguments)
    assert child.wait() == code, child.output()
    assert all(word in child.output() for word in words), child.output()
    assert "Traceback" not in child.output()
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path.name not in UNTOUCHED} == before


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "image_mean": ("preprocessor_config.json", lambda record: record.update(image_mean=[0.4, 0.5, 0.5]), "the image processor has other"),
    "num_attention_heads": ("config.json", lambda record: record["text_config"].update(num_attention_heads=4), "the config has other"),
    "hidden_act": ("config.json", lambda record: record["vision_config"].update(hidden_act="relu"), "the config has other"),
}


@pytest.fixture(params=CHANGES)
def changed_base(killed: Run, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """(key, words of the message) while the base of the killed run has another value of the key."""
    name, change, words = CHANGES[request.param]
    path = base_of(killed) / name
    if not path.exists():  # the processor's own, in transformers 5
        path = base_of(killed) / "processor_config.json"
    before = rewritten(path, lambda record: change(record.get("image_processor", record)))
    yield request.param, words
    path.write_bytes(before)


def test_a_changed_image_mean_number_of_heads_or_activation_is_refused_on_resume(killed: Run, changed_base: tuple[str, str]) -> None:
    key, words = changed_base
    refused(killed, "is another model than when", words, f"{key}:", "Bring its files back")


@pytest.mark.parametrize("command", ["train.export", "train.soup", "train.wise"])
def test_what_is_made_of_a_checkpoint_refuses_a_changed_base(killed: Run, command: str, tmp_path: Path) -> None:
    checkpoints = [f"{killed.folder}@4", f"{killed.folder}@6"] if command == "train.soup" else [str(killed.folder)]
    before = rewritten(base_of(killed) / "config.json", lambda record: record["vision_config"].update(hidden_act="relu"))
    try:
        arguments = [*checkpoints, "--output", str(tmp_path / "out")]
        refused(killed, "is another model than when", "vision_config.hidden_act", module=command, arguments=arguments)
    finally:
        (base_of(killed) / "config.json").write_bytes(before)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_base_that_was_copied_touched_or_written_again_is_no_change(killed: Run, copy: Run, straight: dict[int, Run]) -> None:
    model, inputs = load_siglip(base_of(killed))
    written = copy.config.parent / "written"
    model.save_pretrained(written)
    inputs.save(written)
    aside = killed.config.parent / "aside"
    base_of(killed).rename(aside)
    try:
        shutil.copytree(written, base_of(killed))
        copy.finish()
    finally:
        shutil.rmtree(base_of(killed))
        aside.rename(base_of(killed))
    assert_same(copy, straight[1])


def test_the_export_is_made_of_what_was_trained_whatever_the_base_has_become(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, straight: dict[int, Run]
) -> None:
    """The base is changed when the last step is taken. The export is that of the straight run; what cannot be measured is refused."""
    base = tmp_path / "base"
    shutil.copytree(small_world.base, base)
    run = Run.make(nursery, small_world, tmp_path, model__base=str(base))
    (child,) = run.start(trap=Trap("train.siglip.finish:export_checkpoint", 1, signal=19))
    child.wait_until(child.stopped)
    before = rewritten(base / "config.json", lambda record: record["vision_config"].update(hidden_act="relu"))
    child.kill(18)
    assert child.wait() == 2 and "vision_config.hidden_act: gelu_pytorch_tanh -> relu" in child.output(), child.output()
    names = {path.name for path in (straight[1].folder / "export").iterdir()} - {"README.md"}
    for name in names:
        assert (run.folder / "export" / name).read_bytes() == (straight[1].folder / "export" / name).read_bytes(), name
    (base / "config.json").write_bytes(before)
    run.finish()
    assert_same(run, straight[1])


@pytest.mark.parametrize("changed", ["blip", "retriever"])
def test_a_rerankers_base_and_its_retriever_are_known_too(
    nursery: Nursery, reranker_world: RerankerWorld, tmp_path: Path, changed: str
) -> None:
    shutil.copytree(reranker_world.base, tmp_path / "retriever")
    shutil.copytree(reranker_world.blip, tmp_path / "blip")
    run = Run.make(nursery, reranker_world, tmp_path, model__base=str(tmp_path / "blip"), miner=str(tmp_path / "retriever"))
    (child,) = run.start(trap=Trap("train.reranker.step:MatchStepper.train_step", 2))
    assert child.wait() == -9, child.output()
    paths = [tmp_path / changed / name for name in ("preprocessor_config.json", "processor_config.json")]
    path = next(path for path in paths if path.exists())
    rewritten(path, lambda record: record.get("image_processor", record).update(image_mean=[0.4, 0.5, 0.5]))
    refused(run, f"{tmp_path / changed} is another model than when", "the image processor has other values (image_mean:")


# -- configuration -------------------------------------------------------------------------------------------------------------------------


def with_config(run: Run, change: Callable[[str], str]) -> None:
    path = run.folder / "config.yaml"
    path.write_text(change(path.read_text()))


def test_checkpoints_of_another_seed_are_refused_though_config_yaml_is_gone_or_says_otherwise(copy: Run) -> None:
    arguments = [str(copy.config), "seed=4"]
    refused(copy, "holds a run with another configuration", "seed: 3 -> 4", arguments=arguments)
    with_config(copy, lambda text: text.replace("seed: 3", "seed: 4"))
    refused(copy, "checkpoints/step-", "is of a run with another configuration", "seed: 3 -> 4", arguments=arguments)
    (copy.folder / "config.yaml").unlink()
    refused(copy, "checkpoints/step-", "is of a run with another configuration", "seed: 3 -> 4", arguments=arguments)


def test_without_config_yaml_the_right_configuration_goes_on(copy: Run, straight: dict[int, Run]) -> None:
    (copy.folder / "config.yaml").unlink()
    copy.finish()
    assert_same(copy, straight[1])


def test_an_edited_config_yaml_does_not_fit_the_checkpoints_of_an_export(copy: Run, tmp_path: Path) -> None:
    with_config(copy, lambda text: text.replace("lora: null", "lora: {rank: 4, alpha: 8}"))
    arguments = [str(copy.folder), "--output", str(tmp_path / "out")]
    refused(copy, "is of a run with another configuration", "model.lora.rank: None -> 4", module="train.export", arguments=arguments)


def test_a_renamed_step_folder_is_refused_with_its_reason(copy: Run, tmp_path: Path) -> None:
    checkpoints = copy.folder / "checkpoints"
    (checkpoints / "step-6").rename(checkpoints / "step-8")
    refused(copy, "step-8 was renamed: by its state.json it is the checkpoint of step 6")
    refused(copy, "step-8 was renamed", module="train.export", arguments=[str(copy.folder), "--output", str(tmp_path / "out")])


def test_a_runs_folder_may_be_renamed(copy: Run, straight: dict[int, Run]) -> None:
    os.rename(copy.folder, copy.folder.with_name("other"))
    child = copy.nursery.start("train", [str(copy.config), "name=other"])
    assert child.wait() == 0 and "resuming other at step 6" in child.output(), child.output()
    os.rename(copy.folder.with_name("other"), copy.folder)
    assert_same(copy, straight[1])


def test_what_changes_no_gradient_may_change_on_resume(copy: Run) -> None:
    keys = ["train.micro_batch_size=4", "model.gradient_checkpointing=true", "data.num_workers=1", "train.checkpoint_every_steps=3"]
    child = copy.nursery.start("train", [str(copy.config), *keys])
    assert child.wait() == 0 and "resuming job at step 6" in child.output(), child.output()


def test_a_checkpoint_of_an_earlier_version_goes_on_and_comes_to_know_the_rest(copy: Run, straight: dict[int, Run]) -> None:
    for folder in (copy.folder / "checkpoints").iterdir():
        rewritten(folder / "state.json", lambda record: [record.pop(key) for key in ("base_identity", "config")])
        seal(folder)
    (copy.folder / "data.parquet").unlink()
    copy.finish()
    assert_same(copy, straight[1])
    state = json.loads((copy.folder / "checkpoints" / "step-9" / "state.json").read_text())
    assert state["config"]["seed"] == 3 and state["base_identity"]["image_processor"]["size.height"] == 16
    assert load_file(copy.folder / "export" / "model.safetensors")
