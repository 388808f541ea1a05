"""train/data/splits.py: which rows a run trains, evaluates and reports on, where the manifest says so and where it does not."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.errors import UserError
from tests.small_job import SmallWorld
from tests.small_job import load as load_small
from train.config.job import JobConfig
from train.data.splits import Splits, load_data, load_splits
from train.engine.folder import learnt


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(folder / f"{number:03d}.png")
    return folder


def load(folder: Path, splits: str, **data: Any) -> Splits:
    """What a run reads of 40 pictures, which the words share evenly as their splits."""
    words, rows = splits.split(), [{"image": f"{number:03d}.png", "caption": f"number {number}"} for number in range(40)]
    for number, row in enumerate(rows):
        row |= {"split": words[number * len(words) // 40]} if words else {}
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    train = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-4, "eval_every_steps": 1, "checkpoint_every_steps": 1}
    record = {"name": "job", "model": {"base": "x"}, "data": {"source": str(path), **data}, "train": train}
    return load_splits(JobConfig.model_validate(record))


def sizes(found: Splits) -> dict[str, int]:
    return {str(split.split): split.num_images for split in (found.train, found.val, found.test) if split is not None}


def test_splits_are_made_where_there_are_none_and_written(pictures: Path, tmp_path: Path) -> None:
    found = load(pictures, "")
    assert found.made is not None and (found.made.val, found.made.test, found.made.seed) == (0.1, 0.1, 0)
    # By the hashes of the ids (tests/unit/eval/manifest/test_made_split.py): test below 0.1, val below 0.2.
    assert list(found.test.image_ids if found.test else ()) == [f"{n:03d}.png" for n in (4, 21, 26, 28)]
    assert list(found.val.image_ids if found.val else ()) == [f"{n:03d}.png" for n in (2, 7, 25, 31)]
    found.write_made(tmp_path / "split.parquet")
    assert (tmp_path / "split.parquet").exists() and found.unused == {}


def test_the_manifests_own_splits_are_left_alone(pictures: Path, tmp_path: Path) -> None:
    found = load(pictures, "train train val test")
    assert found.made is None and sizes(found) == {"train": 20, "val": 10, "test": 10}
    found.write_made(tmp_path / "split.parquet")
    assert not (tmp_path / "split.parquet").exists()


def test_rows_skipped_in_a_split_that_no_job_names_are_listed_too(tmp_path: Path) -> None:
    for number in range(39):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / f"{number:03d}.png")
    found = load(tmp_path, "train val test other", skip_missing=True)
    assert found.skipped == [] and [(row.image, row.split) for row in found.skipped_rows] == [("039.png", "other")]


def test_only_the_splits_that_are_wanted_are_made(pictures: Path) -> None:
    assert sizes(load(pictures, "", val_split=None)) == {"train": 36, "test": 4}
    assert sizes(load(pictures, "", test_split=None, val_split="dev")) == {"train": 36, "dev": 4}
    assert sizes(load(pictures, "", val_split=None, test_split=None)) == {"train": 40}
    whole = load(pictures, "", train_split=None, val_split=None, test_split=None)
    assert sizes(whole) == {"None": 40} and whole.made is None
    assert sizes(load(pictures, "", test_split="val")) == {"train": 36, "val": 4}  # one split for both


def test_train_rows_are_divided_where_that_is_asked_for(pictures: Path) -> None:
    found = load(pictures, "train train train val", split={"val": 0, "test": 0.3, "seed": 2})
    made = sizes(found)
    assert made["val"] == 10 and made["train"] + made["test"] == 30 and made["test"] >= 3
    assert found.made is not None and found.made.seed == 2


@pytest.mark.parametrize(
    ("splits", "data", "words"),
    [
        ("train", {}, "no row has split 'val' or 'test'; splits found: 'train'. To mend it, take what is missing from 'train'"),
        ("train", {}, "'data.split={val: 0.1, test: 0.1}'"),
        ("train validation", {"test_split": None}, "To mend it, name it (data.val_split=validation), or take what is missing from 'train'"),
        ("train val", {}, "'data.split={val: 0, test: 0.1}'"),
        ("train val", {"split": {}}, "data.split would make the split 'val', which the manifest has already; set its share to 0"),
        ("a b", {}, "no row has split 'train'; splits found: 'a', 'b'"),
    ],
)
def test_what_is_missing_is_named_with_what_would_mend_it(pictures: Path, splits: str, data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(pictures, splits, **data)
    assert words in str(caught.value)


def test_sizes_are_of_train_and_of_the_smallest_gallery(pictures: Path) -> None:
    found = load(pictures, "train train val test")
    assert (found.sizes().num_images, found.sizes().gallery) == (20, 10)
    alone = load(pictures, "train train", val_split=None, test_split=None)
    assert (alone.sizes().num_images, alone.sizes().gallery) == (40, 40)


@pytest.fixture
def source(small_world: SmallWorld, tmp_path: Path) -> Path:
    """The manifest of the small world, with a row of train and one of an unused split whose pictures are not there."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in small_world.manifest.read_text().splitlines()]
    rows.insert(1, {"image": "gone.png", "caption": "a picture that is not there", "split": "train"})
    rows.append({"image": "gone too.png", "caption": "nor is this", "split": "spare"})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "m.jsonl"


def test_rows_of_missing_pictures_are_left_out_where_asked(small_world: SmallWorld, source: Path, tmp_path: Path) -> None:
    data = {"data__source": str(source), "data__image_root": str(small_world.manifest.parent)}
    with pytest.raises(UserError, match="2 x missing file"):
        load_data(JobConfig.model_validate(small_world.record(tmp_path, **data)))
    splits = load_data(JobConfig.model_validate(small_world.record(tmp_path, **data, data__skip_missing=True)))
    plain = load_small(small_world.manifest)
    assert splits.train.sha256() == plain.sha256(), "what is left is what it was"
    assert [(row.where, row.image, row.split) for row in splits.skipped] == [(f"{source}:2", "gone.png", "train")]
    (told,) = [line for line in splits.reading_lines if line.startswith("rows ")]
    assert told.endswith("2 rows skipped: 2 x missing file")


def test_a_retention_set_too(small_world: SmallWorld, source: Path, tmp_path: Path) -> None:
    watch = {"name": "known", "source": str(source), "image_root": str(small_world.manifest.parent), "split": "train"}
    with pytest.raises(UserError, match="retention set 'known'"):
        load_data(JobConfig.model_validate(small_world.record(tmp_path, watch=[watch])))
    splits = load_data(JobConfig.model_validate(small_world.record(tmp_path, watch=[watch | {"skip_missing": True}])))
    assert [row.image for row in splits.skipped] == ["gone.png"] and splits.watch[0].reading_lines


def test_skipping_is_part_of_what_a_run_learns(small_world: SmallWorld, tmp_path: Path) -> None:
    for value in (False, True):
        assert learnt(JobConfig.model_validate(small_world.record(tmp_path, data__skip_missing=value)))["data.skip_missing"] is value


def test_rows_that_are_left_out_have_their_part_of_a_split_that_is_made(pictures: Path) -> None:
    """By the hash of the path, as the images that are there; so each is listed with its split, and the ids of a run's split are its own."""
    (pictures / "004.png").rename(pictures / "004.gone")
    try:
        found = load(pictures, "", skip_missing=True)
    finally:
        (pictures / "004.gone").rename(pictures / "004.png")
    assert [(row.image, row.split) for row in found.skipped] == [("004.png", "test")]
    assert found.test is not None and found.test.skipped == found.skipped
    assert list(found.test.image_ids) == ["021.png", "026.png", "028.png"]


def test_of_few_texts_the_gallery_is_the_number_of_different_ones(pictures: Path) -> None:
    found = load(pictures, "train train val test")
    assert found.sizes("different").gallery == 10
