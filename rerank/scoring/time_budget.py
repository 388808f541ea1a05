"""A time budget: how many candidates can be re-ordered in so many seconds, from what this cross-encoder takes for these images here.

The work of both directions is linear in the images read and the pairs scored: seconds = images x image_seconds + pairs x
pair_seconds. Both are measured on a few real images, each against a short and a long list of real captions, after one that warms up.
Shape letters: T the largest K, N pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.errors import UserError
from eval.processes import Processes
from eval.search.ranking import Ranking
from rerank.scorers.scorer import PairScorer
from rerank.scoring.cached_scoring import ScoringData
from rerank.scoring.candidates import CandidateLists, head_pairs, pair_keys
from rerank.scoring.pair_scores import score_candidates

LEAST_TOP_K = 2  # one candidate has nothing to be compared with
_NUM_IMAGES = 3
_LONG_LIST, _SHORT_LIST = 64, 8  # captions


@dataclass(frozen=True)
class Pace:
    """What a cross-encoder takes on one process.

    Attributes:
        image_seconds: for an image: read, decoded and encoded.
        pair_seconds: for each caption it is scored with.
    """

    image_seconds: float
    pair_seconds: float

    def seconds(self, num_images: int, num_pairs: int) -> float:
        """For so many images and pairs on one process."""
        return num_images * self.image_seconds + num_pairs * self.pair_seconds


@dataclass(frozen=True)
class Budget:
    """The K that was picked, and why.

    Attributes:
        seconds: what may be used.
        top_k: the K.
        num_images: images to encode at this K.
        num_pairs: pairs to score at this K.
        estimated_seconds: what they will take, on all processes together.
        pace: of the slowest process.
    """

    seconds: float
    top_k: int
    num_images: int
    num_pairs: int
    estimated_seconds: float
    pace: Pace

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"{self.seconds:g} s to rerank in; measured {1000 * self.pace.image_seconds:.1f} ms a picture and "
            f"{1000 * self.pace.pair_seconds:.2f} ms a pair: K = {self.top_k}, {self.num_images:,} pictures and "
            f"{self.num_pairs:,} pairs, about {self.estimated_seconds:.1f} s"
        )

    def record(self) -> dict[str, float]:
        """report.json's `budget`."""
        return {
            "seconds": self.seconds,
            "top_k": self.top_k,
            "num_images": self.num_images,
            "num_pairs": self.num_pairs,
            "estimated_seconds": self.estimated_seconds,
            "image_ms": 1000 * self.pace.image_seconds,
            "pair_ms": 1000 * self.pace.pair_seconds,
        }


def measure_pace(scorer: PairScorer, dataset: ScoringData, processes: Processes = Processes()) -> Pace:
    """Measure on every process at once, as they will work; the slowest one's numbers, the same on each.

    Raises:
        UserError: an image does not decode, or a score is not finite.
    """
    num_long = min(_LONG_LIST, len(dataset.captions))
    num_short = min(_SHORT_LIST, num_long)
    num_images = len(dataset.image_ids)
    images = (np.linspace(0, num_images, _NUM_IMAGES, endpoint=False, dtype=np.int64) + processes.rank) % num_images
    with processes.jointly():
        for length in (num_long, num_short):
            _scoring_seconds(scorer, dataset, int(images[0]), length)
        long, short = (np.mean([_scoring_seconds(scorer, dataset, int(i), length) for i in images]) for length in (num_long, num_short))
    mine = fit_pace(num_short, float(short), num_long, float(long))
    paces = np.concatenate(processes.gather(np.array([[mine.image_seconds, mine.pair_seconds]])))
    return Pace(*(float(slowest) for slowest in paces.max(axis=0)))


def _scoring_seconds(scorer: PairScorer, dataset: ScoringData, image: int, num_captions: int) -> float:
    """For one image and captions from all over the set."""
    captions_n = np.unique(np.linspace(0, len(dataset.captions), num_captions, endpoint=False, dtype=np.int64))
    lists = CandidateLists.of_pairs(np.full(len(captions_n), image), captions_n)
    return score_candidates(scorer, dataset, lists).cost.seconds


def fit_pace(num_short: int, short_seconds: float, num_long: int, long_seconds: float) -> Pace:
    """The line through two measurements. Where there is none (the longer list was no slower), pairs take all the time.

    >>> fit_pace(8, 0.5, 64, 1.06)
    Pace(image_seconds=0.42, pair_seconds=0.01)
    """
    slope = (long_seconds - short_seconds) / (num_long - num_short) if num_long > num_short else 0.0
    rest = short_seconds - num_short * slope
    if slope <= 0 or rest < 0:
        return Pace(0.0, long_seconds / num_long)
    return Pace(round(rest, 12), round(slope, 12))


def work_by_top_k(rankings: Sequence[Ranking], top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """(images, pairs) that re-ordering the first 1, 2, ... `top_k` of every query of all rankings needs; int64, both of shape (T,).

    Of a ranking that is not so deep, all there is.
    """
    lists = [head_pairs(ranking, min(top_k, ranking.depth)) for ranking in rankings]
    keys_N = np.concatenate([pair_keys(*pairs).ravel() for pairs in lists])
    images_N = np.concatenate([images_QK.ravel() for images_QK, _ in lists])
    places_N = np.concatenate([np.broadcast_to(np.arange(pairs[0].shape[1]), pairs[0].shape).ravel() for pairs in lists])
    return _first_asked(images_N, places_N, top_k), _first_asked(keys_N, places_N, top_k)


def _first_asked(names_N: np.ndarray, places_N: np.ndarray, top_k: int) -> np.ndarray:
    """How many different names there are among those at place 0, at 0 and 1, ... up to `top_k` - 1."""
    order = np.lexsort((places_N, names_N))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = names_N[order][1:] != names_N[order][:-1]
    return np.cumsum(np.bincount(places_N[order][is_first], minlength=top_k))


def pick_top_k(rankings: Sequence[Ranking], pace: Pace, seconds: float, most: int, *, world_size: int = 1) -> Budget:
    """The largest K up to `most` whose scoring fits into `seconds`, the images being divided evenly over the processes.

    Args:
        rankings: both directions of every stage that is reranked.

    Raises:
        UserError: not even K = 2 fits, or `most` is below 2.
    """
    if most < LEAST_TOP_K:
        raise UserError(f"A time budget picks a K of at least {LEAST_TOP_K}; found at most {most} to choose from. Raise top_k")
    images_T, pairs_T = work_by_top_k(rankings, most)
    estimates_T = np.array([pace.seconds(int(i), int(n)) for i, n in zip(images_T, pairs_T, strict=True)]) / world_size
    fitting = [k for k in range(LEAST_TOP_K, most + 1) if estimates_T[k - 1] <= seconds]
    if not fitting:
        least = LEAST_TOP_K
        raise UserError(
            f"{seconds:g} seconds are too few to rerank in: K = {least} needs {images_T[least - 1]:,} pictures and "
            f"{pairs_T[least - 1]:,} pairs, at {1000 * pace.image_seconds:.1f} ms a picture and {1000 * pace.pair_seconds:.2f} ms a pair "
            f"about {estimates_T[least - 1]:.1f} s. Give more time, more processes, or fewer images"
        )
    top_k = fitting[-1]
    return Budget(seconds, top_k, int(images_T[top_k - 1]), int(pairs_T[top_k - 1]), float(estimates_T[top_k - 1]), pace)
