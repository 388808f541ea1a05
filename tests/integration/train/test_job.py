"""python -m train from manifest to report: the real command first, then its variants."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

from eval.captions import normalise
from tests.export_checks import check_portable
from tests.faults.runs import lines, said
from tests.nursery import ROOT, Child, Nursery
from tests.shared_files import modes
from tests.small_job import SmallWorld, load, write_pictures


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python ...` from the root, one thread."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def of(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in lines(folder) if line["event"] == event]


@pytest.fixture(scope="module")
def real(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    """(configuration, run folder, outcome) of the real command."""
    config = small_world.write_config(tmp_path_factory.mktemp("real"), data__num_workers=1, evaluation__slice_by=["group"])
    return config, config.parent / "runs" / "job", command("-m", "train", str(config))


def test_the_whole_job(real: tuple[Path, Path, subprocess.CompletedProcess[str]]) -> None:
    _, folder, done = real
    assert done.returncode == 0, done.stderr
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "negatives", "export", "eval"} <= {path.name for path in folder.iterdir()}
    assert list(report(folder / "eval" / "test")["stages"]) == ["base", "tuned"]
    comparisons = report(folder / "eval" / "test")["comparisons"]
    assert {(row["stage"], row["against"]) for row in comparisons} == {("tuned", "base")}
    slices = [row for row in report(folder / "eval" / "test")["slices"] if row["by"] == "group" and row["stage"] == "tuned"]
    assert {row["bin"]: row["num_queries"] for row in slices if row["direction"] == "image_to_text"} == {
        "test-0": 3,
        "test-1": 3,
        "(none)": 8,
    }
    page = (folder / "eval" / "test" / "report.html").read_text()
    assert '<article class="query"' in page
    assert ", chosen on val</small>" in page and "<b>Tuning " in page and "python -m train " in page
    assert all((folder / "eval" / "test" / link).exists() for link in re.findall(r'href="(\.[^"]*)"', page)) and "../../export" in page
    for words in ("base", "tuned", "image to text", "text to image", f"{folder}/export", "report.html"):
        assert words in done.stdout


def test_the_card_has_the_figures_of_the_report(real: tuple[Path, Path, Any]) -> None:
    """To the digit, and its metadata too."""
    folder = real[1]
    stages, card = report(folder / "eval" / "test")["stages"], (folder / "export" / "README.md").read_text()
    results = ModelCard(card).data.eval_results
    assert results is not None and len(results) == 4
    for direction in ("image_to_text", "text_to_image"):
        for stage in ("base", "tuned"):
            found = {name: f"{100 * stages[stage][direction][name]:.2f}" for name in ("R@1", "R@5")}
            row = next(line for line in card.splitlines() if line.startswith(f"| {stage} | {direction.replace('_', ' ')} |"))
            assert [cell.split()[0] for cell in row.split(" | ")[2:]] == list(found.values())
        shown = {one.metric_name: f"{one.metric_value:.2f}" for one in results}
        assert {name: shown[f"{direction.replace('_', ' ')} {name}"] for name in found} == found
    assert "**No checkpoint" not in card and "no_gain" not in report(folder / "eval" / "test")
    check_portable(folder / "export", folder.parent, real[0].parent)


def test_that_nothing_was_won_is_said_first_everywhere(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    """A rate that moves nothing: every evaluation is the base's, and none is above it."""
    config = small_world.write_config(
        tmp_path, mining=None, train__max_steps=2, train__eval_every_steps=1, train__learning_rate=1e-12, train__warmup_steps=0
    )
    child = nursery.start("train", [str(config)])
    assert child.wait() == 0, child.output()
    folder = tmp_path / "runs" / "job"
    score = next(line["mean_R@1"] for line in lines(folder) if line["event"] == "eval")
    sentence = (
        f"No checkpoint of this run beat its base on val (mean R@1 {100 * score:.2f}); the export holds the weights that it began with."
    )
    again = nursery.start("train", [str(config)])
    assert again.wait() == 0
    assert again.output().index(sentence) < again.output().index("image to text")
    for output in (child.output(), again.output()):  # the last words begin with it too, in lines of their width
        assert output.count(sentence) == 1 and sentence in " ".join(output[output.rindex("No checkpoint of this run") :].split())
    assert f"# job\n\n**{sentence}**\n" in (folder / "export" / "README.md").read_text()
    found = report(folder / "eval" / "test")
    assert found["no_gain"] == {"note": sentence} and sentence in (folder / "eval" / "test" / "report.html").read_text()


def test_every_file_of_a_run_has_the_mode_of_a_new_one(real: tuple[Path, Path, Any], tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    assert modes(real[1]) == modes(tmp_path)


def test_metrics_are_whole_and_in_order(real: tuple[Path, Path, subprocess.CompletedProcess[str]]) -> None:
    _, folder, _ = real
    found = lines(folder)
    assert (folder / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert [(line["event"], line["step"]) for line in found] == [
        ("start", 0), ("eval", 0), ("mining", 0), ("step", 1), ("step", 2), ("step", 3), ("eval", 3), ("step", 4), ("mining", 4),
        ("step", 5), ("step", 6), ("eval", 6), ("step", 7), ("step", 8), ("mining", 8), ("step", 9), ("eval", 9),
    ]  # fmt: skip
    assert found[0]["world_size"] == 1
    for line in of(folder, "step"):
        assert line["loss"] == pytest.approx(line["loss_in_batch"] + 0.5 * line["loss_mined"], rel=1e-6)
        assert line["num_mined"] > 0 and line["loss_mined"] > 0 and line["num_replaced"] == 0
        assert 0 <= line["data_wait_share"] <= 1 and line["images_per_second"] > 0
    assert of(folder, "step")[-1]["loss"] < of(folder, "step")[0]["loss"] / 2
    for line in of(folder, "eval"):
        mean = (line["image_to_text"]["R@1"] + line["text_to_image"]["R@1"]) / 2
        assert line["mean_R@1"] == pytest.approx(mean)
    scores = [line["mean_R@1"] for line in of(folder, "eval")]
    assert [line["best"] for line in of(folder, "eval")] == [score > max(scores[:place], default=-1) for place, score in enumerate(scores)]


def test_every_refresh_mines_no_positive_and_keeps_its_table(
    real: tuple[Path, Path, subprocess.CompletedProcess[str]], small_world: SmallWorld
) -> None:
    _, folder, _ = real
    reports = of(folder, "mining")
    assert len({report["name"] for report in reports}) == 3 and all(report["num_positives_mined"] == 0 for report in reports)
    dataset = load(small_world.manifest)
    groups = dict(zip(dataset.image_ids, dataset.group_names(), strict=True))
    text = dict(zip(dataset.caption_ids, dataset.captions, strict=True))
    for report in reports:
        table = pq.read_table(folder / "negatives" / f"{report['name']}.parquet")
        assert len(table) == report["num_mined"] > 0
        for image, caption in zip(table["image_id"].to_pylist(), table["caption_id"].to_pylist(), strict=True):
            mates = {other for other in groups if other == image or (groups[image] and groups[other] == groups[image])}
            true = {normalise(words) for key, words in text.items() if key.rpartition("#")[0] in mates}
            assert normalise(text[caption]) not in true


def test_plain_eval_of_the_export_gives_the_runs_own_figures(
    real: tuple[Path, Path, subprocess.CompletedProcess[str]], small_world: SmallWorld, tmp_path: Path
) -> None:
    _, folder, _ = real
    model, data = str(folder / "export"), str(small_world.manifest)
    done = command("-m", "eval", "--model", model, "--data", data, "--split", "test", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    ours, theirs = report(folder / "eval" / "test")["stages"]["tuned"], report(tmp_path)["stages"]["model"]
    for direction in ("image_to_text", "text_to_image"):
        assert theirs[direction] == ours[direction]
    rows = [pq.read_table(place / "queries.parquet") for place in (folder / "eval" / "test", tmp_path)]
    own = rows[0].filter(np.array(rows[0]["stage"].to_pylist()) == "tuned")
    assert own.drop(["stage"]).equals(rows[1].drop(["stage"]))


def test_the_same_command_again_prints_the_figures(real: tuple[Path, Path, subprocess.CompletedProcess[str]], nursery: Nursery) -> None:
    config, folder, first = real
    before = (folder / "metrics.jsonl").read_bytes()
    again = nursery.start("train", [str(config)])
    assert again.wait() == 0 and "is finished" in again.output()
    assert first.stdout[first.stdout.index("│ tuned") :].splitlines()[0] in again.output()
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("override", ["train.learning_rate=1e-4", "seed=4", "mining=null", "train.max_steps=10"])
def test_another_configuration_is_refused(
    real: tuple[Path, Path, subprocess.CompletedProcess[str]], nursery: Nursery, override: str
) -> None:
    config, _, _ = real
    child = nursery.start("train", [str(config), override])
    assert child.wait() == 2
    assert "another configuration" in child.output() and override.partition("=")[0] in child.output()


def test_the_nursery_runs_what_the_real_command_runs(
    real: tuple[Path, Path, subprocess.CompletedProcess[str]], nursery: Nursery, small_world: SmallWorld, tmp_path: Path
) -> None:
    assert nursery.start("train", [str(small_world.write_config(tmp_path))]).wait() == 0
    assert said(tmp_path / "runs" / "job") == said(real[1])


@pytest.mark.parametrize(("which", "step"), [("best", None), ("last", 9), ("8", 8)])
def test_export_of_any_checkpoint(
    real: tuple[Path, Path, subprocess.CompletedProcess[str]], nursery: Nursery, tmp_path: Path, which: str, step: int | None
) -> None:
    _, folder, _ = real
    child = nursery.start("train.export", [str(folder), "--output", str(tmp_path / "out"), "--checkpoint", which])
    assert child.wait() == 0, child.output()
    best = [line["step"] for line in of(folder, "eval") if line["best"]][-1]
    assert f"step {best if step is None else step} exported" in child.output()
    same = (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "export" / "model.safetensors").read_bytes()
    assert same == (which == "best" or step == best)


@pytest.mark.parametrize(("arguments", "code"), [(["--checkpoint", "7"], 2), (["--checkpoint", "worst"], 2)])
def test_export_of_what_is_not_there(
    real: tuple[Path, Path, subprocess.CompletedProcess[str]], nursery: Nursery, tmp_path: Path, arguments: list[str], code: int
) -> None:
    child = nursery.start("train.export", [str(real[1]), "--output", str(tmp_path / "out"), *arguments])
    assert child.wait() == code and "best, last or one of" in child.output() and not (tmp_path / "out").exists()
    assert nursery.start("train.export", [str(tmp_path), "--output", str(tmp_path / "out")]).wait() == 2


def test_mining_alone(
    real: tuple[Path, Path, subprocess.CompletedProcess[str]], nursery: Nursery, small_world: SmallWorld, tmp_path: Path
) -> None:
    config = small_world.write_config(tmp_path)
    child = nursery.start("train.mining", [str(config)])
    assert child.wait() == 0, child.output()
    first = of(real[1], "mining")[0]
    report = json.loads((tmp_path / "runs" / "job" / "negatives" / f"{first['name']}.json").read_text())
    assert report == {key: first[key] for key in report}
    tables = [place / "negatives" / f"{first['name']}.parquet" for place in (tmp_path / "runs" / "job", real[1])]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    refused = nursery.start("train.mining", [str(config), "mining=null"])
    assert refused.wait() == 2 and "mine_every_steps" in refused.output()


def small(nursery: Nursery, world: SmallWorld, folder: Path, *, code: int = 0, **changes: Any) -> tuple[Child, Path]:
    """A short variant of the job, run to its end, which has this exit code."""
    changes = {"train__max_steps": 4, "train__eval_every_steps": 4, "train__checkpoint_every_steps": 4} | changes
    child = nursery.start("train", [str(world.write_config(folder, **changes))])
    assert child.wait() == code, child.output()
    return child, folder / "runs" / "job"


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"model__lora": {"rank": 4, "alpha": 8, "dropout": 0.1}},
    "lora, image frozen": {"model__lora": {"rank": 4}, "model__freeze": ["image"]},
    "image frozen": {"model__freeze": ["image"]},
    "text frozen": {"model__freeze": ["text"]},
    "only scale and bias": {"model__freeze": ["image", "text"]},
    "bf16": {"train__precision": "bf16"},
    "bf16, lora, checkpointing": {"train__precision": "bf16", "model__lora": {"rank": 4}, "model__gradient_checkpointing": True},
    "gradient checkpointing": {"model__gradient_checkpointing": True},
    "random crop": {"train__random_crop_min_area": 0.5},
    "nothing mined": {"mining": None},
    "mined for all": {"mining__mined_scope": "all"},
    "mined late": {"mining__start_step": 2, "mining__mine_every_steps": 1},
    "from nothing": {
        "model": {"scratch": {"image_size": 16, "patch_size": 8, "width": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 96}}
    },
    "starting bias": {"model__logit_bias": -5.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_learn_and_export_what_they_trained(nursery: Nursery, small_world: SmallWorld, tmp_path: Path, variant: str) -> None:
    from eval.encoder.checkpoint import load_siglip

    # The last weights are exported, not the base's; every step sees the same images, so that losses can be compared.
    changes = VARIANTS[variant] | {"data__val_split": None, "train__batch_size": 40}
    if "lora" in variant or "only" in variant:
        changes |= {"train__learning_rate": 0.02}
    child, folder = small(nursery, small_world, tmp_path, **changes)
    losses = [line["loss"] for line in of(folder, "step")]
    in_batch = [line["loss_in_batch"] for line in of(folder, "step")]
    assert len(losses) == 4 and np.isfinite(losses).all() and in_batch[-1] < in_batch[0]
    base, _ = load_siglip(folder / "scratch" if variant == "from nothing" else small_world.base)
    tuned, _ = load_siglip(folder / "export")
    moved = {name for (name, one), (_, two) in zip(base.named_parameters(), tuned.named_parameters(), strict=True) if not one.equal(two)}
    frozen = {"image": "vision_model", "text": "text_model"}
    for tower, prefix in frozen.items():
        assert any(name.startswith(prefix) for name in moved) == (tower not in changes.get("model__freeze", [])), tower
    assert {"logit_scale", "logit_bias"} <= moved
    if variant == "mined late":
        assert [line["step"] for line in of(folder, "mining")] == [2, 3]
        assert [line["num_mined"] > 0 for line in of(folder, "step")] == [False, False, True, True]


def test_without_a_test_split_the_figures_are_vals(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    child, folder = small(nursery, small_world, tmp_path, data__test_split=None)
    assert report(folder / "eval" / "val")["data"]["split"] == "val"


def test_without_a_val_split_the_last_checkpoint_is_exported(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    child, folder = small(nursery, small_world, tmp_path, data__val_split=None)
    assert "exported the checkpoint of step 4" in child.output() and of(folder, "eval") == []
    assert report(folder / "eval" / "test")["data"]["split"] == "test"


def test_a_manifest_without_splits_trains_on_all_of_it(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    manifest = write_pictures(tmp_path / "data", {"train": 24})
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps({key: value for key, value in row.items() if key != "split"}) + "\n" for row in rows))
    splits = {"data__train_split": None, "data__val_split": None, "data__test_split": None}
    child, folder = small(nursery, small_world, tmp_path, data__source=str(manifest), **splits)
    assert (folder / "export" / "model.safetensors").exists() and not (folder / "eval").exists()


def broken_world(tmp_path: Path, *splits: str) -> Path:
    manifest = write_pictures(tmp_path / "data")
    for split in splits:
        (tmp_path / "data" / "pictures" / f"{split}-004.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return manifest


def test_a_damaged_train_picture_is_replaced_and_counted(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    manifest = broken_world(tmp_path, "train")
    child, folder = small(nursery, small_world, tmp_path, data__source=str(manifest), train__max_steps=5, data__num_workers=1)
    assert sum(line["num_replaced"] for line in of(folder, "step")) == 1  # once in the one epoch of five steps
    assert "train-004.png" in child.output() and of(folder, "mining")[0]["num_undecodable"] == 1


def test_a_damaged_val_picture_is_an_error_with_its_name(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    child, _ = small(nursery, small_world, tmp_path, code=2, data__source=str(broken_world(tmp_path, "val")))
    assert "val-004.png" in child.output() and "--check-images" in child.output() and "Traceback" not in child.output()


def test_broken_pictures_are_left_out_and_listed_where_that_is_asked(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    changes = {"data__source": str(broken_world(tmp_path, "train", "val", "test")), "data__skip_broken": True, "train__max_steps": 10}
    child, folder = small(nursery, small_world, tmp_path, **changes, train__warmup_steps=1)
    assert sum(line["num_replaced"] for line in of(folder, "step")) == 2, "twice in two epochs"
    assert child.output().count("skipped (data.skip_broken) in step") == 1, "told once"
    listed = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().split("\n") if line]
    assert [(one["split"], one["image"]) for one in listed] == [(name, f"pictures/{name}-004.png") for name in ("val", "test", "train")]
    assert all("cannot be decoded" in one["reason"] and one["where"].endswith("-004.png") for one in listed)
    found = report(folder / "eval" / "test")
    assert found["data"]["num_images"] == 13 and found["skipped"] == {"num_images": 1, "images": ["pictures/test-004.png"]}
    assert "Left out: 1 picture(s) that do not decode" in (folder / "eval" / "test" / "report.html").read_text()


def test_check_images_names_all_and_trains_nothing(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    manifest = broken_world(tmp_path, "val")
    config = small_world.write_config(tmp_path, data__source=str(manifest), data__skip_broken=True)
    child = nursery.start("train", [str(config), "--check-images"])
    assert child.wait() == 2
    assert "68 pictures checked: 1 do not decode" in child.output() and "[val] pictures/val-004.png" in child.output()
    assert not (tmp_path / "runs" / "job" / "checkpoints").exists()
    good = nursery.start("train", [str(small_world.write_config(tmp_path / "good")), "--check-images"])
    assert good.wait() == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__batch_size": 41}, "has only 40 images"),
        ({"data__val_split": "validation"}, "no row has split 'validation'"),
        ({"data__source": "nowhere.jsonl"}, "no such file"),
        ({"model__base": "no/such-model"}, "no/such-model"),
        ({"data__columns": {"caption": "text"}}, "unknown column"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_reason(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    child = nursery.start("train", [str(small_world.write_config(tmp_path, **changes))])
    assert child.wait() == 2, child.output()
    assert words in child.output() and "Traceback" not in child.output()
    assert not (tmp_path / "runs" / "job" / "checkpoints").exists()


def test_a_batch_that_does_not_divide_is_refused_on_every_process(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    children = nursery.start_ranks("train", [str(small_world.write_config(tmp_path, train__batch_size=9))], 2)
    assert [child.wait() for child in children] == [2, 2] and "does not divide among 2 processes" in children[0].output()


@pytest.mark.parametrize("val_split", ["val", None])
def test_a_loss_that_is_not_finite_ends_with_5(nursery: Nursery, small_world: SmallWorld, tmp_path: Path, val_split: str | None) -> None:
    changes = {"train__learning_rate": 1e30, "train__warmup_steps": 0, "mining": None, "data__val_split": val_split}
    config = small_world.write_config(tmp_path, **changes)
    child = nursery.start("train", [str(config)])
    assert child.wait() == 5, child.output()
    assert "Nothing of it was kept" in child.output() and "train.learning_rate" in child.output() and "Traceback" not in child.output()
    again = nursery.start("train", [str(config)])
    assert again.wait() == 5  # and it does not claim to have finished


def test_wandb_offline_keeps_its_own_files(small_world: SmallWorld, tmp_path: Path) -> None:
    config = small_world.write_config(tmp_path, train__max_steps=2, mining=None, wandb={"mode": "offline"})
    done = command("-m", "train", str(config))
    assert done.returncode == 0 and "wandb is off" not in done.stdout + done.stderr, done.stderr
    assert list((tmp_path / "runs" / "job" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(of(tmp_path / "runs" / "job", "step")) == 2


def test_two_processes_under_accelerate_follow_one(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    """The real launcher. A low rate, for Adam makes much of the last bits of a small gradient."""
    changes = {"train__learning_rate": 1e-5, "train__max_steps": 4, "train__eval_every_steps": 4}
    assert nursery.start("train", [str(small_world.write_config(tmp_path / "one", **changes))]).wait() == 0
    config = small_world.write_config(tmp_path / "two", **changes)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    done = command(*launch, "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "train", str(config), ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    one, two = (tmp_path / name / "runs" / "job" for name in ("one", "two"))
    assert of(two, "start")[0]["world_size"] == 2
    losses = [[line["loss"] for line in of(folder, "step")] for folder in (one, two)]
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert [line["name"] for line in of(one, "mining")][0] == [line["name"] for line in of(two, "mining")][0]
    assert [line["num_mined"] for line in of(one, "step")] == [line["num_mined"] for line in of(two, "step")]
    evals = [{key: value for key, value in of(folder, "eval")[0].items() if key != "seconds"} for folder in (one, two)]
    assert evals[0] == evals[1]  # the base, measured by one process and by two (docs/guarantees.md)
    tables = [pq.read_table(folder / "eval" / "test" / "queries.parquet", filters=[("stage", "=", "base")]) for folder in (one, two)]
    assert tables[0].num_rows and tables[0].equals(tables[1])


def test_a_worker_that_finds_no_picture_ends_the_run_with_2(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    """And ends it: a worker that leaves SIGTERM to its parent must not keep the parent waiting."""
    source = write_pictures(tmp_path / "data")
    for picture in (tmp_path / "data" / "pictures").iterdir():
        picture.write_bytes(b"junk")
    changes = {"data__source": str(source), "data__num_workers": 1, "data__val_split": None, "data__test_split": None, "mining": None}
    child = nursery.start("train", [str(small_world.write_config(tmp_path, **changes))])
    assert child.wait() == 2 and "pictures in a row do not decode" in child.output() and "Traceback" not in child.output()


def test_a_finished_run_without_checkpoints_is_not_another_configurations(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path
) -> None:
    config = small_world.write_config(tmp_path, train__max_steps=2, mining=None)
    assert nursery.start("train", [str(config)]).wait() == 0
    shutil.rmtree(tmp_path / "runs" / "job" / "checkpoints")
    other = nursery.start("train", [str(config), "train.learning_rate=0.5"])
    assert other.wait() == 2 and "train.learning_rate" in other.output()
    same = nursery.start("train", [str(config), "--check-images", "data.num_workers=0"])  # overrides may follow the option
    assert same.wait() == 0 and "0 do not decode" in same.output()
    (tmp_path / "runs" / "job" / "config.yaml").write_text("[")
    assert (damaged := nursery.start("train", [str(config)])).wait() == 2 and "config.yaml is damaged" in damaged.output()


def test_two_processes_refuse_together(nursery: Nursery, small_world: SmallWorld, tmp_path: Path) -> None:
    config = small_world.write_config(tmp_path, train__max_steps=2, mining=None)
    assert nursery.start("train", [str(config)]).wait() == 0
    children = nursery.start_ranks("train", [str(config), "train.learning_rate=0.5"], 2)
    assert [child.wait() for child in children] == [2, 2] and not any("Traceback" in child.output() for child in children)
