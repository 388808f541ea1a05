"""rerank/asked.py: what the command line of an evaluation leaves out comes from the run or the data, and all faults are told at once."""

import argparse
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from eval import __main__ as command
from eval.errors import UserError
from eval.manifest.made_split import SplitByHash, write_splits
from eval.processes import Processes
from rerank.asked import read_plan, with_fitting_top_k
from tests.small_job import SmallWorld, load
from tests.tiny_blip import write_tiny_blip

RULE = SplitByHash({"test": 0.2, "val": 0.2}, "train")


class Own:
    """Data without splits, whose captions are in another column and pictures in another folder, and a run of them.

    Attributes:
        names: of the images; the last came after the run had made its splits.
    """

    def __init__(self, folder: Path, base: Path) -> None:
        self.data, self.run, self.out = folder / "own.csv", folder / "runs" / "own", folder / "out"
        self.names = [f"{number:02d}.png" for number in range(31)]
        (folder / "photos").mkdir()
        for number, name in enumerate(self.names):
            Image.new("RGB", (8, 8), (8 * number, 0, 0)).save(folder / "photos" / name)
        self.data.write_text("image,words\n" + "".join(f"{name},{word} {name}\n" for name in self.names for word in ("one", "two")))
        shutil.copytree(base, self.run / "export")
        write_splits(self.run / "split.parquet", {part: self.of(part, self.names[:-1]) for part in ("train", "val", "test")})
        data = {"source": "own.csv", "image_root": "photos", "columns": {"caption": "words"}, "split": {"val": 0.2, "test": 0.2, "seed": 0}}
        data |= {f"{part}_split": part for part in ("train", "val", "test")}
        (self.run / "config.yaml").write_text(yaml.safe_dump({"runs_folder": "runs", "data": data}))

    def of(self, part: str, names: list[str] | None = None) -> list[str]:
        """The images of a split, worked out by the rule."""
        return [name for name in (self.names if names is None else names) if RULE.of(name) == part]

    def asked(self, *words: str) -> argparse.Namespace:
        """The command on the test split, and more options."""
        given = ["--model", str(self.run / "export"), "--data", str(self.data), "--split", "test", "--output", str(self.out)]
        return command.parse([*given, "--num-workers", "0", *words])

    def measure(self, *words: str) -> None:
        """Do it."""
        command.run(self.asked(*words), Processes(), torch.device("cpu"))

    def refused(self, *words: str) -> str:
        """Why it is refused."""
        with pytest.raises(UserError) as caught:
            self.measure(*words)
        return str(caught.value)


@pytest.fixture
def own(tmp_path: Path, small_world: SmallWorld) -> Own:
    return Own(tmp_path, small_world.base)


def test_the_runs_own_data_are_read_as_the_run_read_them_and_a_later_image_is_placed(own: Own, capsys: pytest.CaptureFixture[str]) -> None:
    own.measure()
    said = capsys.readouterr().out
    root = own.data.parent / "photos"
    assert f"data      read as {own.run} read it: --column caption=words --image-root {root}\n" in said
    assert f"1 image(s) are not in {own.run}/split.parquet: placed by the rule that made it (1 {RULE.of('30.png')}): '30.png'" in said
    assert f"rows      62 in {own.data}: 31 images, 31 joined to an earlier row's image\n" in said
    assert json.loads((own.out / "report.json").read_text())["data"]["num_images"] == len(own.of("test"))


def test_what_is_given_is_used_in_place_of_the_runs(own: Own, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    message = own.refused("--image-root", str(tmp_path / "other"), "--column", "captions=image")
    assert f"31 of 31 pictures are not below '{tmp_path}/other'" in message
    shutil.copy(own.data, tmp_path / "copy.csv")
    assert "no column 'caption' or 'captions'" in own.refused("--data", str(tmp_path / "copy.csv")), "another file is not the run's own"


def test_skipped_rows_are_counted_and_listed_whatever_split_is_asked_for(own: Own, capsys: pytest.CaptureFixture[str]) -> None:
    broken = own.of("test")[0]
    (own.data.parent / "photos" / "30.png").unlink()
    (own.data.parent / "photos" / broken).write_bytes(b"no picture")
    own.measure("--skip-missing", "--skip-broken")
    said = capsys.readouterr().out
    assert (
        "62 in" in said and "29 images, 30 joined to an earlier row's image, 3 rows skipped: 2 x missing file, 1 x does not decode" in said
    )
    rows = [json.loads(line) for line in (own.out / "skipped.jsonl").read_text().splitlines()]
    later = RULE.of("30.png")
    assert [(row["image"], row["split"]) for row in rows] == [("30.png", later), ("30.png", later), (broken, "test")]


def test_a_model_that_is_not_there_is_said_first_and_the_data_are_not_blamed_for_it(own: Own, tmp_path: Path) -> None:
    message = own.refused("--model", str(own.run), "--rerank", "no/such/reranker", "--column", "caption=description")
    assert [line[: len("--model: ")] for line in message.split("\n")][:1] == ["--model: "]
    assert f"Did you mean {own.run}/export?" in message
    assert "--rerank: there is no folder 'no/such/reranker'" in message
    assert "--column maps caption to 'description', which is not there" in message and "31 of 31 pictures are not below" in message
    columns = ["--column", "caption=words", "--image-root", str(tmp_path / "photos")]
    assert "\n" not in own.refused("--model", str(own.run), *columns), "the split may be one of the run that was meant"
    assert "--model: " in own.refused("--model", "nobody/siglip", *columns)


def test_where_no_split_is_known_the_runs_file_is_the_remedy(own: Own, small_world: SmallWorld, tmp_path: Path) -> None:
    words = ["--model", str(small_world.base), "--column", "caption=words", "--image-root", str(tmp_path / "photos")]
    message = own.refused(*words)
    assert "no row has split 'test'; splits found: none: there is no column `split`" in message
    assert "--split-file runs/NAME/split.parquet" in message and "all rows are measured" in message and "Name one of" not in message
    own.measure(*words, "--split-file", str(own.run / "split.parquet"))


def test_a_default_number_of_candidates_shrinks_to_what_there_is(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest, "test")
    words = ["--model", str(small_world.base), "--data", "d", "--output", "o", "--rerank", "toy"]
    plan = read_plan(command.parse(words))
    assert plan.reranking is not None and plan.reranking.top_k == 32
    inputs = plan.inputs
    fitting, line = with_fitting_top_k(command.parse(words), plan, [dataset])
    assert fitting.reranking is not None and fitting.reranking.top_k == dataset.num_images == 14 and fitting.inputs is inputs
    assert line == "top-k     14 candidates of each query, not the default 32: split 'test' has 14 images"
    assert with_fitting_top_k(command.parse(words), plan, [load(small_world.manifest, "train")]) == (plan, "")
    given = command.parse([*words, "--top-k", "32"])
    assert with_fitting_top_k(given, read_plan(given), [dataset])[1] == "", "a given one is refused where the scores are made"


def test_the_command_reranks_fewer_candidates_and_refuses_a_number_given(own: Own, capsys: pytest.CaptureFixture[str]) -> None:
    blip = own.data.parent / "blip"
    write_tiny_blip(blip)
    images = len(own.of("test"))
    own.measure("--rerank", str(blip))
    assert f"top-k     {images} candidates of each query, not the default 32: split 'test' has {images} images" in capsys.readouterr().out
    message = own.refused("--rerank", str(blip), "--top-k", "32")
    assert re.fullmatch(rf"--top-k: .* found 32, and split 'test' has only {images} images\. Give {images} or less", message)
    both = own.refused("--rerank", str(blip), "--top-k", "32", "--also", "other=/no/such")
    assert (
        "--also: '/no/such'" in both
        and f"--top-k: expected no more candidates than there are; found 32, and split 'test' has only {images}" in both
    )
