"""data.expand: additional positive captions follow an image's own, are positives everywhere, and are refused early when unusable."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.captions import caption_hash, normalise
from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.manifest.manifest import read_manifest
from tests.small_job import SmallWorld, load
from tests.small_reranker_job import RerankerWorld
from train.config.job import JobConfig
from train.config.reranker import RerankerConfig
from train.data.caption_pool import CaptionPool
from train.data.extra_captions import expanded, parse_expansions
from train.data.order import chosen_caption
from train.data.splits import Splits, load_data
from train.reranker.job import load_reranker_data

DISCS = "circle: disc, round thing\nsquare: box\n"


def splits_of(small_world: SmallWorld, folder: Path, *expand: str, **changes: Any) -> Splits:
    return load_data(JobConfig.model_validate(small_world.record(folder, data__expand=list(expand), **changes)))


def dictionary(folder: Path, content: str = DISCS) -> str:
    (folder / "d.txt").write_text(content)
    return f"synonyms:{folder / 'd.txt'}"


def own_captions(dataset: Any, image: int) -> list[str]:
    return list(dataset.captions[int(dataset.caption_offsets[image]) : int(dataset.caption_offsets[image + 1])])


def test_additional_captions_follow_an_images_own(small_world: SmallWorld, tmp_path: Path) -> None:
    plain, splits = load(small_world.manifest), splits_of(small_world, tmp_path, dictionary(tmp_path))
    num_added, num_images = 0, 0
    for image in range(plain.num_images):
        own, both = own_captions(plain, image), own_captions(splits.train, image)
        assert both[: len(own)] == own
        expected = dict.fromkeys(
            normalise(caption.replace(word, synonym))
            for caption in own
            for word, synonyms in (("circle", ("disc", "round thing")), ("square", ("box",)))
            for synonym in synonyms
            if word in caption
        )
        assert [normalise(caption) for caption in both[len(own) :]] == list(expected)
        num_added, num_images = num_added + len(expected), num_images + bool(expected)
    assert num_images > 10
    assert splits.expand_lines == [
        f"expand    {num_added:,} additional captions for {num_images:,} images by synonyms:{tmp_path / 'd.txt'}"
    ]
    assert list(splits.train.image_ids) == list(plain.image_ids) and np.array_equal(splits.train.group_I, plain.group_I)
    assert splits.train.sha256() != plain.sha256()
    for split, name in ((splits.val, "val"), (splits.test, "test")):
        assert split is not None and split.sha256() == load(small_world.manifest, name).sha256()


def test_they_are_true_of_the_image_and_of_its_group(small_world: SmallWorld, tmp_path: Path) -> None:
    train = splits_of(small_world, tmp_path, dictionary(tmp_path)).train
    plain = load(small_world.manifest)
    for image in range(train.num_images):
        for caption in own_captions(train, image)[len(own_captions(plain, image)) :]:
            mates = np.flatnonzero(train.group_I == train.group_I[image])
            assert train.is_positive(mates, np.full(len(mates), caption_hash(caption))).all()
    drawn = {chosen_caption(train, 0, epoch, seed=3) for epoch in range(len(own_captions(train, 0)))}
    assert drawn == set(range(int(train.caption_offsets[0]), int(train.caption_offsets[1])))  # the epochs cycle through all of them


def test_the_hash_of_the_data_covers_them(small_world: SmallWorld, tmp_path: Path) -> None:
    hashes = {
        CaptionPool(splits_of(small_world, tmp_path, *asked).train).data_sha256
        for asked in ([], [dictionary(tmp_path)], [dictionary(tmp_path), "templates"])
    }
    assert len(hashes) == 3


def test_leakage_counts_them(tmp_path: Path) -> None:
    rows = [("a", "a red circle", "train"), ("b", "a blue bar", "train"), ("c", "a red disc", "val"), ("d", "a bar", "val")]
    for name, *_ in rows:
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    path = tmp_path / "m.jsonl"
    path.write_text(
        "".join(json.dumps({"image": f"{name}.png", "caption": caption, "split": split}) + "\n" for name, caption, split in rows)
    )
    world = SmallWorld(path, tmp_path)
    shared = {"train__batch_size": 2, "data__test_split": None, "mining": None}
    (without,), (found,) = (splits_of(world, tmp_path, *asked, **shared).leakages() for asked in ([], [dictionary(tmp_path)]))
    assert (without.num_shared_captions, found.num_shared_captions, found.example_captions) == (0, 1, ["a red disc"])


def test_a_repeated_expansion_is_added_once(small_world: SmallWorld, tmp_path: Path) -> None:
    ids = list(load(small_world.manifest).image_ids)
    own = own_captions(load(small_world.manifest), 1)
    (tmp_path / "c.jsonl").write_text(json.dumps({"image": ids[1], "captions": ["Something new.", own[0].upper(), "something NEW"]}) + "\n")
    asked = f"captions:{tmp_path / 'c.jsonl'}"
    splits = splits_of(small_world, tmp_path, asked, asked)
    assert own_captions(splits.train, 1) == [*own, "Something new."]
    assert [line.split()[1] for line in splits.expand_lines] == ["1", "0"]


def test_other_columns_stay_aligned_with_the_captions(small_world: SmallWorld, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in small_world.manifest.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"said": [f"saying {number}"], "kind": f"kind {number}"}
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"data__source": str(path), "data__image_root": str(small_world.manifest.parent), "evaluation__slice_by": ["kind"]}
    train = splits_of(small_world, tmp_path, "column:said", **shared).train
    assert len(train.columns["kind"]) == len(train.texts["said"]) == train.num_captions
    for image in range(train.num_images):
        start, end = int(train.caption_offsets[image]), int(train.caption_offsets[image + 1])
        assert len(set(train.columns["kind"][start:end])) == 1
        assert (
            train.columns["kind"][start].replace("kind", "saying") in train.captions[start:end]
        )  # and those of images that share a caption with it


def test_a_reranker_learns_from_them_too(reranker_world: RerankerWorld, tmp_path: Path) -> None:
    config = RerankerConfig.model_validate(reranker_world.record(tmp_path, data__expand=[dictionary(tmp_path)]))
    splits = load_reranker_data(config)
    assert splits.train.num_captions > load(reranker_world.manifest).num_captions and len(splits.expand_lines) == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["crops"], "crops: expected an expansion of texts, found views of images"),
        (["synonyms:nowhere.txt", "nonsense"], "data.expand: nonsense: expected one of"),
        (["column:said"], "texts of 'said' were asked for"),
    ],
)
def test_what_cannot_be_used_is_refused(small_world: SmallWorld, tmp_path: Path, asked: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        splits_of(small_world, tmp_path, *asked)
    assert words in str(caught.value) and "--expand" not in str(caught.value)
    assert "nowhere.txt" in str(caught.value) or len(asked) == 1  # both are named at once


def test_an_expansion_that_adds_nothing_to_train_is_refused(small_world: SmallWorld, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^data.expand: synonyms:.*no caption of .* holds any of its 1 entries"):
        splits_of(small_world, tmp_path, dictionary(tmp_path, "walrus: sea cow\n"))


def test_the_expansions_of_a_caption_go_to_every_image_that_has_it(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    rows = [("a", "A red bus!", ["a crimson bus"]), ("b", "a red bus", []), ("c", "a blue bus", [])]
    for name, _, _ in rows:
        picture.save(tmp_path / f"{name}.png")
    manifest = tmp_path / "pairs.jsonl"
    lines = [{"image": f"{name}.png", "id": name, "captions": [caption], "said": said} for name, caption, said in rows]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = read_manifest(manifest, keep=["said"])
    train, told = expanded(read, None, load_split(read, None), parse_expansions(["column:said"]))
    crimson = np.full(3, caption_hash("a crimson bus"))
    assert train.is_positive(np.arange(3), crimson).tolist() == [True, True, False]
    assert told == ["expand    2 additional captions for 2 images by column:said"]
