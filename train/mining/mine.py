"""Mine hard negatives: what the model ranks highest for a query and is not known to be a positive of it.

Captions are mined for images or, in the form `images`, images for captions, by the same rules (train/mining/rules.py,
train/mining/selection.py); captions compare by text and by tokens (what is one to the model is never mined for one another), images by
group. Mining is retrieval (eval/search), so what is mined and what is measured cannot disagree. Where fewer negatives remain than asked
for, the shortfall is counted, never filled. The rules are applied to some queries at a time, and each process takes its share of them.
Shape letters: Q queries (images or captions mined for), q some of them, K depth, N rows of the table.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.dataset.retrieval_set import GroupHashes
from eval.encoder.caption_tokens import CaptionTokens
from eval.execution import ONE_PROCESS, Execution
from eval.processes import Processes
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.mining.candidates import Candidates, Retriever, find_candidates
from train.mining.cross_encoder import MiningCrossEncoder, with_cross_encoder_logits
from train.mining.refresh import Refresh, table_name_of
from train.mining.report import Mined, MiningReport, summarize
from train.mining.rules import Outcome, RankedLists, filtered_out
from train.mining.selection import PairProbability, priorities, select_negatives

_QUERIES_AT_ONCE = 8192


def mine(
    retriever: Retriever,
    pool: CaptionPool,
    config: MiningConfig,
    *,
    refresh: Refresh = Refresh(),
    cross_encoder: MiningCrossEncoder | None = None,
    folder: Path | None = None,
    truth: set[tuple[str, str]] | None = None,
    execution: Execution = ONE_PROCESS,
) -> tuple[Negatives, MiningReport]:
    """Mine captions of a pool for the images of a split or, in the form `images`, images of the split for its captions; the same on every
    process.

    The table holds (image, caption) pairs ordered by image. In the form `images` the rank is the image's among all images for that caption,
    and the margin is to the caption's best positive image.

    Args:
        cross_encoder: of config.denoise and config.distil; its scores are margins (train/mining/cross_encoder.py).
        folder: where embeddings lie meanwhile; None: the system's temporary folder.
        truth: (image id, caption id) positives of data.truth beyond the data's own; used to count false negatives only.
        execution: towers embed in its precision, searches run on its device; progress is told of rows embedded.

    Raises:
        UserError: a score of the cross-encoder is not finite.
        ValueError: a cross-encoder is given that config does not ask for, or the other way round.
    """
    if not pool.knows_tokens:
        pool.compare_tokens(CaptionTokens.of(retriever.inputs, pool.captions, execution.processes).key_C)
    name = table_name_of(retriever, pool, config, refresh, cross_encoder, execution.precision)
    match_probability = cross_encoder.probabilities if cross_encoder is not None and config.denoise is not None else None
    queries_Q = refresh.images_I
    if config.form == "images" and queries_Q is not None:
        queries_Q = np.flatnonzero(np.isin(pool.dataset.caption_image_C, queries_Q))
    found = find_candidates(
        retriever,
        pool,
        config.pool_top_k,
        queries_Q,
        mined_for="captions" if config.form == "images" else "images",
        folder=folder,
        num_probes=config.index_probes if config.index == "faiss" else None,
        execution=execution,
    )
    model = retriever.model
    scale, bias = np.float32(float(model.logit_scale.detach().exp())), np.float32(float(model.logit_bias.detach()))
    selector = Selector(pool, scale, bias, config, refresh, match_probability, execution.processes)
    mined = selector.select(name, found)
    if cross_encoder is not None and config.distil is not None:
        negatives = with_cross_encoder_logits(mined.negatives, cross_encoder, pool.dataset, config.distil)
        mined = replace(mined, negatives=negatives, num_judged=cross_encoder.num_judged)
    return mined.negatives, summarize(mined, pool, truth, refresh.before)


@dataclass(frozen=True)
class Selector:
    """Applies the rules to queries' candidates and selects, for each query, up to negatives_per_image of those that pass.

    Attributes:
        scale, bias: of the model's logits.
        match_probability: probability that each pair (image, caption of the pool) matches; called with the same pairs on every process;
            None: no denoising.
        processes: those that share the queries.
    """

    pool: CaptionPool
    scale: np.float32
    bias: np.float32
    config: MiningConfig
    refresh: Refresh = Refresh()
    match_probability: PairProbability | None = None
    processes: Processes = Processes()

    def select(self, name: str, found: Candidates) -> Mined:
        """Select for all queries; call on every process, with the same candidates: the result is the same on each."""
        rank, world_size, num_queries = self.processes.rank, self.processes.world_size, len(found.queries_Q)
        start, stop = (num_queries * part // world_size for part in (rank, rank + 1))
        # What one query takes is no other's business without these two, and then memory need not grow with the number of queries.
        is_alone = self.config.max_uses is None and self.match_probability is None
        step = _QUERIES_AT_ONCE if is_alone else max(1, stop - start)
        # Where the other processes wait for this one, it takes part without a query too.
        parts = [self._of_some(found, slice(first, min(first + step, stop))) for first in range(start, stop, step) or [start]]
        outcome_qK, probability_n = (np.concatenate(values) for values in zip(*((part[0], part[1]) for part in parts), strict=True))
        num_judged = int(sum(part[0] for part in self.processes.gather(np.array([sum(part[2] for part in parts)]))))
        outcome_QK = np.concatenate(self.processes.gather(outcome_qK))
        is_judged = self.match_probability is not None
        probability_N = np.concatenate(self.processes.gather(probability_n)) if is_judged else None
        table = self._table(name, found, outcome_QK, probability_N)
        return Mined(table, found, found.best_positive_Q * self.scale + self.bias, outcome_QK, self.config.negatives_per_image, num_judged)

    def _of_some(self, found: Candidates, some: slice) -> tuple[np.ndarray, np.ndarray, int]:
        """Of some queries: the outcome of each candidate, uint8 of shape (q, K); the match probability of each that is selected, by query
        and then by rank; how many pairs were judged."""
        config, refresh = self.config, self.refresh
        there_qK, items_qK, of_images = found.items_QK[some] >= 0, np.maximum(found.items_QK[some], 0), found.mined_for == "images"
        queries_q, best_q = found.queries_Q[some], found.best_positive_Q[some]
        images, captions = (queries_q[:, None], items_qK) if of_images else (items_qK, queries_q[:, None])
        hashes = self.pool.hash_C[captions]
        images_qK, captions_qK, hashes_qK = np.broadcast_arrays(images, captions, hashes)
        cosines_qK = np.where(there_qK, found.cosines_QK[some], np.float32(0))  # any number where there is no candidate
        lists = RankedLists(
            there_QK=found.readable_Q[some, None] & there_qK,
            known_QK=self.pool.dataset.is_positive(images, hashes),
            equal_QK=self.pool.has_tokens_of_positive(images, captions),
            near_QK=self.pool.is_near_duplicate(images, captions) if config.near_duplicates else None,
            key_QK=hashes if of_images else self.pool.dataset.group_I[images],
            cosines_QK=cosines_qK,
            logits_QK=cosines_qK * self.scale + self.bias,
            best_cosine_Q=best_q,
            best_logit_Q=best_q * self.scale + self.bias,
        )
        outcome_qK, probability_qK = select_negatives(
            filtered_out(lists, config),
            lists,
            priorities(lists.logits_QK, config, refresh.seed, refresh.step, queries_q),
            config,
            None if self.match_probability is None else lambda places: self._judged(images_qK[places], captions_qK[places]),
            self.processes,
        )
        if not of_images:
            self._drop_relabelled(outcome_qK, images_qK, hashes_qK)
        if probability_qK is None:
            return outcome_qK, np.empty(0, dtype=np.float32), 0
        return outcome_qK, probability_qK[_is_in_table(outcome_qK)], int((~np.isnan(probability_qK)).sum())

    def _judged(self, images_n: np.ndarray, captions_n: np.ndarray) -> np.ndarray:
        """The match probability of this process's pairs; all are judged together."""
        assert self.match_probability is not None
        parts = self.processes.gather(np.stack([images_n, captions_n], axis=1).astype(np.int64))
        first = sum(len(part) for part in parts[: self.processes.rank])
        images_N, captions_N = np.concatenate(parts).T
        return self.match_probability(images_N, captions_N)[first : first + len(images_n)]

    def _drop_relabelled(self, outcome_qK: np.ndarray, images_qK: np.ndarray, hashes_qK: np.ndarray) -> None:
        """Captions of one text are mined separately: an image that was relabelled for one of them is no negative of another."""
        if self.match_probability is None:
            return
        relabelled_qK = outcome_qK == Outcome.RELABELLED
        own = np.stack([images_qK[relabelled_qK], hashes_qK[relabelled_qK]], axis=1)
        images_N, hashes_N = np.concatenate(self.processes.gather(own)).T
        if len(images_N):
            relabelled = GroupHashes(images_N, hashes_N)
            outcome_qK[(outcome_qK == Outcome.MINED) & relabelled.contains(images_qK, hashes_qK)] = Outcome.MATCH

    def _table(self, name: str, found: Candidates, outcome_QK: np.ndarray, probability_N: np.ndarray | None) -> Negatives:
        """The table of the selected pairs: by image, and within an image in the order of the queries and their ranks.

        Args:
            probability_N: of each selected pair, by query and then by rank.
        """
        of_images, num_images = found.mined_for == "images", self.pool.dataset.num_images

        def pairs_at(rows_N: np.ndarray, places_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            queries_N, items_N = found.queries_Q[rows_N], found.items_QK[rows_N, places_N]
            return (queries_N, items_N) if of_images else (items_N, queries_N)

        rows_N, places_N = np.nonzero(_is_in_table(outcome_QK))
        order_N = np.argsort(pairs_at(rows_N, places_N)[0], kind="stable")
        rows_N, places_N = rows_N[order_N], places_N[order_N]
        images_N, captions_N = pairs_at(rows_N, places_N)
        logits_N = found.cosines_QK[rows_N, places_N] * self.scale + self.bias
        best_N = found.best_positive_Q[rows_N] * self.scale + self.bias
        relabelled_N = outcome_QK[rows_N, places_N] == Outcome.RELABELLED
        matches = np.nonzero(outcome_QK == Outcome.MATCH)
        return Negatives(
            name,
            np.concatenate([[0], np.cumsum(np.bincount(images_N, minlength=num_images))]).astype(np.int64),
            captions_N,
            (places_N + 1).astype(np.int64),
            logits_N,
            best_N - logits_N,
            probability_N[order_N] if probability_N is not None else None,
            relabelled_N if relabelled_N.any() else None,
            np.stack(pairs_at(*matches)) if len(matches[0]) else None,
        )


def _is_in_table(outcome_QK: np.ndarray) -> np.ndarray:
    """Which candidates are rows of the table, bool."""
    found_QK: np.ndarray = (outcome_QK == Outcome.MINED) | (outcome_QK == Outcome.RELABELLED)
    return found_QK
