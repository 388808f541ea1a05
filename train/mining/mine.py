"""Mine hard negatives: what the model ranks highest for a query and is not known to be a positive of it.

Captions are mined for images or, in the form `images`, images for captions, by the same rules (train/mining/rules.py,
train/mining/selection.py); captions compare by text, images by group. Shape letters: I images mined for, Q captions mined for, K depth.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.dataset.retrieval_set import GroupHashes
from eval.execution import ONE_PROCESS, Execution
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.mining.candidates import Candidates, ImageCandidates, find_candidates, find_image_candidates
from train.mining.cross_encoder import MiningCrossEncoder, with_cross_encoder_logits
from train.mining.ensemble import Retriever, ensemble_weights, scale_and_bias
from train.mining.faiss_index import Approximate
from train.mining.refresh import Refresh, apply_rules, table_name_of, tabulate
from train.mining.report import Mined, MiningReport, summarize
from train.mining.rules import Outcome, RankedLists
from train.mining.selection import PairProbability


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
        execution: searches run on its device; progress is told of rows embedded.

    Raises:
        UserError: a score of the cross-encoder is not finite.
        ValueError: a cross-encoder is given that config does not ask for, or the other way round; or other members than config.ensemble.
    """
    name = table_name_of(retriever, pool, config, refresh, cross_encoder)
    match_probability = cross_encoder.probabilities if cross_encoder is not None and config.denoise is not None else None
    logits, recall = scale_and_bias(retriever.model, retriever.members), None
    if config.form == "images":
        captions_Q = np.arange(pool.dataset.num_captions)
        if refresh.images_I is not None:
            captions_Q = captions_Q[np.isin(pool.dataset.caption_image_C, refresh.images_I)]
        images = find_image_candidates(retriever, pool.dataset, config.pool_top_k, captions_Q, folder=folder, execution=execution)
        mined = select_images(name, pool, images, *logits, config, refresh, match_probability)
    else:
        found = find_candidates(
            retriever,
            pool,
            config.pool_top_k,
            folder=folder,
            images_I=refresh.images_I,
            approximate=Approximate(config.index_probes) if config.index == "faiss" else None,
            execution=execution,
        )
        mined, recall = select(name, pool, found, *logits, config, refresh, match_probability), found.recall
    if cross_encoder is not None and config.distil is not None:
        negatives = with_cross_encoder_logits(mined.negatives, cross_encoder, pool.dataset, config.distil)
        mined = replace(mined, negatives=negatives, num_judged=cross_encoder.num_judged)
    shares = ensemble_weights(retriever.model, retriever.members)[0] if retriever.members else None
    return mined.negatives, replace(summarize(mined, pool, truth, refresh.before), index_recall=recall, shares=shares)


def select(
    name: str,
    pool: CaptionPool,
    found: Candidates,
    scale: np.float32,
    bias: np.float32,
    config: MiningConfig,
    refresh: Refresh = Refresh(),
    match_probability: PairProbability | None = None,
) -> Mined:
    """Apply the rules to every image's candidates and select, for each image, up to negatives_per_image of those that pass.

    Args:
        scale, bias: of the logits, the model's or the ensemble's.
        match_probability: probability that each pair (image, caption of the pool) matches; None: no denoising.
    """
    lists = _caption_lists(pool, found, scale, bias, near_duplicates=config.near_duplicates)
    images_IK = np.broadcast_to(found.images_I[:, None], found.captions_IK.shape)
    result = apply_rules(config, lists, refresh, found.images_I, images_IK, found.captions_IK, match_probability)
    return Mined(
        tabulate(name, pool.dataset.num_images, images_IK, found.captions_IK, lists, result, judged=match_probability is not None),
        found.images_I,
        result.outcome_QK,
        lists,
        found.decodable_I,
        config.negatives_per_image,
        result.num_judged,
    )


def _caption_lists(pool: CaptionPool, found: Candidates, scale: np.float32, bias: np.float32, *, near_duplicates: bool) -> RankedLists:
    """The candidates of every image, as the rules take them."""
    hashes_IK = pool.hash_C[found.captions_IK]
    images_I1 = found.images_I[:, None]
    return RankedLists(
        there_QK=found.decodable_I[:, None] & (found.captions_IK >= 0),  # an approximate search may find fewer than K
        known_QK=pool.dataset.is_positive(images_I1, hashes_IK),
        near_QK=pool.is_near_duplicate(images_I1, found.captions_IK) if near_duplicates else None,
        key_QK=hashes_IK,
        cosines_QK=found.cosines_IK,
        logits_QK=found.cosines_IK * scale + bias,
        best_cosine_Q=found.best_positive_I,
        best_logit_Q=found.best_positive_I * scale + bias,
    )


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
    """Apply the rules to every caption's candidates and select for each up to negatives_per_image; arguments as :func:`select`."""
    lists = _image_lists(pool, found, scale, bias, near_duplicates=config.near_duplicates)
    captions_QK = np.broadcast_to(found.captions_Q[:, None], found.images_QK.shape)
    result = apply_rules(config, lists, refresh, found.captions_Q, found.images_QK, captions_QK, match_probability)
    _drop_relabelled(result.outcome_QK, found, pool)
    return Mined(
        tabulate(name, pool.dataset.num_images, found.images_QK, captions_QK, lists, result, judged=match_probability is not None),
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


def _image_lists(pool: CaptionPool, found: ImageCandidates, scale: np.float32, bias: np.float32, *, near_duplicates: bool) -> RankedLists:
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
