"""Pair scores: the cross-encoder score of each (image, caption) pair, how the scoring is divided over processes, and its cost.

Shape letters: N pairs, n pairs of one image, D distinct texts among them.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.dataset.images import ImageError
from eval.dataset.picture_warnings import hand_up
from eval.errors import NotFinite, needing_memory
from eval.execution import ONE_PROCESS, Execution
from eval.processes import Processes
from eval.progress import bar
from eval.signals import next_item
from rerank.scorers.scorer import PairScorer, StagedScorer, as_staged
from rerank.scoring.cached_scoring import CachedScoring, ScoringData
from rerank.scoring.candidates import CandidateLists, pair_keys
from rerank.scoring.prepared import prepared_pictures
from rerank.scoring.score_cache import ScoreCache

_FEW_IMAGES = 8  # are decoded before workers have started
NO_PAIRS = CandidateLists.of_pairs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


class StopAsked(KeyboardInterrupt):
    """A run that goes on under `eval.signals.StopSignals` was told to stop before an image was there."""


@dataclass(frozen=True)
class ScoringCost:
    """The cost of a scoring.

    Attributes:
        pairs_scored: number of (image, caption) pairs scored.
        images_encoded: number of images read and encoded.
        seconds: wall-clock seconds of the scoring; of the slowest process where several worked at once.
    """

    pairs_scored: int
    images_encoded: int
    seconds: float


@dataclass(frozen=True)
class PairScores:
    """The scores of the pairs of `lists`, higher = better match.

    Attributes:
        lists: the pairs, as one list per image.
        scores_N: float32, finite, in the order of `lists.caption_indices_N`.
        cost: of scoring them.
        cached: the pairs that were not scored now but read from the score cache.
    """

    lists: CandidateLists
    scores_N: np.ndarray
    cost: ScoringCost
    cached: CandidateLists = NO_PAIRS

    def lookup(self, image_indices: np.ndarray, caption_indices: np.ndarray) -> np.ndarray:
        """Scores of the given pairs: two int64 arrays of one shape in, float32 of that shape out.

        Raises:
            LookupError: a pair was never scored; up to five are named.
        """
        keys = pair_keys(image_indices, caption_indices)
        known_N = self.lists.keys_N
        places = np.searchsorted(known_N, keys)
        found = np.zeros(keys.shape, dtype=bool)
        inside = places < len(known_N)
        found[inside] = known_N[places[inside]] == keys[inside]
        if not found.all():
            missing = list(zip(np.asarray(image_indices)[~found].tolist(), np.asarray(caption_indices)[~found].tolist(), strict=True))
            raise LookupError(
                f"{len(missing)} pairs have no score, among them (image, caption) {missing[:5]}. "
                "Score them first: complete_scores(...) with candidate lists that hold them."
            )
        return self.scores_N[places]


def score_candidates(
    scorer: PairScorer,
    dataset: ScoringData,
    lists: CandidateLists,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    progress: bool = False,
    on_list: Callable[[int, np.ndarray, np.ndarray], Any] = lambda image, captions, scores: None,
) -> PairScores:
    """Scores of this process's share of `lists`: each of its images is loaded once and scored against its whole list.

    An image's list is never split over processes, so its scores are the same bits at any number of processes, and of workers.

    Args:
        num_workers: processes that decode and resize the images; 0: this one does.
        progress: show a bar on stderr that counts pairs.
        on_list: called after each image with its index, the indices of its captions and their scores; what it raises ends the scoring.

    Raises:
        NotFinite: a score is not finite; the pair is named.
        ValueError: the scorer returned something other than one score per caption.
        StopAsked: a run was told to stop before an image was there.
    """
    share = lists.share(rank, world_size)
    scores_N = np.empty(share.num_pairs, dtype=np.float32)
    start = time.perf_counter()
    with (
        bar(share.num_pairs, f"rerank {scorer.name}", "pair", show=progress, leave=False) as shown,
        closing(_scores_by_image(scorer, dataset, share, num_workers)) as found,
    ):
        for position, scores_n in found:
            scores_N[share.offsets[position] : share.offsets[position + 1]] = scores_n
            shown.update(len(scores_n))
            on_list(int(share.image_indices_I[position]), share.captions_of(position), scores_n)
    cost = ScoringCost(share.num_pairs, share.num_images, time.perf_counter() - start)
    return PairScores(share, scores_N, cost)


def _scores_by_image(
    scorer: PairScorer, dataset: ScoringData, share: CandidateLists, num_workers: int
) -> Generator[tuple[int, np.ndarray], None, None]:
    """(position in `share`, scores) of each image; a device works on the next image while what it made of one is taken."""
    staged, under_way = as_staged(scorer), list[tuple[int, Callable[[], np.ndarray]]]()
    workers = num_workers if share.num_images > _FEW_IMAGES else 0
    pictures = prepared_pictures(staged, dataset, share.image_indices_I.tolist(), workers)
    with closing(pictures):
        for position in range(share.num_images):
            prepared = next_item(pictures)
            if prepared is not None and not isinstance(prepared, ImageError):
                under_way.append((position, _score_image(staged, dataset, share, position, prepared)))
            while under_way and (len(under_way) > staged.num_ahead or under_way[-1][0] != position or position == share.num_images - 1):
                first, wait = under_way.pop(0)
                yield first, wait()
            if prepared is None:
                raise StopAsked
            if isinstance(prepared, ImageError):
                raise prepared


def _score_image(
    scorer: StagedScorer, dataset: ScoringData, share: CandidateLists, position: int, prepared: Any
) -> Callable[[], np.ndarray]:
    """Begin to score one image; what is returned waits for its scores. Captions with the same text are scored once and get the very same
    number, whatever the scorer."""
    image, captions_n = int(share.image_indices_I[position]), share.captions_of(position)
    texts = [dataset.captions[caption] for caption in captions_n.tolist()]
    distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    arrived = scorer.begin(prepared, list(distinct))

    def wait() -> np.ndarray:
        scores_D = np.asarray(arrived(), dtype=np.float32)
        if scores_D.shape != (len(distinct),):
            expected = f"expected one score per caption, shape {(len(distinct),)}"
            raise ValueError(f"Scorer {scorer.name}: {expected}; found shape {scores_D.shape}.")
        scores_n = scores_D[[distinct[text] for text in texts]]
        bad = np.flatnonzero(~np.isfinite(scores_n))
        if len(bad):
            raise NotFinite(
                f"Scorer {scorer.name}: expected finite scores; found {scores_n[bad[0]]} for image {dataset.image_ids[image]!r} with "
                f"{[dataset.caption_ids[int(caption)] for caption in captions_n[bad[:5]]]} ({len(bad)} of this image's {len(scores_n)}). "
                "Score in float32, and check the reranker's weights."
            )
        return scores_n

    return wait


def complete_scores(
    scorer: PairScorer,
    dataset: ScoringData,
    lists: CandidateLists,
    *,
    cache: ScoreCache | None = None,
    execution: Execution = ONE_PROCESS,
    progress: bool = False,
) -> PairScores:
    """Scores of `lists`: those that `cache` has, and the missing ones scored now, over all processes.

    An image without a missing pair is not decoded. Which captions are in one batch may change the last bits of a score (float noise, under
    1e-5); the same lists make the same batches, so the same calls give the same bits, at any number of processes. Call it on every process;
    every process gets the whole result.

    Args:
        cache: scores of earlier runs on disk. Each image's scores are added as soon as they are there, so that a run that is killed loses
            only the image it was at, on a GPU what is under way to the disk too, and gives the same bits when it goes on.
        execution: its processes share the work, and its workers decode the images; on_progress is called after each image of this
            process's with the number of its pairs, and what it raises ends the scoring.

    Raises:
        UserError: on every process: on some a score is not finite, an image does not decode, or one was changed meanwhile.
        WriteError: on every process: on some a score could not be cached.
    """
    processes = execution.processes
    cached = None if cache is None else CachedScoring(cache, scorer.fingerprint, dataset, lists, processes)
    found, found_scores_N = (NO_PAIRS, np.empty(0, dtype=np.float32)) if cached is None else cached.known()
    missing = lists.difference(found)

    remedy = f"The cross-encoder {scorer.name} needs it: take a smaller one (--rerank, rerank.model, mining.denoise.model) or a free GPU"
    part = None
    with (
        processes.jointly(),
        execution.rounds(missing.num_images) as advance,
        needing_memory(remedy),
        suppress(StopAsked),
        nullcontext() if cached is None else cached.writing(late=as_staged(scorer).num_ahead > 0) as write,
    ):

        def on_list(image: int, captions_n: np.ndarray, scores_n: np.ndarray) -> None:
            if write is not None:
                write(image, captions_n, scores_n)
            advance(len(captions_n))

        part = score_candidates(
            scorer,
            dataset,
            missing,
            rank=processes.rank,
            world_size=processes.world_size,
            num_workers=execution.num_workers,
            progress=progress,
            on_list=on_list,
        )
    if part is None:  # and nothing in the rounds took heed
        raise StopAsked
    hand_up(processes)
    missing_scores_N, cost = _gathered(part, missing, processes)
    scores_N = np.empty(lists.num_pairs, dtype=np.float32)
    scores_N[np.searchsorted(lists.keys_N, found.keys_N)] = found_scores_N
    scores_N[np.searchsorted(lists.keys_N, missing.keys_N)] = missing_scores_N
    return PairScores(lists, scores_N, cost, found)


def _gathered(part: PairScores, lists: CandidateLists, processes: Processes) -> tuple[np.ndarray, ScoringCost]:
    """(scores, cost) of all of `lists` from the part of each process."""
    keys_N = np.concatenate(processes.gather(part.lists.keys_N))
    scores_N = np.concatenate(processes.gather(part.scores_N))
    order_N = np.argsort(keys_N)
    if not np.array_equal(keys_N[order_N], lists.keys_N):
        raise ValueError(f"Expected the {lists.num_pairs} pairs dealt out; the processes together gave {len(keys_N)}, or others.")
    seconds = max(float(one[0]) for one in processes.gather(np.array([part.cost.seconds])))
    return scores_N[order_N], ScoringCost(lists.num_pairs, lists.num_images, seconds)
