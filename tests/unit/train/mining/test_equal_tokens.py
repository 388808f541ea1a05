"""Captions that are one to the model are never mined for one another: cut alike, or of nothing that the tokenizer knows."""

from pathlib import Path

import numpy as np
import pytest

from eval.dataset.caption_rule import keeping_marks
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.caption_tokens import CaptionTokens
from eval.encoder.checkpoint import load_siglip
from eval.manifest.manifest import ManifestImage
from eval.processes import Processes
from tests.small_job import SmallWorld, load
from train.config.mining import MiningConfig
from train.data.caption_pool import AdditionalCaptions, CaptionPool
from train.data.caption_texts import caption_lines
from train.data.splits import Splits
from train.mining.candidates import Retriever
from train.mining.mine import mine
from train.mining.refresh import rules_of

LONG = "a red circle at the left, a green square at the top, a blue bar at the right, number "
CASE = Path(__file__).parents[5] / "shared" / "cases" / "same_tokens_long" / "pairs.jsonl"


def long_captions(world: SmallWorld, *, group: str | None = None) -> RetrievalSet:
    """Four images whose captions differ behind the cut, and two that do not."""
    source = load(world.manifest)
    captions = [[LONG + str(number)] for number in range(4)] + [["one blue bar"], ["a white bar"]]
    groups = [group, group, None, None, None, None]
    images = [
        ManifestImage(f"i{number}", "train", Path(source.path(number)), None, number, groups[number], texts, "hand")
        for number, texts in enumerate(captions)
    ]
    return RetrievalSet(images, None, source="hand", split="train")


def mined_for(world: SmallWorld, pool: CaptionPool, **keys: object) -> tuple[list[set[str]], dict[str, int]]:
    model, inputs = load_siglip(world.base)
    config = MiningConfig.model_validate({"mine_every_steps": 1, "negatives_per_image": 6, "margin": None} | keys)
    table, report = mine(Retriever(model, inputs), pool, config)
    return [{pool.text(int(caption)) for caption in table.of(image)} for image in range(pool.dataset.num_images)], report.filtered_out


@pytest.mark.parametrize("form", ["columns", "images"])
def test_captions_cut_to_the_same_tokens_are_not_mined_for_one_another(small_world: SmallWorld, form: str) -> None:
    found, filtered = mined_for(small_world, CaptionPool(long_captions(small_world)), form=form)
    assert all(not any(text.startswith(LONG) for text in mined) for mined in found[:4])
    assert all("a white bar" in mined and "one blue bar" in mined for mined in found[:4])
    assert all(len([text for text in mined if text.startswith(LONG)]) > 0 for mined in found[4:])
    assert filtered["equal_tokens"] == 4 * 3 and filtered["known_positive"] == 6


def test_captions_of_the_group_and_of_the_pool_count_too(small_world: SmallWorld) -> None:
    """An image is not mined a caption of the tokens of any caption of its group; additional captions are compared as well."""
    pool = CaptionPool(long_captions(small_world, group="g"), AdditionalCaptions([LONG + "pool", "a black bar"], np.array([1, 2])))
    found, filtered = mined_for(small_world, pool)
    assert all(not any(text.startswith(LONG) for text in mined) and "a black bar" in mined for mined in found[:4])
    # Images 0 and 1 share both captions: two others and the pool's for each; images 2 and 3: three others and the pool's.
    assert filtered["equal_tokens"] == 2 * 3 + 2 * 4


def test_unknown_captions_are_not_mined_for_one_another(small_world: SmallWorld) -> None:
    data = load(small_world.manifest)
    captions = "\u72ac\u732b\u9ce5"
    rows = [ManifestImage(f"i{n}", "train", Path(data.path(n)), None, n, None, [text], "hand") for n, text in enumerate(captions)]
    found, filtered = mined_for(small_world, CaptionPool(RetrievalSet(rows, None, source="hand", split="train")))
    assert found == [set(), set(), set()] and filtered["equal_tokens"] == 6


def test_what_another_model_reads_alike_counts_too(small_world: SmallWorld) -> None:
    """A cross-encoder that learns from the table may be cut earlier: its keys are compared too."""
    data = load(small_world.manifest)
    pool = CaptionPool(data)
    pool.compare_tokens(np.arange(len(pool)), np.zeros(len(pool), dtype=np.int64))
    found, filtered = mined_for(small_world, pool)
    assert all(not mined for mined in found) and filtered["equal_tokens"] > 0


def test_the_tables_name_and_rows_stay_where_no_two_texts_share_tokens(small_world: SmallWorld) -> None:
    config, data = MiningConfig(mine_every_steps=1), load(small_world.manifest)
    plain, told, shared = CaptionPool(data), CaptionPool(data), CaptionPool(data)
    told.compare_tokens(data.caption_hash_C)  # equal exactly where the texts are
    shared.compare_tokens(np.zeros(len(data.captions), dtype=np.int64))
    assert rules_of(config, pool=plain) == rules_of(config, pool=told) == rules_of(config)
    assert rules_of(config, pool=shared) == rules_of(config) | {"equal_tokens": "never"}
    assert not told.has_tokens_of_positive(np.arange(3)[:, None], np.arange(len(told))[None]).any()
    assert rules_of(config, pool=CaptionPool(keeping_marks(data))) == rules_of(config) | {"digit_marks": "kept"}
    invisible = CaptionPool(data, AdditionalCaptions(["a red\u200b dog"], np.array([1])))
    assert rules_of(config, pool=invisible)["invisible"] == "dropped"


def test_a_run_says_what_is_cut_and_alike_before_its_first_step(small_world: SmallWorld) -> None:
    _, inputs = load_siglip(small_world.base)
    train, val = long_captions(small_world), load(small_world.manifest, "val")
    pool = CaptionPool(train)
    lines = caption_lines(Splits(train, val, None, {}), pool, inputs, Processes())
    assert pool.knows_tokens and pool.has_equal_tokens
    assert lines[0].startswith("texts     train: 4 captions are longer than the 12 tokens that the text tower reads, and cut, e.g. 'a red")
    assert lines[1].startswith("texts     train: 4 captions are of the same tokens as one of another text")
    assert any(line.startswith("texts     val: ") for line in lines[2:])


@pytest.mark.skipif(not CASE.exists(), reason="the shared cases are not there")
def test_the_shared_case(small_world: SmallWorld) -> None:
    _, inputs = load_siglip(small_world.base)
    data = load(CASE)
    read = CaptionTokens.of(inputs, data.captions)
    assert read.is_cut_C.all() and len(set(read.key_C.tolist())) == 1
    found, filtered = mined_for(small_world, CaptionPool(data))
    assert found == [set()] * 4 and filtered["equal_tokens"] == 12
