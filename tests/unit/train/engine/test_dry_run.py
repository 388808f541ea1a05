"""--show-config and --dry-run: what a run would be is printed, and nothing of it is left."""

import re
from pathlib import Path

import pytest
import yaml

from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld
from train.__main__ import run
from train.config.job import JobConfig
from train.config.load import load_config
from train.reranker.__main__ import run as run_reranker

SIZES = {"train__max_steps": None, "train__eval_every_steps": 0.5, "train__checkpoint_every_steps": None, "train__epochs": 3}


def lines_of(text: str) -> dict[str, str]:
    """The lines of a plan by their first word."""
    return dict(line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[a-z]+ {2,}\S", line))


def test_the_configuration_is_shown_with_what_follows_from_the_data(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_world.write_config(tmp_path, **SIZES, rerank__model="none/is-read")
    assert run([str(path), "--show-config", "seed=7"]) == 0
    shown = capsys.readouterr().out
    config = JobConfig.model_validate(yaml.safe_load(shown))
    assert (config.seed, config.train.max_steps, config.train.eval_every_steps, config.train.checkpoint_every_steps) == (7, 15, 8, 2)
    assert config.rerank is not None and config.rerank.top_k == 14  # images of test
    assert shown.startswith("# from the data: train.max_steps=15\n") and list(tmp_path.iterdir()) == [path]


def test_a_complete_configuration_is_shown_without_its_data(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_world.write_config(tmp_path, data__source="not/there.csv")
    assert run([str(path), "--show-config"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown) == load_config(path).model_dump(mode="json") and not shown.startswith("#")


def test_a_dry_run_tells_the_plan_and_leaves_nothing(
    small_world: SmallWorld,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("assets")))
    scratch = {"image_size": 16, "patch_size": 8, "width": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 96, "num_tokens": 12}
    path = small_world.write_config(tmp_path, **SIZES, model={"scratch": scratch}, mining__mine_every_steps=4, data__cache_pixels=0.01)
    assert run([str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    plan = lines_of(shown)
    read = re.search(r"decoding its pictures ([\d.e-]+) s, reading them from the cache ([\d.e-]+) s with 0 worker", plan["step"])
    assert read is not None and "siglip-tuner/pixels, up to 0.01 GiB: " in plan["pixels"]
    assert plan["plan"].startswith("15 steps, 3 evaluations, 9 checkpoints (the newest 2 and the best are kept), 4 refreshes")
    numbers = re.match(r"[\d.e-]+ s \(median of 3, .*\), ([\d.e+]+) FLOPs \(([\d.e+]+) in all\)", plan["step"])
    assert numbers is not None and float(numbers[2]) == pytest.approx(15 * float(numbers[1]), rel=0.05)
    assert plan["time"].startswith("about ") and "mining" in plan["time"] and "GiB with the largest step" in plan["memory"]
    assert "4 checkpoints of" in plan["disk"] and f"in {tmp_path / 'runs'}," in plan["disk"]
    assert str(tmp_path / "runs" / "job") in shown.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [path]


def test_the_average_of_the_weights_counts_in_every_checkpoint(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fourth number of each parameter that trains, next to the weight and Adam's two."""
    sizes = []
    for decay in (None, 0.99):
        path = small_world.write_config(tmp_path, train__ema_decay=decay, mining=None)
        assert run([str(path), "--dry-run"]) == 0
        plan = lines_of(capsys.readouterr().out)
        assert ("average" in plan) == (decay is not None)
        found = re.search(r"checkpoints of ([\d.e+-]+) GB", plan["disk"])
        assert found is not None
        sizes.append(float(found[1]))
    assert sizes[1] / sizes[0] == pytest.approx(16 / 12, rel=0.05)


def test_the_operations_of_a_step_are_those_of_its_matrices(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand for width 32, one layer, 4 patches, 12 tokens: forward, and twice that backward, but for the gradient of the pixels."""
    scratch = {"image_size": 16, "patch_size": 8, "width": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 96, "num_tokens": 12}
    totals = []
    for batch in (4, 8):
        path = small_world.write_config(tmp_path, model={"scratch": scratch}, mining=None, train__batch_size=batch)
        assert run([str(path), "--dry-run"]) == 0
        found = re.search(r", ([\d.e+]+) FLOPs", lines_of(capsys.readouterr().out)["step"])
        assert found is not None
        totals.append(float(found[1]))
    width, mlp = 32, 128
    layer = 4 * width * width + 2 * width * mlp  # multiply-adds for a token, without attention's own products
    tokens = 4 + 12
    least = 3 * 2 * layer * tokens * 4
    assert least <= totals[0] <= 2 * least
    assert totals[1] == pytest.approx(2 * totals[0], rel=0.05)


def test_a_dry_run_of_a_folder_with_another_configuration_or_of_a_full_disk_is_refused(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_world.write_config(tmp_path, mining=None)
    folder = tmp_path / "runs" / "job"
    folder.mkdir(parents=True)
    (folder / "finished.json").write_text("{}")
    (folder / "config.yaml").write_text(yaml.safe_dump(load_config(path, ["seed=9"]).model_dump(mode="json")))
    before = sorted(tmp_path.rglob("*"))
    assert run([str(path), "--dry-run"]) == 2
    assert "holds a run with another configuration:\n  seed: 9 -> 3" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr("train.engine.dry_run.free_bytes", lambda path: 1000)
    assert run([str(path), "--dry-run", "name=other"]) == 4
    assert "1e-06 GB are free: make room there, lower train.keep_checkpoints" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_pictures_of_a_sample_that_do_not_decode_are_told(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "pairs.csv"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    pictures = sorted((small_world.manifest.parent / "pictures").glob("train-*.png"))[:23]
    for picture in pictures:
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    names = ["broken.png", *(picture.name for picture in pictures)]
    manifest.write_text("image,caption\n" + "".join(f"{name},the picture {number}\n" for number, name in enumerate(names)))
    keys = {"data__train_split": None, "data__val_split": None, "data__test_split": None}
    path = small_world.write_config(tmp_path / "job", data__source=str(manifest), mining=None, **keys)
    assert run([str(path), "--dry-run"]) == 0
    assert lines_of(capsys.readouterr().out)["pictures"].startswith("1 of 24 looked at do not decode")


def test_a_rerankers_tuning_has_a_dry_run_too(reranker_world: RerankerWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reranker_world.write_config(tmp_path)
    assert run_reranker([str(path), "--dry-run"]) == 0
    assert lines_of(capsys.readouterr().out)["plan"].startswith("6 steps, 3 evaluations, 4 checkpoints")
    assert list(tmp_path.iterdir()) == [path]
