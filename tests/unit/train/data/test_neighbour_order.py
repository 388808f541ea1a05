"""train/data/neighbour_order.py: neighbours share batches, and every image comes once per epoch, for any process and order of steps."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage
from train.data.negatives import Negatives
from train.data.neighbour_order import NeighbourOrder, Neighbours, gather_neighbours
from train.data.order import BatchOrder

TEXTS = ["a dog", "A dog.", "a cat", "the CAT", "two birds", "an owl", "a fox"]


def dataset_of(images: list[tuple[list[str], str | None]]) -> RetrievalSet:
    """A split without images on disk."""
    rows = [
        ManifestImage(f"i{number:03d}", None, Path("none"), None, 0, group, list(words), "made")
        for number, (words, group) in enumerate(images)
    ]
    return RetrievalSet(rows, None, source="made", split=None)


def table_of(pairs: list[tuple[int, int]], num_images: int) -> Negatives:
    """A table of (image, caption) pairs, other columns are made up."""
    pairs = sorted(pairs)
    counts = np.bincount([image for image, _ in pairs], minlength=num_images)
    zeros = np.zeros(len(pairs), np.float32)
    captions = np.array([caption for _, caption in pairs], dtype=np.int64)
    return Negatives("made", np.concatenate([[0], np.cumsum(counts)]), captions, np.ones(len(pairs), np.int64), zeros, zeros)


def linked(links: set[tuple[int, int]], num_images: int) -> Neighbours:
    """Neighbours from undirected pairs."""
    both = sorted({pair for one, other in links if one != other for pair in ((one, other), (other, one))})
    counts = np.bincount([one for one, _ in both], minlength=num_images)
    return Neighbours(np.concatenate([[0], np.cumsum(counts)]), np.array([other for _, other in both], dtype=np.int64))


@st.composite
def split_and_pairs(draw: st.DrawFn) -> tuple[RetrievalSet, list[tuple[int, int]]]:
    words = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3)
    dataset = dataset_of(draw(st.lists(st.tuples(words, st.sampled_from([None, "g"])), min_size=1, max_size=6)))
    pair = st.tuples(st.integers(0, dataset.num_images - 1), st.integers(0, dataset.num_captions + 2))  # beyond: captions without an image
    return dataset, draw(st.lists(pair, max_size=20, unique=True))


@settings(max_examples=200, deadline=None)
@given(split_and_pairs())
def test_neighbours_own_what_was_mined_and_share_no_true_caption(made: tuple[RetrievalSet, list[tuple[int, int]]]) -> None:
    dataset, pairs = made
    groups = dataset.group_names() or [None] * dataset.num_images
    own = [
        {normalise(dataset.captions[c]) for c in np.flatnonzero(dataset.caption_image_C == image)} for image in range(dataset.num_images)
    ]
    true = [
        set().union(*(own[j] for j in range(dataset.num_images) if j == i or (groups[i] and groups[j] == groups[i])))
        for i in range(dataset.num_images)
    ]
    expected: set[tuple[int, int]] = set()
    for image, caption in pairs:
        if caption < dataset.num_captions:
            owner = int(dataset.caption_image_C[caption])
            if not own[owner] & true[image] and not own[image] & true[owner]:
                expected |= {(image, owner), (owner, image)}
    found = Neighbours.of_table(table_of(pairs, dataset.num_images), dataset)
    assert {(image, int(other)) for image in range(dataset.num_images) for other in found.of(image)} == expected
    assert len(found.images_E) == len(expected)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[np.ndarray, Neighbours, int]:
    num_images = draw(st.integers(2, 24))
    image = st.integers(0, num_images - 1)
    links = draw(st.sets(st.tuples(image, image), max_size=60))
    batch_size = draw(st.integers(1, num_images))
    due = draw(st.permutations(range(num_images)))[: draw(st.integers(1, num_images // batch_size)) * batch_size]
    return np.array(due), linked(links, num_images), batch_size


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_a_batch_grows_by_the_image_with_the_most_neighbours_in_it(made: tuple[np.ndarray, Neighbours, int]) -> None:
    due, neighbours, batch_size = made
    left, expected = due.tolist(), []
    for _ in range(len(due) // batch_size):
        batch: list[int] = []
        for _ in range(batch_size):
            batch.append(max(left, key=lambda image: len(set(neighbours.of(image).tolist()) & set(batch))))  # the first of equals
            left.remove(batch[-1])
        expected.append(batch)
    assert gather_neighbours(due, neighbours, batch_size).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(made=graphs(), seed=st.integers(0, 99), every=st.integers(1, 9), start=st.integers(0, 5))
def test_windows_have_the_images_of_the_plain_order(made: tuple[np.ndarray, Neighbours, int], seed: int, every: int, start: int) -> None:
    _, neighbours, batch_size = made
    base = BatchOrder(len(neighbours.offsets) - 1, batch_size, seed)
    for begin in range(start, start + 4 * every, every):
        window = range(begin + 1, begin + every + 1)
        straight, resumed = (NeighbourOrder(base, window, neighbours) for _ in range(2))
        assert {step: straight.images(step).tolist() for step in window} == {
            step: resumed.images(step).tolist() for step in reversed(window)
        }
        by_epoch: dict[int, list[int]] = {}
        for step in window:
            images = straight.images(step).tolist()
            assert len(images) == len(set(images)) == batch_size and straight.epoch(step) == base.epoch(step)
            by_epoch.setdefault(base.epoch(step), []).extend(images)
        for epoch, images in by_epoch.items():
            due = [image for step in window if base.epoch(step) == epoch for image in base.images(step).tolist()]
            assert sorted(images) == sorted(due)


def test_neighbours_meet_and_in_the_plain_order_they_do_not() -> None:
    clusters = np.random.default_rng(0).permutation(160).reshape(40, 4)
    links = {(int(one), int(other)) for row in clusters for one in row for other in row}
    order = NeighbourOrder(BatchOrder(160, 16, seed=5), range(11, 21), linked(links, 160))
    record = order.window_record()
    assert record["num_neighbour_pairs"] == 40 * 6
    assert record["share_met"] == 1.0 and record["share_met_plain"] < 0.3  # by chance 15 of 159 others
    assert all(order.step_record(step) == {"neighbours_per_image": 3.0} for step in range(11, 21))


def test_batches_are_shuffled_anew_in_each_window() -> None:
    """The batches composed first hold the most neighbours; they must not always come first."""
    neighbours = linked({(one, other) for one in range(8) for other in range(one)}, 40)
    places = set()
    for start in range(0, 100, 5):
        order = NeighbourOrder(BatchOrder(40, 8, seed=1), range(start + 1, start + 6), neighbours)
        records = [order.step_record(step)["neighbours_per_image"] for step in range(start + 1, start + 6)]
        places.add(int(np.argmax(records)))
    assert places == set(range(5))


def test_a_step_past_the_window_is_refused() -> None:
    order = NeighbourOrder(BatchOrder(40, 8, seed=1), range(5, 9), linked(set(), 40))
    for step in (4, 9):
        with pytest.raises(ValueError, match=f"step {step}: this table composes steps 5 to 8 only"):
            order.images(step)
