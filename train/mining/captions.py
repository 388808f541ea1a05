"""Mine hard-negative captions: what the model ranks highest for an image and is not known to be a positive of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.execution import ONE_PROCESS, Execution
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.mining.candidates import Candidates, find_candidates
from train.mining.cross_encoder import MiningCrossEncoder, with_cross_encoder_logits
from train.mining.ensemble import Retriever, ensemble_shares, scale_and_bias
from train.mining.faiss_index import Approximate
from train.mining.refresh import Refresh, apply_rules, table_name_of, tabulate
from train.mining.report import Mined, MiningReport, summarize
from train.mining.rules import RankedLists
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
    """Mine negatives for the images of a split among the captions of a pool; the same on every process.

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
    found = find_candidates(
        retriever,
        pool,
        config.pool_top_k,
        folder=folder,
        images_I=refresh.images_I,
        approximate=Approximate(config.index_probes) if config.index == "faiss" else None,
        execution=execution,
    )
    match_probability = cross_encoder.probabilities if cross_encoder is not None and config.denoise is not None else None
    mined = select(name, pool, found, *scale_and_bias(retriever.model, retriever.members), config, refresh, match_probability)
    if cross_encoder is not None and config.distil is not None:
        negatives = with_cross_encoder_logits(mined.negatives, cross_encoder, pool.dataset, config.distil)
        mined = replace(mined, negatives=negatives, num_judged=cross_encoder.num_judged)
    report = summarize(mined, pool, truth, refresh.before)
    return mined.negatives, replace(report, index_recall=found.recall, shares=ensemble_shares(retriever.model, retriever.members))


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
    lists = _lists(pool, found, scale, bias, near_duplicates=config.near_duplicates)
    images_IK = np.broadcast_to(found.images_I[:, None], found.captions_IK.shape)
    result = apply_rules(config, lists, refresh, found.images_I, images_IK, found.captions_IK, match_probability)
    return Mined(
        tabulate(name, pool.dataset.num_images, images_IK, found.captions_IK, lists, result, is_scored=match_probability is not None),
        found.images_I,
        result.outcome_QK,
        lists,
        found.decodable_I,
        config.negatives_per_image,
        result.num_judged,
    )


def _lists(pool: CaptionPool, found: Candidates, scale: np.float32, bias: np.float32, *, near_duplicates: bool) -> RankedLists:
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
