"""Which queries are hard? R@1 of every stage on parts of the set: by caption length, near-duplicates, first-stage margin, or any column.

Shape letters: Q queries of one direction, C captions, I images, B bins, S resamples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.captions import near_duplicate_groups, normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.metrics import recall_at_k
from eval.metrics.significance import LEVEL, ImageSums
from eval.metrics.stage_metrics import StageMetrics
from eval.search.ranking import DIRECTIONS, Direction, Ranking

MARGIN = "first-stage margin"
_MOST_DISTINCT = 6
_MOST_WORDS = 12
_NONE, _SEVERAL, _OTHER = "(none)", "(several)", "(other)"


@dataclass(frozen=True)
class Slicing:
    """A split of the queries of one direction into bins: `bin_Q` numbers `labels`, in the order they are shown; every bin has a query."""

    by: str
    labels: list[str]
    bin_Q: np.ndarray


def by_number(by: str, values_Q: np.ndarray) -> Slicing:
    """Quarters of the set, smallest first, equal values together; each value its own bin where there are at most six."""
    distinct = np.unique(values_Q)
    edges = distinct[:-1] if len(distinct) <= _MOST_DISTINCT else np.quantile(values_Q, [0.25, 0.5, 0.75])
    bins, bin_Q = np.unique(np.searchsorted(edges, values_Q, side="left"), return_inverse=True)
    ranges = [(values_Q[bin_Q == number].min(), values_Q[bin_Q == number].max()) for number in range(len(bins))]
    for digits in (4, 7, 10, 17):  # as few as keep the bins apart
        labels = [f"{low:.{digits}g}" if low == high else f"{low:.{digits}g} to {high:.{digits}g}" for low, high in ranges]
        if len(set(labels)) == len(labels):
            break
    return Slicing(by, labels, bin_Q)


def by_word(by: str, words: Sequence[str]) -> Slicing:
    """A bin for each word, the commonest first; those beyond the twelve commonest together."""
    order = [word for word, _ in sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))]
    if len(order) > _MOST_WORDS:
        order = [*order[: _MOST_WORDS - 1], _OTHER]
    number = {word: place for place, word in enumerate(order)}
    return Slicing(by, order, np.array([number.get(word, len(order) - 1) for word in words], dtype=np.int64))


def set_slicings(dataset: RetrievalSet) -> dict[Direction, list[Slicing]]:
    """The slicings that are the same for every stage.

    An image that asks has the mean length of its captions, the most near-duplicates any of them has (other captions of the split in the
    same group of eval/captions.py), and the mean, or the one word, of a column.
    """
    every = dataset.every or dataset  # an image has all its captions, whichever of them ask
    asking = slice(None) if dataset.kept_captions is None else dataset.kept_captions
    starts, image_C = every.caption_offsets[:-1], every.caption_image_C
    num_words_C = np.array([len(normalise(caption).split()) for caption in every.captions])
    group_C = near_duplicate_groups(every.captions, keeps_marks=every.keeps_marks)
    num_near_C = np.bincount(group_C)[group_C] - 1
    num_captions_I = np.diff(every.caption_offsets)
    of_images = [
        by_number("caption length (words)", np.add.reduceat(num_words_C, starts) / num_captions_I),
        by_number("near-duplicate captions", np.maximum.reduceat(num_near_C, starts)),
        by_number("captions of the image", num_captions_I),
    ]
    of_captions = [
        by_number("caption length (words)", num_words_C[asking]),
        by_number("near-duplicate captions", num_near_C[asking]),
        by_number("captions of the image", num_captions_I[image_C[asking]]),
    ]
    for name, values_C in every.columns.items():
        image, caption = _by_column(name, values_C, starts, asking)
        of_images.append(image)
        of_captions.append(caption)
    return {"image_to_text": of_images, "text_to_image": of_captions}


def _by_column(name: str, values_C: Sequence[Any], starts: np.ndarray, asking: slice | np.ndarray) -> tuple[Slicing, Slicing]:
    """(of images, of the captions that ask) by a column of the manifest: by number if every value reads as one, else by word."""
    try:
        numbers_C = np.array([float(value) for value in values_C])
    except (TypeError, ValueError):
        numbers_C = np.array([np.nan])
    if np.isfinite(numbers_C).all():
        ends = np.append(starts[1:], len(numbers_C))
        return by_number(name, np.add.reduceat(numbers_C, starts) / (ends - starts)), by_number(name, numbers_C[asking])
    words_C = np.array([_NONE if value is None or value == "" else str(value) for value in values_C], dtype=object)
    parts = [set(words_C[start:end]) for start, end in zip(starts, [*starts[1:], len(words_C)], strict=True)]
    return by_word(name, [part.pop() if len(part) == 1 else _SEVERAL for part in parts]), by_word(name, words_C[asking].tolist())


def slice_rows(
    dataset: RetrievalSet,
    measured: Mapping[tuple[str, Direction], StageMetrics],
    first: Mapping[tuple[str, Direction], Ranking],
    weights_SI: np.ndarray,
) -> list[dict[str, Any]]:
    """report.json's `slices`: number of queries and R@1 with its 95% interval, of each stage in each bin; `first` are the rankings of their
    first stages, whose margins slice them."""
    shared, rows = set_slicings(dataset), []
    for (stage, direction), metrics in measured.items():
        scores_QK, slicings = first[stage, direction].top_scores_QK, list(shared[direction])
        if scores_QK.shape[1] > 1:  # the score of rank 1 minus that of rank 2: the smallest are the hard cases
            slicings.append(by_number(MARGIN, scores_QK[:, 0] - scores_QK[:, 1]))
        keys = [(slicing.by, label) for slicing in slicings for label in slicing.labels]
        for (by, label), row in zip(keys, _bin_figures(metrics, slicings, weights_SI), strict=True):
            rows.append({"by": by, "bin": label, "stage": stage, "direction": direction, **row})
    order = {by: place for place, by in enumerate(dict.fromkeys(row["by"] for row in rows))}
    return sorted(rows, key=lambda row: (order[row["by"]], DIRECTIONS.index(row["direction"])))


def _bin_figures(metrics: StageMetrics, slicings: Sequence[Slicing], weights_SI: np.ndarray) -> list[dict[str, Any]]:
    """Figures of each bin of each slicing, in order; a resample that draws no image of a bin says nothing of it."""
    inside_QB = np.concatenate([slicing.bin_Q[:, None] == np.arange(len(slicing.labels)) for slicing in slicings], axis=1)
    found_QB = inside_QB * recall_at_k(metrics.ranks_Q, 1)[:, None]
    sums_IM = ImageSums.of(np.concatenate([found_QB, inside_QB], axis=1), metrics.image_Q, weights_SI.shape[1]).sums_IM
    resampled_SM = ImageSums(sums_IM, np.ones(len(sums_IM))).resampled_means(weights_SI)
    num = inside_QB.shape[1]
    with np.errstate(invalid="ignore"):
        share_SB = resampled_SM[:, :num] / resampled_SM[:, num:]
    bounds_2B = np.nanquantile(share_SB, [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    count_B = inside_QB.sum(axis=0)
    return [
        {"num_queries": int(count_B[b]), "R@1": float(found_QB[:, b].sum() / count_B[b]), "ci95": bounds_2B[:, b].tolist()}
        for b in range(num)
    ]
