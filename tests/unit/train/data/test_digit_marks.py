"""A run whose tokenizer keeps punctuation tells "1.5 l" from "15 l": in its splits, its pool, and in what is mined."""

from pathlib import Path

import numpy as np
import pytest

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.manifest.manifest import ManifestImage
from tests.siglip2 import write_siglip2
from tests.small_job import SmallWorld, load
from train.config.evaluation import WatchConfig
from train.config.mining import MiningConfig
from train.data.caption_pool import AdditionalCaptions, CaptionPool
from train.data.splits import RetentionSet, Splits
from train.mining.candidates import Retriever
from train.mining.mine import mine


@pytest.fixture(scope="module")
def splits(small_world: SmallWorld) -> Splits:
    source = load(small_world.manifest)

    def split(name: str, *captions: str) -> RetrievalSet:
        images = [ManifestImage(f"i{n}", name, Path(source.path(n)), None, n, None, [text], "hand") for n, text in enumerate(captions)]
        return RetrievalSet(images, None, source="hand", split=name)

    watched = RetentionSet(WatchConfig(name="old", source="x"), split("old", "1.5 l"))
    pool = AdditionalCaptions(["1,5 l", "a mug"], np.array([1, 2]))
    return Splits(split("train", "1.5 l", "15 l"), split("val", "15 l"), None, {}, watch=[watched], additional=pool)


def mined(base: Path, splits: Splits) -> list[set[str]]:
    model, inputs = load_siglip(base)
    read = splits.as_read_by(inputs)
    pool = CaptionPool(read.train, read.additional)
    table, _ = mine(Retriever(model, inputs), pool, MiningConfig(mine_every_steps=1, margin=None))
    return [{pool.text(int(caption)) for caption in table.of(image)} for image in range(2)]


def test_siglip_reads_both_as_one(small_world: SmallWorld, splits: Splits) -> None:
    assert splits.as_read_by(load_siglip(small_world.base)[1]).all()[0] is splits.train
    assert mined(small_world.base, splits) == [{"a mug"}, {"a mug"}]


def test_siglip_2_tells_them_apart(splits: Splits, tmp_path: Path) -> None:
    base = write_siglip2(tmp_path / "siglip2", ["1.5 l", "15 l", "1,5 l", "a mug"] * 9)
    read = splits.as_read_by(load_siglip(base)[1])
    assert [each.keeps_marks for each in read.all()] == [True, True, True] and read.test is None
    assert [str(leak.num_shared_captions) for leak in read.leakages()] == ["1", "1"]  # 15 l of val, 1.5 l of the retention set
    assert mined(base, splits) == [{"15 l", "1,5 l", "a mug"}, {"1.5 l", "1,5 l", "a mug"}]
