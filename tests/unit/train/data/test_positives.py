"""train/data/batches.py, and a step of the loss in which a cross-encoder's relabelled pairs are positives: against a plain double
loop."""

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from eval.encoder.encoder import image_features, text_features
from eval.processes import Processes
from tests.small_job import SmallWorld, load
from train.config.job import JobConfig
from train.data.batches import BatchBuilder, TruePairs
from train.data.caption_pool import AdditionalCaptions, CaptionPool
from train.data.negatives import Negatives
from train.data.order import BatchOrder
from train.loss.reference import pairwise_sigmoid_loss
from train.loss.sigmoid import Pairing, sigmoid_loss
from train.model.siglip import build_model, make_optimizer
from train.siglip.step import Stepper


def relabelled_table(pool: CaptionPool, pairs: list[tuple[int, int, bool]]) -> Negatives:
    """A table of (image, caption, relabelled), images ascending."""
    counts = np.bincount([image for image, _, _ in pairs], minlength=pool.dataset.num_images)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    zeros = np.zeros(len(pairs), np.float32)
    captions = np.array([caption for _, caption, _ in pairs])
    return Negatives("m", offsets, captions, np.ones(len(pairs), np.int64), zeros, zeros, zeros, np.array([sure for _, _, sure in pairs]))


def test_a_relabelled_pair_is_true_by_its_text_for_its_image_alone(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    pool = CaptionPool(dataset, AdditionalCaptions(["a fox", "The FOX"], np.array([1, 2])))
    fox, the_fox = len(pool) - 2, len(pool) - 1
    stranger = next(
        c for c in range(dataset.num_captions) if not dataset.is_positive(np.array([3, 4]), dataset.caption_hash_C[[c, c]]).any()
    )
    pairs = TruePairs(pool, relabelled_table(pool, [(3, fox, True), (3, stranger, True), (4, stranger, False)]))

    def contains(image: int, caption: int) -> bool:
        return bool(pairs.contains(np.array(image), np.array(caption)))

    assert contains(3, fox) and not contains(3, the_fox) and contains(3, stranger) and not contains(4, stranger) and not contains(4, fox)
    images, hashes = np.arange(dataset.num_images)[:, None], dataset.caption_hash_C[None, :]
    captions = np.arange(dataset.num_captions)[None, :]
    wider = pairs.contains(images, captions) & ~dataset.is_positive(images, hashes)
    same_text = dataset.caption_hash_C == dataset.caption_hash_C[stranger]
    assert np.array_equal(np.argwhere(wider), [(3, c) for c in np.flatnonzero(same_text)])
    assert np.array_equal(TruePairs(pool).contains(images, captions), dataset.is_positive(images, hashes))


@pytest.mark.parametrize("mined_scope", ["own", "all"])
def test_a_step_with_relabelled_pairs_and_captions_of_the_pool(small_world: SmallWorld, mined_scope: str) -> None:
    dataset = load(small_world.manifest)
    record: dict[str, Any] = {
        "name": "m", "model": {"base": str(small_world.base)}, "data": {"source": str(small_world.manifest)},
        "train": {"max_steps": 1, "batch_size": 8, "learning_rate": 1e-9, "eval_every_steps": 1, "checkpoint_every_steps": 1},
        "mining": {"mine_every_steps": 1, "weight": 0.7, "mined_scope": mined_scope},
    }  # fmt: skip
    config = JobConfig.model_validate(record)
    tuned = build_model(config.model, str(small_world.base), 0)
    tuned.siglip.double()
    order, pool = BatchOrder(dataset.num_images, 8, 0), CaptionPool(dataset, AdditionalCaptions(["a fox", "two owls"], np.array([1, 2])))
    batch_images = np.sort(order.images(1)).tolist()
    first_own = [int(dataset.caption_offsets[image]) for image in batch_images]
    rows = [(batch_images[0], len(pool) - 2, True), (batch_images[0], len(pool) - 1, False), (batch_images[1], first_own[5], True)]
    rows += [(batch_images[2], first_own[6], False), (batch_images[4], len(pool) - 2, False)]
    rows = [(i, c, sure) for i, c, sure in rows if not dataset.is_positive(np.array(i), pool.hash_C[c])]
    table = relabelled_table(pool, rows)
    stepper = Stepper(config, tuned, make_optimizer(tuned, config.train), dataset, Processes(), contextlib.nullcontext)
    stepper.true_pairs = TruePairs(pool, table)
    batch = BatchBuilder(pool, tuned.inputs, order, Processes(), negatives=table)[1]
    assert not isinstance(batch, Exception)
    with torch.no_grad():
        images = image_features(tuned.siglip, batch.pixels_b.double())
        texts = text_features(tuned.siglip, tuned.inputs.token_ids([pool.text(c) for c in range(len(pool))]))
        scale, bias = (float(value) for value in tuned.scale_and_bias())
    result = stepper.train_step(batch)
    relabelled = {(image, int(pool.hash_C[caption])) for image, caption, sure in rows if sure}

    def cost(place: int, caption: int) -> float:
        image, code = int(batch.images_b[place]), int(pool.hash_C[caption])
        logit = scale * float(images[place] @ texts[caption]) + bias
        true = bool(dataset.is_positive(np.array(image), np.array(code))) or (image, code) in relabelled
        return float(np.logaddexp(0, -logit if true else logit))

    in_batch = sum(cost(place, int(caption)) for place in range(8) for caption in batch.captions_c)
    places = {int(image): place for place, image in enumerate(batch.images_b)}
    facing = [(places[i], c) for i, c, _ in rows] if mined_scope == "own" else [(place, c) for place in range(8) for _, c, _ in rows]
    mined = sum(cost(place, caption) for place, caption in facing)
    assert result.num_mined == len(rows) >= 4
    assert (result.loss_in_batch, result.loss_mined) == pytest.approx((in_batch / 8, mined / 8), rel=1e-9)


def test_a_doubtful_pair_is_neither_positive_nor_negative(small_world: SmallWorld) -> None:
    """Doubtful pairs of a table, and near-duplicates where enabled, against a plain double loop over the other pairs."""
    dataset = load(small_world.manifest)
    pool = CaptionPool(dataset)
    draws = np.random.default_rng(0)
    images, captions = np.arange(12), draws.permutation(dataset.num_captions)[:20]
    doubtful_2D = np.stack([np.repeat(images, 2), draws.choice(captions, 24)])
    table = replace(relabelled_table(pool, [(3, int(captions[0]), False)]), doubtful_2D=doubtful_2D)
    for near in (False, True):
        known = TruePairs(pool, table, near_duplicates=near).of_batch(images, [captions])
        vectors = [torch.nn.functional.normalize(torch.from_numpy(draws.standard_normal((n, 6))), dim=1) for n in (12, 20)]
        one, other = (vector.clone().requires_grad_() for vector in vectors)
        scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (9.0, -4.0))
        sigmoid_loss(one, other, scale, bias, Pairing(known, (20,), 12, weight=1.0, block=5)).total.backward()
        positive = dataset.is_positive(images[:, None], dataset.caption_hash_C[captions][None])
        hashes = {(image, int(dataset.caption_hash_C[caption])) for image, caption in doubtful_2D.T.tolist()}
        left_out = np.array([[(image, int(dataset.caption_hash_C[caption])) in hashes for caption in captions] for image in images])
        if near:
            left_out |= pool.is_near_duplicate(images[:, None], captions[None])
        counted = torch.from_numpy(positive | ~left_out)
        assert (~counted).any()
        two, three = (vector.clone().requires_grad_() for vector in vectors)
        labels = torch.where(torch.from_numpy(positive), 1, torch.where(counted, -1, 0))
        pairwise_sigmoid_loss(9.0 * two @ three.T - 4.0, labels).backward()
        torch.testing.assert_close(one.grad, two.grad)
        torch.testing.assert_close(other.grad, three.grad)
