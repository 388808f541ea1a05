"""Mine hard-negative images: what the model ranks highest for a caption and is not known to be a positive of it.

The other direction of train/mining/captions.py, by the same rules (train/mining/rules.py, train/mining/selection.py). Where those compare
captions by text, images are compared by group. Shape letters: Q captions mined for, K depth.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.dataset.retrieval_set import GroupHashes
from eval.execution import ONE_PROCESS, Execution
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.mining.candidates import ImageCandidates, find_image_candidates
from train.mining.cross_encoder import MiningCrossEncoder
from train.mining.ensemble import Retriever, ensemble_shares, scale_and_bias
from train.mining.refresh import Refresh, apply_rules, table_name_of, tabulate
from train.mining.report import Mined, MiningReport, summarize
from train.mining.rules import Outcome, RankedLists
from train.mining.selection import PairProbability


def mine_images(
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
    """Mine hard images for the captions of a split, or of refresh.images_I, among all its images; the same on every process.

    The table holds (image, caption) pairs ordered by image. Here the image was mined for the caption: the rank is the image's among all
    images for that caption, and the margin is to the caption's best positive image.

    Args, Raises: as train.mining.captions.mine.
    """
    name = table_name_of(retriever, pool, config, refresh, cross_encoder, form="images")
    captions_Q = np.arange(pool.dataset.num_captions)
    if refresh.images_I is not None:
        captions_Q = captions_Q[np.isin(pool.dataset.caption_image_C, refresh.images_I)]
    found = find_image_candidates(retriever, pool.dataset, config.pool_top_k, captions_Q, folder=folder, execution=execution)
    match_probability = cross_encoder.probabilities if cross_encoder is not None else None
    mined = select_images(name, pool, found, *scale_and_bias(retriever.model, retriever.members), config, refresh, match_probability)
    report = summarize(mined, pool, truth, refresh.before)
    return mined.negatives, replace(report, shares=ensemble_shares(retriever.model, retriever.members))


def select_images(
    name: str,
    pool: CaptionPool,
    found: ImageCandidates,
    scale: np.float32,
    bias: np.float32,
    config: MiningConfig,
    refresh: Refresh,
    match_probability: PairProbability | None = None,
) -> Mined:
    """Apply the rules to every caption's candidates and select, for each caption, up to negatives_per_image of those that pass.

    Args:
        scale, bias: of the logits, the model's or the ensemble's.
        match_probability: probability that each pair (image, caption of the pool) matches; None: no denoising.
    """
    lists = _lists(pool, found, scale, bias, near_duplicates=config.near_duplicates)
    captions_QK = np.broadcast_to(found.captions_Q[:, None], found.images_QK.shape)
    result = apply_rules(config, lists, refresh, found.captions_Q, found.images_QK, captions_QK, match_probability)
    _drop_relabelled(result.outcome_QK, found, pool)
    return Mined(
        tabulate(name, pool.dataset.num_images, found.images_QK, captions_QK, lists, result, is_scored=match_probability is not None),
        found.captions_Q,
        result.outcome_QK,
        lists,
        np.isfinite(found.best_positive_Q),
        config.negatives_per_image,
        result.num_judged,
        mined_for="captions",
    )


def _drop_relabelled(outcome_QK: np.ndarray, found: ImageCandidates, pool: CaptionPool) -> None:
    """Captions of one text are mined separately: an image that was relabelled for one of them is no negative of another."""
    relabelled_QK, mined_QK = outcome_QK == Outcome.RELABELLED, outcome_QK == Outcome.MINED
    if relabelled_QK.any():
        hashes_QK = np.broadcast_to(pool.hash_C[found.captions_Q][:, None], outcome_QK.shape)
        relabelled = GroupHashes(found.images_QK[relabelled_QK], hashes_QK[relabelled_QK], pool.dataset.num_images)
        both_QK = mined_QK & relabelled.contains(found.images_QK, hashes_QK)
        outcome_QK[both_QK] = Outcome.MATCH


def _lists(pool: CaptionPool, found: ImageCandidates, scale: np.float32, bias: np.float32, *, near_duplicates: bool) -> RankedLists:
    """The candidates of every caption, as the rules take them; none for a caption without a positive image that decodes."""
    images_QK, captions_Q1 = np.maximum(found.images_QK, 0), found.captions_Q[:, None]
    cosines_QK = np.where(found.images_QK >= 0, found.cosines_QK, np.float32(0))  # any number where there is no candidate
    return RankedLists(
        there_QK=(found.images_QK >= 0) & np.isfinite(found.best_positive_Q)[:, None],
        known_QK=pool.dataset.is_positive(images_QK, pool.hash_C[captions_Q1]),
        near_QK=pool.is_near_duplicate(images_QK, captions_Q1) if near_duplicates else None,
        key_QK=pool.dataset.group_I[images_QK],
        cosines_QK=cosines_QK,
        logits_QK=cosines_QK * scale + bias,
        best_cosine_Q=found.best_positive_Q,
        best_logit_Q=found.best_positive_Q * scale + bias,
    )
