"""The committed data: disjoint splits, captions true of what they should be, and the same again when made anew."""

import io
from collections import Counter

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from demo.make_data import DATA
from demo.manifest import Row, build_manifest, normalised
from demo.scenes import Scene, neighbours
from demo.truth import full_claims
from tests.unit.demo.demo_reading import DrawnScenes, read


@pytest.fixture(scope="module")
def committed() -> list[dict]:
    return pyarrow.parquet.read_table(DATA / "scenes.parquet").to_pylist()


@pytest.fixture(scope="module")
def made() -> list[Row]:
    return build_manifest()


def of_split(rows: list[dict], split: str) -> list[dict]:
    return [row for row in rows if row["split"] == split]


def test_sizes(committed: list[dict]) -> None:
    images = Counter(row["split"] for row in committed)
    assert images["val"] == 200 and images["test"] == 300 and 1800 <= images["train"] <= 2200
    assert all(3 <= len(row["captions"]) <= 5 for row in committed)
    assert len({row["id"] for row in committed}) == len(committed)
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 3_000_000


def test_splits_share_no_meaning_and_no_text(committed: list[dict]) -> None:
    readings: dict[str, set] = {}
    texts: dict[str, set[str]] = {}
    scenes: dict[str, set[str]] = {}
    for row in committed:
        scenes.setdefault(row["split"], set()).add(row["scene"])
        texts.setdefault(row["split"], set()).update(map(normalised, row["captions"]))
        # The first caption is complete: what it says is the scene, whatever its words.
        readings.setdefault(row["split"], set()).add(read(row["captions"][0]))
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        for shared in (scenes, texts, readings):
            assert not shared[first] & shared[second]


def test_all_scenes_are_of_the_world_that_pre_training_never_draws(committed: list[dict]) -> None:
    assert {Scene.from_key(row["scene"]).world for row in committed} == {"job"}


@pytest.mark.parametrize("split", ["val", "test"])
def test_each_caption_of_val_and_test_is_true_of_its_own_scene_only(committed: list[dict], split: str) -> None:
    rows = of_split(committed, split)
    assert len({row["scene"] for row in rows}) == len(rows), "each scene is drawn once"
    drawn = DrawnScenes([Scene.from_key(row["scene"]) for row in rows])
    for number, row in enumerate(rows):
        for text in row["captions"]:
            assert drawn.where_true(read(text)).nonzero()[0].tolist() == [number], text


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_near_duplicates_abound(committed: list[dict], split: str) -> None:
    scenes = {row["scene"] for row in of_split(committed, split)}
    num_with_neighbour = sum(any(other.key in scenes for other in neighbours(Scene.from_key(key))) for key in scenes)
    assert num_with_neighbour / len(scenes) > 0.9


def test_train_repeats_scenes_and_leaves_attributes_out(committed: list[dict], made: list[Row]) -> None:
    drawings = Counter(row["scene"] for row in of_split(committed, "train"))
    assert set(drawings.values()) == {1, 2, 3, 4}
    said = [claims == full_claims(row.scene) for row in made if row.split == "train" for claims in row.claims]
    assert 0.15 < 1 - np.mean(said) < 0.45


def test_made_anew_equals_what_is_committed(committed: list[dict], made: list[Row]) -> None:
    kept = [(row["id"], row["split"], row["scene"], tuple(row["captions"])) for row in committed]
    assert kept == [(row.id, row.split, row.scene.key, row.captions) for row in made]
    # Another Pillow may round an edge otherwise; the picture stays.
    for old, new in list(zip(committed, made, strict=True))[::25]:
        with Image.open(io.BytesIO(old["image"]["bytes"])) as picture:
            difference = np.abs(np.asarray(picture.convert("RGB"), dtype=int) - np.asarray(new.image, dtype=int))
        assert difference.mean() < 1, old["id"]


def test_qrels_hold_every_unstated_truth_and_nothing_else(committed: list[dict]) -> None:
    rows = of_split(committed, "train")
    keys = sorted({row["scene"] for row in rows})
    drawn = DrawnScenes([Scene.from_key(key) for key in keys])
    stated = {key: {normalised(text) for row in rows if row["scene"] == key for text in row["captions"]} for key in keys}
    images_of = {key: [row["id"] for row in rows if row["scene"] == key] for key in keys}
    true_in: dict[object, list[str]] = {}
    expected = set()
    for row in rows:
        for place, text in enumerate(row["captions"]):
            reading = read(text)
            if reading not in true_in:
                true_in[reading] = [keys[number] for number in drawn.where_true(reading).nonzero()[0]]
            assert row["scene"] in true_in[reading]
            for key in true_in[reading]:
                if normalised(text) not in stated[key]:
                    expected |= {(image_id, f"{row['id']}#{place}") for image_id in images_of[key]}
    lines = [line.split(" ") for line in (DATA / "train.qrels").read_text(encoding="utf-8").splitlines()]
    assert all(len(line) == 4 and line[1] == "0" and line[3] == "1" for line in lines)
    assert len(lines) == len(expected) > 1000
    assert {(line[0], line[2]) for line in lines} == expected


def test_datasets_decodes_the_images() -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_parquet(str(DATA / "scenes.parquet"), keep_in_memory=True)
    first = table[0]
    assert first["image"].size == (64, 64) and isinstance(first["captions"], list)
