"""train/data/hard_image_order.py: every image is an anchor once per epoch, with its caption's hardest images, and no image is in a
batch twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_job import SmallWorld, load
from train.data.hard_image_order import AnchorOrder, HardImageOrder, HardImages, compose_anchored
from train.data.negatives import Negatives
from train.data.order import BatchOrder, chosen_caption


@settings(max_examples=200, deadline=None)
@given(
    num_images=st.integers(2, 40),
    batch_size=st.integers(2, 40),
    per_caption=st.integers(1, 39),
    start=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_every_image_is_an_anchor_once_per_epoch_but_the_rest(
    num_images: int, batch_size: int, per_caption: int, start: int, seed: int
) -> None:
    base = BatchOrder(num_images, min(batch_size, num_images), seed)
    order = AnchorOrder(base, start, max(1, base.batch_size // (1 + per_caption)))
    by_epoch: dict[int, list[int]] = {}
    steps = range(1, start + 3 * order.steps_per_epoch + 1)
    for step in steps:
        anchors = order.images(step).tolist()
        assert anchors == base.images(step).tolist() if step <= start else len(anchors) == order.num_anchors
        by_epoch.setdefault(order.epoch(step), []).extend(anchors)
        following = order.following(step, num_images).tolist()
        assert sorted(anchors + following) == list(range(num_images))
        if step > start and order.epoch(step + 1) == order.epoch(step):
            assert order.images(step + 1).tolist() == following[: order.num_anchors]
    assert list(by_epoch) == list(range(len(by_epoch)))  # epochs come one after the other, none is skipped
    for epoch, anchors in by_epoch.items():
        assert len(anchors) == len(set(anchors))
        assert anchors == base.permutation(epoch)[: len(anchors)].tolist()
        if epoch == base.epoch(start + 1) and start:
            assert num_images - len(anchors) < order.num_anchors  # the epoch of start_step continues where it was
        elif epoch < len(by_epoch) - 1 and epoch > base.epoch(start + 1):
            assert len(anchors) == order.steps_per_epoch * order.num_anchors


def test_epochs_are_counted_in_anchors() -> None:
    order = AnchorOrder(BatchOrder(40, 8, 0), 10, 2)
    assert (order.num_epochs(5), order.num_epochs(10), order.num_epochs(30)) == (1.0, 2.0, 3.0)


@st.composite
def parts(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, int]:
    batch_size = draw(st.integers(2, 16))
    per_anchor = draw(st.integers(1, batch_size - 1))
    order = np.array(draw(st.permutations(range(batch_size + draw(st.integers(0, 10))))))
    anchors = order[: batch_size // (1 + per_anchor)]
    image = st.integers(0, len(order) - 1)
    hard = [np.array(draw(st.lists(image, max_size=per_anchor, unique=True)), dtype=np.int64) for _ in anchors]
    return anchors, hard, order[len(anchors) :], batch_size


@settings(max_examples=300, deadline=None)
@given(parts())
def test_anchors_then_their_hard_images_then_the_next_of_the_order(made: tuple[np.ndarray, list[np.ndarray], np.ndarray, int]) -> None:
    anchors, hard, following, batch_size = made
    expected = anchors.tolist()
    for row in hard:
        expected += [image for image in row.tolist() if image not in expected]
    num_hard = len(expected) - len(anchors)
    expected += [image for image in following.tolist() if image not in expected][: batch_size - len(expected)]
    images, found_hard = compose_anchored(anchors, hard, following, batch_size)
    assert images.tolist() == expected and images.dtype == np.int64
    assert len(set(expected)) == batch_size and found_hard == num_hard


def mined(num_images: int, num_captions: int, per_caption: int, seed: int = 0) -> tuple[Negatives, dict[int, list[int]]]:
    """A table of up to per_caption images for each caption, and the same as a dictionary, hardest first."""
    draws = np.random.default_rng(seed)
    hard = {caption: draws.permutation(num_images)[: draws.integers(0, per_caption + 1)].tolist() for caption in range(num_captions)}
    rows = sorted((image, caption, rank) for caption, images in hard.items() for rank, image in enumerate(images, 1))
    images, captions, ranks = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(images, minlength=num_images))])
    return Negatives("made", offsets, captions, ranks, *(np.zeros(len(rows), np.float32),) * 2), hard


def test_a_table_by_caption_is_the_table_by_image() -> None:
    table, hard = mined(12, 30, 4)
    found = HardImages.of_table(table, 30)
    assert {caption: found.of(caption).tolist() for caption in range(30)} == hard


def test_the_hard_images_of_each_anchors_caption_are_with_it(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    table, hard = mined(dataset.num_images, dataset.num_captions, 3)
    anchors = AnchorOrder(BatchOrder(dataset.num_images, 8, 5), 2, 2)
    order = HardImageOrder(anchors, dataset, HardImages.of_table(table, dataset.num_captions))
    assert order.images(2).tolist() == anchors.base.images(2).tolist()
    assert order.step_record(2) == {"num_seeds": 8, "num_hard_images": 0, "num_filled": 0}
    for step in range(3, 60):
        images, num_hard = order.batch(step)
        assert images[:2].tolist() == anchors.images(step).tolist() and len(set(images.tolist())) == 8
        wanted = {image for anchor in images[:2] for image in hard[chosen_caption(dataset, int(anchor), order.epoch(step), 5)]}
        assert set(images[2 : 2 + num_hard].tolist()) == wanted - set(images[:2].tolist())
        assert sum(order.step_record(step).values()) == 8
    assert order.window_record() == {"num_seeds": 2, "steps_per_epoch": 20}


def test_where_nothing_was_mined_a_batch_is_the_next_images_of_the_order(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    base = BatchOrder(dataset.num_images, 8, 5)
    nothing = HardImages(np.zeros(dataset.num_captions + 1, np.int64), np.empty(0, np.int64))
    order = HardImageOrder(AnchorOrder(base, 0, 2), dataset, nothing)
    assert order.images(3).tolist() == base.permutation(0)[4:12].tolist()
    assert order.images(20).tolist() == [*base.permutation(0)[38:40], *base.permutation(0)[:6]]  # after its end the order starts again


def test_without_a_table_no_step_after_start_step_has_a_batch(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    order = HardImageOrder(AnchorOrder(BatchOrder(dataset.num_images, 8, 5), 2, 2), dataset, None)
    assert len(order.images(2)) == 8
    with pytest.raises(ValueError, match="step 3 needs hard images"):
        order.images(3)
