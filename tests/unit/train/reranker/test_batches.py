"""train/reranker/batches.py: which pairs a step has, whatever the number of processes; a true pair is never called false."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.dataset.images import ImageError
from eval.processes import Processes
from tests.small_job import load
from tests.small_reranker_job import RerankerWorld
from train.config.reranker import CrossEncoderConfig, NegativesConfig
from train.data.caption_pool import CaptionPool
from train.data.hard_image_order import HardImages
from train.data.negatives import Negatives
from train.data.order import BatchOrder, chosen_caption
from train.reranker.batches import HardTables, MatchBatch, MatchBatches, PairKind
from train.reranker.model import MatchInputs, build_cross_encoder

BATCH = 8


@pytest.fixture(scope="module")
def pool(reranker_world: RerankerWorld) -> CaptionPool:
    return CaptionPool(load(reranker_world.manifest))


@pytest.fixture(scope="module")
def inputs(reranker_world: RerankerWorld) -> MatchInputs:
    return build_cross_encoder(CrossEncoderConfig(base=str(reranker_world.blip)), 0).inputs


@lru_cache
def tables(pool: CaptionPool, most: int = 4, every: int = 1) -> tuple[Negatives, HardImages]:
    """Of each image (of every so many) some captions that are not true of it, no text twice, and the same turned round; not mined."""
    dataset = pool.dataset
    rows = []
    for image in range(dataset.num_images):
        false = np.flatnonzero(~dataset.is_positive(np.array(image), pool.hash_C))
        texts = np.unique(pool.hash_C[false], return_index=True)[1]
        rows.append(np.sort(false[texts])[image % 5 :: 7][:most] if image % every == 0 else [])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    found = np.concatenate(rows).astype(np.int64)
    zeros = np.zeros(len(found), np.float32)
    table = Negatives("made", offsets, found, np.ones(len(found), np.int64), zeros, zeros)
    return table, HardImages.of_table(table, dataset.num_captions)


def build(pool: CaptionPool, inputs: MatchInputs, step: int, *, rank: int = 0, world: int = 1, every: int = 1, **config: int) -> MatchBatch:
    captions, images = tables(pool, every=every)
    order = BatchOrder(pool.dataset.num_images, BATCH, 5)
    negatives = NegativesConfig(**{"captions_per_image": 2, "images_per_caption": 1, "drawn_from": 4} | config)
    builder = MatchBatches(pool, inputs, order, Processes(rank, world), negatives, HardTables(captions, images))
    batch = builder[step]
    assert isinstance(batch, MatchBatch)
    return batch


def pairs(batch: MatchBatch) -> list[tuple[int, int, int]]:
    """(image, caption, kind) of every pair."""
    images = batch.images_p[batch.pictures_N]
    return list(zip(images.tolist(), batch.captions_N.tolist(), batch.kinds_N.tolist(), strict=True))


@pytest.mark.parametrize("step", range(1, 8))
@pytest.mark.parametrize("config", [{}, {"easy_until_step": 9}, {"fill_with_easy": True, "captions_per_image": 4}], ids=str)
def test_what_is_called_true_is_true_and_what_is_called_false_is_not(
    pool: CaptionPool, inputs: MatchInputs, step: int, config: dict[str, int]
) -> None:
    batch = build(pool, inputs, step, every=2, **config)
    for image, caption, kind in pairs(batch):
        assert pool.dataset.is_positive(np.array(image), pool.hash_C[caption]) == (kind == PairKind.TRUE)
    assert batch.labels_N.sum() == BATCH
    keys = [
        (owner, int(pool.hash_C[caption]), image) for owner, (image, caption, _) in zip(batch.owners_N.tolist(), pairs(batch), strict=True)
    ]
    assert len(set(keys)) == len(keys)  # of one image no text twice


def test_the_true_caption_is_the_one_whose_turn_it_is(pool: CaptionPool, inputs: MatchInputs) -> None:
    order = BatchOrder(pool.dataset.num_images, BATCH, 5)
    for step in (1, 6, 11):
        batch = build(pool, inputs, step)
        said = [(image, caption) for image, caption, kind in pairs(batch) if kind == PairKind.TRUE]
        assert said == [(int(i), chosen_caption(pool.dataset, int(i), order.epoch(step), 5)) for i in order.images(step)]


def test_hard_ones_come_from_the_tables_and_are_drawn_anew_in_each_epoch(pool: CaptionPool, inputs: MatchInputs) -> None:
    captions, images = tables(pool)
    seen: dict[int, set[tuple[int, ...]]] = {}
    for step in range(1, 26):
        batch = build(pool, inputs, step)
        for owner in range(BATCH):
            of_owner = [pair for pair, whose in zip(pairs(batch), batch.owners_N.tolist(), strict=True) if whose == owner]
            (image, spoken, _), *others = of_owner
            hard = tuple(sorted(caption for _, caption, kind in others if kind == PairKind.HARD_CAPTION))
            assert set(hard) <= set(captions.of(image).tolist()) and len(hard) == 2
            assert {i for i, _, kind in others if kind == PairKind.HARD_IMAGE} <= set(images.of(spoken).tolist())
            assert all(caption == spoken for _, caption, kind in others if kind == PairKind.HARD_IMAGE)
            seen.setdefault(image, set()).add(hard)
    assert max(len(found) for found in seen.values()) > 2  # in five epochs, of 6 ways to draw 2 of 4


@pytest.mark.parametrize("config", [{}, {"easy_until_step": 9}, {"fill_with_easy": True}], ids=str)
def test_two_processes_have_the_pairs_of_one(pool: CaptionPool, inputs: MatchInputs, config: dict[str, int]) -> None:
    for step in (1, 4):
        one = build(pool, inputs, step, every=3, **config)
        halves = [build(pool, inputs, step, rank=rank, world=2, every=3, **config) for rank in (0, 1)]
        assert pairs(halves[0]) + pairs(halves[1]) == pairs(one)
        assert halves[0].shortfall + halves[1].shortfall == one.shortfall


def test_a_shortfall_stays_or_is_filled_with_easy_ones_and_either_is_counted(pool: CaptionPool, inputs: MatchInputs) -> None:
    short = build(pool, inputs, 1, every=2, images_per_caption=0)
    without = [image for image in short.images_p.tolist()[:BATCH] if image % 2]
    assert without and short.shortfall == 2 * len(without)
    assert len(short.kinds_N) == BATCH * 3 - short.shortfall
    filled = build(pool, inputs, 1, every=2, images_per_caption=0, fill_with_easy=True)
    assert filled.shortfall == 0 and int((filled.kinds_N == PairKind.EASY).sum()) == short.shortfall
    assert not (short.kinds_N == PairKind.EASY).any()


def test_easy_ones_first(pool: CaptionPool, inputs: MatchInputs) -> None:
    first, later = (build(pool, inputs, step, easy_until_step=3) for step in (3, 4))
    assert set(first.kinds_N.tolist()) == {PairKind.TRUE, PairKind.EASY}
    assert PairKind.EASY not in set(later.kinds_N.tolist())


def test_parts_hold_every_pair_once_with_the_pictures_it_needs(pool: CaptionPool, inputs: MatchInputs) -> None:
    batch = build(pool, inputs, 2)
    parts = list(batch.parts(3))
    assert [pair for part in parts for pair in pairs(part)] == pairs(batch)
    for part in parts:
        assert set(part.pictures_N.tolist()) == set(range(len(part.images_p)))
        places = [batch.images_p.tolist().index(image) for image in part.images_p.tolist()]
        assert torch.equal(part.pixels_p, batch.pixels_p[places])
        assert part.mask_NL.any(dim=0).all()  # no column of padding alone
    assert [pair for part in batch.parts(None) for pair in pairs(part)] == pairs(batch)


def test_rows_of_tokens_are_what_the_scorer_reads(pool: CaptionPool, inputs: MatchInputs) -> None:
    batch = build(pool, inputs, 1)
    for row, mask, caption in zip(batch.token_ids_NL, batch.mask_NL, batch.captions_N.tolist(), strict=True):
        (expected,) = inputs.token_ids([pool.text(caption)])
        assert tuple(row[mask.bool()].tolist()) == expected and expected[0] == inputs.checkpoint.enc_token_id
        assert set(row[~mask.bool()].tolist()) <= {inputs.pad_token_id}


def test_a_hard_image_that_does_not_decode_is_left_out_and_named(tmp_path: Path, inputs: MatchInputs) -> None:
    from tests.small_job import write_pictures

    manifest = write_pictures(tmp_path)
    own = CaptionPool(load(manifest))
    whole = BatchOrder(own.dataset.num_images, BATCH, 5).images(1)
    batch = build(own, inputs, 1)
    hard = [image for image, _, kind in pairs(batch) if kind == PairKind.HARD_IMAGE and image not in whole]
    (tmp_path / "pictures" / f"train-{hard[0]:03d}.png").write_bytes(b"no picture")
    damaged = build(CaptionPool(load(manifest)), inputs, 1)
    gone = [pair for pair in pairs(batch) if pair not in pairs(damaged)]
    assert gone and all(image == hard[0] for image, _, _ in gone)
    assert damaged.shortfall == batch.shortfall + len(gone)
    assert len(damaged.undecodable) == len(gone) and "left out" in damaged.undecodable[0].message


def test_when_nothing_decodes_the_error_is_handed_over(tmp_path: Path, inputs: MatchInputs) -> None:
    from tests.small_job import write_pictures

    manifest = write_pictures(tmp_path)
    for path in (tmp_path / "pictures").glob("train-*.png"):
        path.write_bytes(b"no picture")
    pool = CaptionPool(load(manifest))
    order = BatchOrder(pool.dataset.num_images, BATCH, 5)
    captions, images = tables(pool)
    builder = MatchBatches(pool, inputs, order, Processes(), NegativesConfig(), HardTables(captions, images))
    assert isinstance(builder[1], ImageError)


def test_what_the_matcher_calls_a_match_is_no_easy_negative(pool: CaptionPool, inputs: MatchInputs) -> None:
    table, _ = tables(pool)
    order, config = BatchOrder(pool.dataset.num_images, BATCH, 5), NegativesConfig(captions_per_image=3, drawn_from=4, easy_until_step=9)

    def easy(negatives: Negatives) -> set[tuple[int, int]]:
        batch = MatchBatches(pool, inputs, order, Processes(), config, HardTables(negatives, None))[1]
        assert isinstance(batch, MatchBatch)
        return {(image, int(pool.hash_C[caption])) for image, caption, kind in pairs(batch) if kind == PairKind.EASY}

    before = easy(table)
    called = sorted(before)[::2]
    captions = [int(np.flatnonzero(pool.hash_C == text)[0]) for _, text in called]
    after = easy(replace(table, doubtful_2D=np.array([[image for image, _ in called], captions])))
    assert called and not after & set(called) and after >= before - set(called)


@pytest.mark.parametrize("size", [1, 3])
def test_the_parts_that_workers_send_make_the_batch(
    pool: CaptionPool, inputs: MatchInputs, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A hard image that two parts bring, or that is an image of the step, is there once; captions are padded to the longest of all."""
    config = {"images_per_caption": 3, "fill_with_easy": True, "captions_per_image": 4}
    for step in range(1, 6):
        monkeypatch.setattr("train.data.batches.PART", 32)
        whole = build(pool, inputs, step, **config)
        assert len(whole.images_p) > BATCH
        monkeypatch.setattr("train.data.batches.PART", size)
        for name, value in vars(build(pool, inputs, step, **config)).items():
            expected = getattr(whole, name)
            assert torch.equal(value, expected) if isinstance(value, torch.Tensor) else value == expected, name
