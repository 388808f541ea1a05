"""Which queries are shown, on ranks made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage
from eval.metrics.failures import MOST_SHOWN, choose_failures
from eval.metrics.outcomes import Step
from eval.metrics.stage_metrics import StageMetrics
from eval.search.ranking import DIRECTIONS, Direction, Ranking


def one_caption_set(captions: list[str]) -> RetrievalSet:
    images = [ManifestImage(f"i{n:02d}", "test", Path("x"), None, 1, None, [text], "here") for n, text in enumerate(captions)]
    return RetrievalSet(images, None, source="made", split="test")


def choose(before: list[int], after: list[int], *, captions: list[str] | None = None, top_k: int | None = 9) -> list[dict[str, Any]]:
    """Chosen of image-to-text ranks; text to image is right throughout. The first answer to a wrong query is item 0."""
    dataset = one_caption_set(captions or [f"caption number {n}" for n in range(len(before))])
    num, own = len(before), np.arange(len(before))
    ranks: dict[tuple[str, Direction], np.ndarray] = {("a", "image_to_text"): np.array(before), ("b", "image_to_text"): np.array(after)}
    ranks |= {(stage, "text_to_image"): np.ones(num, dtype=np.int64) for stage in "ab"}  # type: ignore[misc]
    measured = {key: arm_of(ranks_Q) for key, ranks_Q in ranks.items()}
    tops: dict[Direction, np.ndarray] = {"image_to_text": np.where(np.array(after) == 1, own, 0), "text_to_image": own}
    rankings = {d: Ranking(d, tops[d][:, None], np.ones((num, 1)), np.arange(num + 1), own, own) for d in DIRECTIONS}
    return choose_failures(dataset, measured, rankings, Step("b", "a", top_k))


def arm_of(ranks_Q: np.ndarray) -> StageMetrics:
    return StageMetrics(ranks_Q, np.arange(len(ranks_Q)), None)  # type: ignore[arg-type]


def said(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["query_id"], row["bin"]) for row in rows]


def test_order_within_and_between_bins() -> None:
    before = [1, 1, 1, 30, 40, 5, 4, 2, 7, 1]
    after_ = [2, 9, 9, 30, 40, 3, 2, 1, 1, 1]
    assert said(choose(before, after_)) == [
        *(("i01", "broken"), ("i02", "broken"), ("i00", "broken")),
        *(("i04", "missing"), ("i03", "missing")),
        *(("i06", "wrong in both"), ("i05", "wrong in both")),
        *(("i08", "fixed"), ("i07", "fixed")),
    ]
    row = choose(before, after_)[0]
    assert (row["rank_before"], row["rank_after"], row["direction"], row["stage"], row["against"]) == (1, 9, "image_to_text", "b", "a")


def test_a_near_duplicate_on_top_goes_before_a_closer_one() -> None:
    captions = ["a dog runs", "a cat", "the dog runs", "a bird"]
    rows = choose([1, 2, 5, 3], [1, 2, 5, 3], captions=captions)
    assert said(rows) == [("i02", "wrong in both"), ("i01", "wrong in both"), ("i03", "wrong in both")]
    assert [row["near_duplicate_on_top"] for row in rows] == [True, False, False]


def test_shares_and_what_is_left_over() -> None:
    """12 of each bin: 10, 5, 5 and 4; with 2 broken only, the places go to the missing."""
    before, after = [1] * 12 + [30] * 12 + [5] * 12 + [3] * 12 + [1] * 12, [4] * 12 + [30] * 12 + [4] * 12 + [1] * 12 + [1] * 12
    bins = [row["bin"] for row in choose(before, after)]
    assert bins == ["broken"] * 10 + ["missing"] * 5 + ["wrong in both"] * 5 + ["fixed"] * 4
    bins = [row["bin"] for row in choose(before[10:], after[10:])]
    assert bins == ["broken"] * 2 + ["missing"] * 12 + ["wrong in both"] * 6 + ["fixed"] * 4
    assert [row["bin"] for row in choose(before[48:], after[48:])] == []


@pytest.mark.parametrize("num", [1, 5, 24, 30, 60])
def test_never_more_than_are_shown_and_the_same_every_time(num: int) -> None:
    rng = np.random.default_rng(3)
    before = rng.integers(1, 12, num)
    after = np.where(before > 9, before, rng.integers(1, 10, num))
    rows = choose(before.tolist(), after.tolist())
    num_wrong_or_fixed = int((~((before == 1) & (after == 1))).sum())
    assert len(rows) == min(MOST_SHOWN, num_wrong_or_fixed) and rows == choose(before.tolist(), after.tolist())
    assert len({row["query_id"] for row in rows}) == len(rows)


def test_without_reranking_nothing_is_missing() -> None:
    assert said(choose([30, 30], [29, 1], top_k=None)) == [("i00", "wrong in both"), ("i01", "fixed")]
