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
    if config.form == "images":
        captions_Q = np.arange(pool.dataset.num_captions)
        if refresh.images_I is not None:
            captions_Q = captions_Q[np.isin(pool.dataset.caption_image_C, refresh.images_I)]
        found: Candidates | ImageCandidates = find_image_candidates(
            retriever, pool.dataset, config.pool_top_k, captions_Q, folder=folder, execution=execution
        )
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
    mined = select(name, pool, found, *scale_and_bias(retriever.model, retriever.members), config, refresh, match_probability)
    if cross_encoder is not None and config.distil is not None:
        negatives = with_cross_encoder_logits(mined.negatives, cross_encoder, pool.dataset, config.distil)
        mined = replace(mined, negatives=negatives, num_judged=cross_encoder.num_judged)
    shares = ensemble_weights(retriever.model, retriever.members)[0] if retriever.members else None
    return mined.negatives, replace(summarize(mined, pool, truth, refresh.before), index_recall=found.recall, shares=shares)


def select(
    name: str,
    pool: CaptionPool,
    found: Candidates | ImageCandidates,
    scale: np.float32,
    bias: np.float32,
    config: MiningConfig,
    refresh: Refresh = Refresh(),
    match_probability: PairProbability | None = None,
) -> Mined:
    """Apply the rules to every query's candidates and select, for each query, up to negatives_per_image of those that pass.

    Args:
        scale, bias: of the logits, the model's or the ensemble's.
        match_probability: probability that each pair (image, caption of the pool) matches; None: no denoising.
    """
    if isinstance(found, ImageCandidates):
        queries_Q, best_Q, readable_Q, there_QK = found.captions_Q, found.best_positive_Q, found.readable_Q, found.images_QK >= 0
        images, captions = np.maximum(found.images_QK, 0), queries_Q[:, None]
        keys_QK, cosines_QK = pool.dataset.group_I[images], np.where(there_QK, found.cosines_QK, np.float32(0))  # any number where none is
    else:  # an approximate search may find fewer than K
        queries_Q, best_Q, readable_Q, there_QK = found.images_I, found.best_positive_I, found.decodable_I, found.captions_IK >= 0
        images, captions = queries_Q[:, None], found.captions_IK
        keys_QK, cosines_QK = pool.hash_C[captions], found.cosines_IK
    lists = RankedLists(
        there_QK=readable_Q[:, None] & there_QK,
        known_QK=pool.dataset.is_positive(images, pool.hash_C[captions]),
        near_QK=pool.is_near_duplicate(images, captions) if config.near_duplicates else None,
        key_QK=keys_QK,
        cosines_QK=cosines_QK,
        logits_QK=cosines_QK * scale + bias,
        best_cosine_Q=best_Q,
        best_logit_Q=best_Q * scale + bias,
    )
    images_QK, captions_QK = (np.broadcast_to(pairs, there_QK.shape) for pairs in (images, captions))
    result = apply_rules(config, lists, refresh, queries_Q, images_QK, captions_QK, match_probability)
    if found.mined_for == "captions":
        _drop_relabelled(result.outcome_QK, images_QK, pool.hash_C[captions_QK])
    return Mined(
        tabulate(name, pool.dataset.num_images, images_QK, captions_QK, lists, result, is_scored=match_probability is not None),
        queries_Q,
        result.outcome_QK,
        lists,
        readable_Q,
        config.negatives_per_image,
        result.num_judged,
        found.mined_for,
    )


def _drop_relabelled(outcome_QK: np.ndarray, images_QK: np.ndarray, hashes_QK: np.ndarray) -> None:
    """Captions of one text are mined separately: an image that was relabelled for one of them is no negative of another."""
    relabelled_QK = outcome_QK == Outcome.RELABELLED
    if relabelled_QK.any():
        relabelled = GroupHashes(images_QK[relabelled_QK], hashes_QK[relabelled_QK])
        outcome_QK[(outcome_QK == Outcome.MINED) & relabelled.contains(images_QK, hashes_QK)] = Outcome.MATCH
