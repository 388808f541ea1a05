"""Stages that cannot be measured: each fault is made in a sound stage and must be named with its queries."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from eval.dataset.retrieval_set import RetrievalSet
from eval.dataset.truth import with_ground_truth
from eval.errors import UserError
from eval.manifest.manifest import ManifestImage
from eval.metrics.checks import pair_faults
from eval.metrics.evaluate import evaluate
from eval.search.ranking import DIRECTIONS, Ranking
from eval.search.stage import Stage
from tests.unit.eval.one_direction import search


def retrieval_set(num_images: int = 9, ids: Callable[[int], str] = "i{}".format) -> RetrievalSet:
    images = [
        ManifestImage(ids(n), "test", None, None, n, None, [f"caption {n} {m}" for m in range(1 + n % 3)], "") for n in range(num_images)
    ]
    return RetrievalSet(images, None, source="memory", split="test")


def stage(dataset: RetrievalSet, name: str = "base") -> Stage:
    generator = np.random.default_rng(0)
    images = generator.normal(size=(dataset.num_images, 8))
    captions = images[dataset.caption_image_C] + 0.5 * generator.normal(size=(dataset.num_captions, 8))
    images, captions = (np.float32(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (images, captions))
    sides = {"image_to_text": (images, captions), "text_to_image": (captions, images)}
    return Stage(name, {d: search(d, *sides[d], dataset.positives(d), 5) for d in DIRECTIONS})


def put(array: np.ndarray, rows: slice, column: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[rows, column] = value
    return changed


def refusal(dataset: RetrievalSet, *stages: Stage) -> str:
    with pytest.raises(UserError) as caught:
        evaluate(dataset, stages)
    return str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_must_be_finite(value: float) -> None:
    dataset = retrieval_set()
    told = refusal(dataset, changed(dataset, lambda r: replace(r, top_scores_QK=put(r.top_scores_QK, slice(2, 9), 1, value))))
    expected = f"7 queries have a score that is not a finite number, e.g. {list(dataset.caption_ids)[2:7]}; "
    assert f"stage 'base', text_to_image: {expected}" in told and "image_to_text" not in told


def changed(dataset: RetrievalSet, change: Callable[[Ranking], Ranking]) -> Stage:
    """A sound stage but for its rankings of images for captions."""
    sound = stage(dataset)
    return replace(sound, rankings={**sound.rankings, "text_to_image": change(sound.rankings["text_to_image"])})


@pytest.mark.parametrize("value", [-1, 9, 10**9])
def test_items_must_be_of_the_gallery(value: int) -> None:
    dataset = retrieval_set()
    told = refusal(dataset, changed(dataset, lambda r: replace(r, top_indices_QK=put(r.top_indices_QK, slice(1, 2), 4, value))))
    assert f"1 queries name an item outside the 9 of the gallery, e.g. {[dataset.caption_id(1)]}; rank the gallery of this split" in told


def test_an_item_stands_once_in_a_head() -> None:
    dataset = retrieval_set()
    told = refusal(dataset, changed(dataset, lambda r: replace(r, top_indices_QK=r.top_indices_QK[:, [0, 1, 2, 3, 1]])))
    assert f"{dataset.num_captions} queries have an item twice in their top K, e.g. {list(dataset.caption_ids)[:5]}" in told


def test_ranks_must_agree_with_the_head() -> None:
    """A rank within the head where the head holds another item; ranks of 0 and beyond the gallery."""
    dataset = retrieval_set()
    for shift in (lambda ranks: ranks % 5 + 1, lambda ranks: ranks * 0, lambda ranks: ranks + 9):
        told = refusal(dataset, changed(dataset, lambda r, shift=shift: replace(r, positive_ranks_P=shift(r.positive_ranks_P))))
        assert "have a relevant item at a rank where their top K holds another, or outside the gallery, e.g. [" in told


def test_every_stage_must_be_judged_by_the_truth_of_the_split() -> None:
    dataset = retrieval_set()
    wider = with_ground_truth(dataset, qrels={("i0", "i1#0"), ("i4", "i5#0")})
    told = refusal(dataset, stage(dataset), stage(wider, "wider"))
    expected = "stage 'wider', image_to_text: 2 queries were ranked by other relevant items than the split's, e.g. ['i0', 'i4']; measure"
    assert expected in told
    elsewhere = with_ground_truth(dataset, qrels={("i0", "i2#0"), ("i4", "i5#0")})  # as many right answers of each query, but others
    assert "1 queries were ranked by other relevant items than the split's, e.g. ['i0']" in refusal(wider, stage(elsewhere))
    evaluate(wider, [stage(wider)])


def test_shapes_and_directions_are_checked() -> None:
    dataset = retrieval_set()
    sound = stage(dataset).rankings
    swapped = Stage("s", {"image_to_text": sound["text_to_image"], "text_to_image": sound["image_to_text"]})
    assert "stage 's', image_to_text: it holds a ranking text_to_image" in refusal(dataset, swapped)
    told = refusal(dataset, changed(dataset, lambda r: replace(r, top_scores_QK=r.top_scores_QK[:, :3])))
    assert "items of shape (18, 5) and scores of shape (18, 3); expected (18, K) of both" in told
    told = refusal(
        dataset, changed(dataset, lambda r: replace(r, top_scores_QK=r.top_scores_QK[:, :0], top_indices_QK=r.top_indices_QK[:, :0]))
    )
    assert "K from 1" in told


def test_ids_that_stand_twice_are_named() -> None:
    dataset = retrieval_set(16, lambda number: f"i{number // 2:02d}")
    told = refusal(dataset, stage(dataset))
    assert "8 image id(s) are there twice, e.g. ['i00', 'i01', 'i02', 'i03', 'i04']; give each its own id" in told


def test_comparisons_that_say_nothing_are_refused() -> None:
    assert pair_faults([("b", "a"), ("b+blip", "b")], ["a", "b", "b+blip"]) == []
    faults = pair_faults([("a", "a"), ("b", "a"), ("b", "a"), ("z", "a")], ["a", "b"])
    assert [fault.split(",")[0].split(";")[0] for fault in faults] == [
        "no stage is called ['z']",
        "['a'] would be compared with itself",
        "[('b'",
    ]
    dataset = retrieval_set()
    with pytest.raises(UserError, match="comparisons: .'base'. would be compared with itself"):
        evaluate(dataset, [stage(dataset)], [("base", "base")])
