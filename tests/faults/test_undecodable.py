"""A picture that does not decode, with workers: one message names it, and nothing follows it, in every command that reads pictures."""

import json
from pathlib import Path

import pytest

from tests.nursery import Nursery
from tests.small_job import SmallWorld, write_pictures
from tests.small_reranker_job import RerankerWorld

WORKERS = ["--num-workers", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which one of train and one of val are none; a choice set with one of them."""
    manifest = write_pictures(tmp_path_factory.mktemp("undecodable"))
    for name in ("train-030", "val-001"):
        (manifest.parent / "pictures" / f"{name}.png").write_bytes(b"\x89PNG broken")
    names = [f"pictures/train-{number:03d}.png" for number in range(40)]
    rows = [{"image": name, "caption": "a red bar", "false_captions": ["a blue bar"]} for name in names]
    (manifest.parent / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (manifest.parent / "captions.txt").write_text("a red circle\na blue bar\n")
    return manifest


def arguments_of(command: str, data: Path, world: RerankerWorld, folder: Path) -> list[str]:
    siglip, output = ["--model", str(world.base)], ["--output", str(folder / "out.parquet" if command == "rerank" else folder / "out")]
    job = {"data__source": str(data), "data__num_workers": 2}
    split = ["--data", str(data), "--split", "val"]
    choices = ["--data", str(data.parent / "choices.jsonl")]
    images = ["--images", str(data.parent / "pictures"), "--captions", str(data.parent / "captions.txt"), "--top-k", "2"]
    match command:
        case "eval":
            return [*siglip, *split, *output, *WORKERS]
        case "eval.choices":
            return [*siglip, *choices, *output, *WORKERS]
        case "rerank":
            return [*siglip, "--rerank", str(world.blip), *images, *output, *WORKERS]
        case "train.reranker":
            return [str(world.write_config(folder, **job))]
    siglip_job = SmallWorld(world.manifest, world.base).write_config(folder, **job)
    return [str(siglip_job), *(["--check-images"] if command == "train --check-images" else [])]


@pytest.mark.parametrize("command", ["eval", "eval.choices", "rerank", "train", "train --check-images", "train.reranker"])
def test_no_traceback_follows_the_message_of_an_undecodable_picture(
    nursery: Nursery, reranker_world: RerankerWorld, data: Path, tmp_path: Path, command: str
) -> None:
    arguments = arguments_of(command, data, reranker_world, tmp_path)
    child = nursery.start(command.split()[0], arguments, env={"ACCELERATE_USE_CPU": "true"})
    code, output = child.wait(), child.output()  # which refuses a traceback
    assert code == 2 and "cannot be decoded: no picture of a known format" in output and ".png" in output
    assert "killed by signal" not in output


def test_a_mining_takes_undecodable_pictures_out_and_ends_well(
    nursery: Nursery, small_world: SmallWorld, data: Path, tmp_path: Path
) -> None:
    config = small_world.write_config(tmp_path, data__source=str(data), data__num_workers=2)
    child = nursery.start("train.mining", [str(config)], env={"ACCELERATE_USE_CPU": "true"})
    assert child.wait() == 0, child.output()
