"""100 own pictures and a spreadsheet's CSV without splits to a report of tuned against base: one command; sizes and splits follow."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tests.nursery import ROOT, Nursery, Trap
from tests.small_job import COLOURS, SHAPES, SIDES, SmallWorld, draw

BASE = ROOT / "demo" / "models" / "siglip-base"


@pytest.fixture(scope="module")
def spreadsheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """My shoes.csv as a spreadsheet saves it: a byte order mark, CRLF, a row for each caption; next to its pictures."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "pictures").mkdir()
    draws, rows = np.random.default_rng(0), []
    for number in range(100):
        colour, shape, side = (str(draws.choice(words)) for words in (COLOURS, SHAPES, SIDES))
        name = f"pictures/{number:03d}.png"
        draw(colour, shape, side, 37 * number % 256).save(folder / name)
        rows += [(name, f"a {colour} {shape} at the {side}, number {number}")] + [(name, f"the {shape}, {colour}")] * (number % 3 == 0)
    with (folder / "My shoes.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, lineterminator="\r\n").writerows([("image", "caption"), *rows])
    return folder / "My shoes.csv"


def command(spreadsheet: Path, runs: Path, *more: str) -> list[str]:
    keys = [f"model.base={BASE}", f"runs_folder={runs}", "data.num_workers=0", "train.epochs=1", "train.eval_every_steps=0.5"]
    return [str(spreadsheet), *keys, *more]


def test_a_csv_alone_gives_a_report_and_its_export_is_measured_on_the_same_split(
    spreadsheet: Path, nursery: Nursery, tmp_path: Path
) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "runs" / "My-shoes"
    killed = nursery.start("train", command(spreadsheet, runs), trap=Trap("train.model.grad_cache:image_features", 2))
    assert killed.wait() == -9, killed.output()
    made = (folder / "split.parquet").read_bytes()
    child = nursery.start("train", command(spreadsheet, runs))
    assert child.wait() == 0, child.output()
    said, splits = child.output(), pq.read_table(folder / "split.parquet").to_pydict()
    counts = {name: splits["split"].count(name) for name in ("train", "val", "test")}
    assert sum(counts.values()) == 100 and min(counts.values()) >= 1 and splits["id"] == [f"pictures/{n:03d}.png" for n in range(100)]
    assert "resuming My-shoes" in said and (folder / "split.parquet").read_bytes() == made
    assert f"{counts['train']} images with" in said and f"val: {counts['val']} / " in said
    assert "splits    made by a hash of each image's group or id (val 0.1, test 0.1, seed 0), written to" in said

    steps = counts["train"] // 16
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["train"]["batch_size"], config["train"]["max_steps"], config["train"]["epochs"]) == (16, steps, None)
    assert config["data"]["split"] == {"val": 0.1, "test": 0.1, "seed": 0} and config["train"]["eval_every_steps"] == steps // 2
    assert f"sizes     from the data: train.batch_size=16 train.max_steps={steps} " in said
    report = json.loads((folder / "eval" / "test" / "report.json").read_text())
    assert report["data"]["num_images"] == counts["test"] and list(report["stages"]) == ["base", "tuned"]
    assert {row["against"] for row in report["comparisons"]} == {"base"}

    arguments = ["--model", str(folder / "export"), "--data", str(spreadsheet), "--split", "test", "--num-workers", "0"]
    again = nursery.start("eval", [*arguments, "--output", str(tmp_path / "again")])
    assert again.wait() == 0, again.output()
    measured = json.loads((tmp_path / "again" / "report.json").read_text())
    assert measured["data"]["sha256"] == report["data"]["sha256"]
    assert measured["stages"]["model"]["text_to_image"]["R@1"] == report["stages"]["tuned"]["text_to_image"]["R@1"]
    named = ["--model", str(BASE), "--split-file", str(folder / "split.parquet"), *arguments[2:]]
    other = nursery.start("eval", [*named, "--output", str(tmp_path / "base")])
    assert other.wait() == 0, other.output()
    assert json.loads((tmp_path / "base" / "report.json").read_text())["data"]["sha256"] == report["data"]["sha256"]

    finished = nursery.start("train", command(spreadsheet, runs))
    assert finished.wait() == 0 and f"{folder} is finished" in finished.output()
    changed = nursery.start("train", command(spreadsheet, runs, "train.epochs=2"))
    assert changed.wait() == 2
    assert f"train.max_steps: {steps} -> {2 * steps} (follows from the data and other keys)" in changed.output()


def test_without_a_measurement_only_if_it_is_asked_for(
    spreadsheet: Path, small_world: SmallWorld, nursery: Nursery, tmp_path: Path
) -> None:
    alone = [f"model.base={small_world.base}", "data.val_split=null", "data.test_split=null", "train.max_steps=1"]
    for name, keys in (("rows", [*alone, "data.train_split=null"]), ("named", alone)):
        child = nursery.start("train", command(spreadsheet, tmp_path, f"name={name}", "train.epochs=null", *keys))
        assert child.wait() == 0, child.output()
        assert "100 images with 134 captions to train on" in child.output() and not (tmp_path / name / "eval").exists()
    assert not (tmp_path / "rows" / "split.parquet").exists()
