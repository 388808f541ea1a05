"""Is a difference real? Paired intervals and tests with the IMAGE as the unit drawn: five captions of one image are not five witnesses.

Everything works on sums per image: a metric over queries is sum / count, and a resample of images is a row of weights.
Shape letters: I images, S resamples, M metrics. Sources: Efron and Tibshirani 1993 (percentile bootstrap); Smucker, Allan and Carterette
2007 (randomisation test for retrieval); Holm 1979.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.manifest.memory import empty_mapped

NUM_RESAMPLES = 2_000
NUM_PERMUTATIONS = 10_000
LEVEL = 0.05
_CHUNK_ELEMENTS = 20_000_000


@dataclass(frozen=True)
class ImageSums:
    """Per-image sums of some per-query metrics of one direction, float64, and the number of each image's queries."""

    sums_IM: np.ndarray
    counts_I: np.ndarray

    @classmethod
    def of(cls, values_QM: np.ndarray, image_Q: np.ndarray, num_images: int) -> "ImageSums":
        """Add per-query values up by the image each query belongs to."""
        sums = np.stack([np.bincount(image_Q, weights=column, minlength=num_images) for column in values_QM.T], axis=1)
        return cls(sums, np.bincount(image_Q, minlength=num_images).astype(np.float64))

    def means(self) -> np.ndarray:
        """Mean over all queries of each metric, shape (M,)."""
        return self.sums_IM.sum(axis=0) / self.counts_I.sum()

    def resampled_means(self, weights_SI: np.ndarray) -> np.ndarray:
        """Mean of each metric in each resample, shape (S, M); NaN in one that draws no image with a query."""
        chunk = max(1, _CHUNK_ELEMENTS // weights_SI.shape[1])
        parts = (weights_SI[start : start + chunk].astype(np.float64) for start in range(0, len(weights_SI), chunk))
        with np.errstate(invalid="ignore"):
            return np.concatenate([(weights @ self.sums_IM) / (weights @ self.counts_I)[:, None] for weights in parts])


def resample_weights(num_images: int, *, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """How often each image was drawn in each resample, uint8 of shape (S, I); the same at every call, so that pairs stay pairs.

    256 times would be beyond it, and come with odds below 1e-500. Large ones are in a mapped file (eval/manifest/memory.py).
    """
    generator = np.random.Generator(np.random.Philox(0))
    weights_SI = empty_mapped((num_resamples, num_images), np.uint8)  # as float64 100,000 images would take 1.6 GB
    for row in range(num_resamples):
        weights_SI[row] = np.bincount(generator.integers(0, num_images, num_images), minlength=num_images)
    return weights_SI


def interval(samples_SM: np.ndarray) -> np.ndarray:
    """Percentile interval of each column, shape (2, M): covers 1 - LEVEL. A resample with NaN says nothing and is left out."""
    return np.quantile(samples_SM[~np.isnan(samples_SM).any(axis=1)], [LEVEL / 2, 1 - LEVEL / 2], axis=0)


def sign_flip_p_values(differences_IM: np.ndarray, *, num_permutations: int = NUM_PERMUTATIONS) -> np.ndarray:
    """Two-sided p of the hypothesis that the two stages are exchangeable on every image, shape (M,).

    p = (1 + #{|sum of flipped differences| >= |sum|}) / (1 + permutations); flipped is what an image adds to the difference of the stages.
    """
    active_IM = differences_IM[np.any(differences_IM != 0, axis=1)]
    if not len(active_IM):
        return np.ones(differences_IM.shape[1])
    generator = np.random.Generator(np.random.Philox(1))
    observed_M = np.abs(active_IM.sum(axis=0))
    # Sums of the same numbers in another order differ in their last bits; equal is meant to count.
    threshold_M = observed_M - 1e-12 * np.abs(active_IM).sum(axis=0)
    reached_M = np.zeros(differences_IM.shape[1])
    chunk = max(1, min(num_permutations, _CHUNK_ELEMENTS // len(active_IM)))
    for start in range(0, num_permutations, chunk):
        rows = min(chunk, num_permutations - start)
        signs = generator.integers(0, 2, (rows, len(active_IM)), dtype=np.int8).astype(np.float64) * 2 - 1
        reached_M += (np.abs(signs @ active_IM) >= threshold_M).sum(axis=0)
    return (1 + reached_M) / (1 + num_permutations)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values corrected for having looked at all of them (Holm's step-down), in the order given, at most 1."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    result = np.empty_like(corrected)
    result[order] = corrected
    return result


def correct(rows: Sequence[dict[str, Any]]) -> None:
    """Correct `p_value` of each row for the rows of its question, one pair of stages, and add a `verdict` on its `delta`.

    A pair's verdicts are then the same whatever other pairs the table has.

    Args:
        rows: each with `stage`, `against`, `delta` and `p_value`.
    """
    questions: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        questions.setdefault((row["stage"], row["against"]), []).append(row)
    for question in questions.values():
        for row, p in zip(question, holm(np.array([row["p_value"] for row in question])), strict=True):
            row |= {"p_value": float(p), "verdict": verdict(row["delta"], float(p))}


def verdict(delta: float, corrected_p: float) -> str:
    """'better' or 'worse' if the corrected p is under 0.05, else 'no evidence'."""
    if corrected_p >= LEVEL or delta == 0:
        return "no evidence"
    return "better" if delta > 0 else "worse"
