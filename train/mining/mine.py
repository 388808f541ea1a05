"""Mine hard negatives: what the model ranks highest for a query and is not known to be a positive of it.

Captions are mined for images or, in the form `images`, images for captions, by the same rules (train/mining/rules.py,
train/mining/selection.py); captions compare by text and by tokens (what is one to the model is never mined for one another), images by
group. Mining is retrieval (eval/search), so what is mined and what is measured cannot disagree. Where fewer negatives remain than asked
for, the shortfall is counted, never filled. Shape letters: Q queries (images or captions mined for), K depth, N rows of the table.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.dataset.retrieval_set import GroupHashes
from eval.encoder.caption_tokens import CaptionTokens
from eval.execution import ONE_PROCESS, Execution
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.mining.candidates import Candidates, Retriever, find_candidates
from train.mining.cross_encoder import MiningCrossEncoder, with_cross_encoder_logits
from train.mining.refresh import Refresh, table_name_of
from train.mining.report import Mined, MiningReport, summarize
from train.mining.rules import Outcome, RankedLists, filtered_out
from train.mining.selection import PairProbability, priorities, select_negatives


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
    mined = select(name, pool, found, scale, bias, config, refresh, match_probability)
    if cross_encoder is not None and config.distil is not None:
        negatives = with_cross_encoder_logits(mined.negatives, cross_encoder, pool.dataset, config.distil)
        mined = replace(mined, negatives=negatives, num_judged=cross_encoder.num_judged)
    return mined.negatives, summarize(mined, pool, truth, refresh.before)


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
    """Apply the rules to every query's candidates and select, for each query, up to negatives_per_image of those that pass.

    Args:
        scale, bias: of the model's logits.
        match_probability: probability that each pair (image, caption of the pool) matches; None: no denoising.
    """
    there_QK, of_images = found.items_QK >= 0, found.mined_for == "images"
    queries_Q1, items_QK = found.queries_Q[:, None], np.maximum(found.items_QK, 0)
    images, captions = (queries_Q1, items_QK) if of_images else (items_QK, queries_Q1)
    hashes = pool.hash_C[captions]
    images_QK, captions_QK, hashes_QK = np.broadcast_arrays(images, captions, hashes)
    cosines_QK = np.where(there_QK, found.cosines_QK, np.float32(0))  # any number where there is no candidate
    lists = RankedLists(
        there_QK=found.readable_Q[:, None] & there_QK,
        known_QK=pool.dataset.is_positive(images, hashes),
        equal_QK=pool.has_tokens_of_positive(images, captions),
        near_QK=pool.is_near_duplicate(images, captions) if config.near_duplicates else None,
        key_QK=hashes if of_images else pool.dataset.group_I[images],
        cosines_QK=cosines_QK,
        logits_QK=cosines_QK * scale + bias,
        best_cosine_Q=found.best_positive_Q,
        best_logit_Q=found.best_positive_Q * scale + bias,
    )
    outcome_QK, probability_QK = select_negatives(
        filtered_out(lists, config),
        lists,
        priorities(lists.logits_QK, config, refresh.seed, refresh.step, found.queries_Q),
        config,
        None if match_probability is None else lambda places: match_probability(images_QK[places], captions_QK[places]),
    )
    if not of_images:
        _drop_relabelled(outcome_QK, images_QK, hashes_QK)
    table = _table(name, pool.dataset.num_images, images_QK, captions_QK, lists, outcome_QK, probability_QK)
    num_judged = 0 if probability_QK is None else int((~np.isnan(probability_QK)).sum())
    return Mined(table, found, lists, outcome_QK, config.negatives_per_image, num_judged)


def _drop_relabelled(outcome_QK: np.ndarray, images_QK: np.ndarray, hashes_QK: np.ndarray) -> None:
    """Captions of one text are mined separately: an image that was relabelled for one of them is no negative of another."""
    relabelled_QK = outcome_QK == Outcome.RELABELLED
    if relabelled_QK.any():
        relabelled = GroupHashes(images_QK[relabelled_QK], hashes_QK[relabelled_QK])
        outcome_QK[(outcome_QK == Outcome.MINED) & relabelled.contains(images_QK, hashes_QK)] = Outcome.MATCH


def _table(
    name: str,
    num_images: int,
    images_QK: np.ndarray,
    captions_QK: np.ndarray,
    lists: RankedLists,
    outcome_QK: np.ndarray,
    probability_QK: np.ndarray | None,
) -> Negatives:
    """The table of the selected pairs: by image, and within an image in the order of the queries and their ranks."""
    relabelled_QK, match_QK = outcome_QK == Outcome.RELABELLED, outcome_QK == Outcome.MATCH
    rows_N, places_N = np.nonzero((outcome_QK == Outcome.MINED) | relabelled_QK)
    order_N = np.argsort(images_QK[rows_N, places_N], kind="stable")
    selected_N = rows_N[order_N], places_N[order_N]
    return Negatives(
        name,
        np.concatenate([[0], np.cumsum(np.bincount(images_QK[selected_N], minlength=num_images))]).astype(np.int64),
        captions_QK[selected_N],
        (selected_N[1] + 1).astype(np.int64),
        lists.logits_QK[selected_N],
        lists.margins_QK[selected_N],
        probability_QK[selected_N] if probability_QK is not None else None,
        relabelled_QK[selected_N] if relabelled_QK.any() else None,
        np.stack([images_QK[match_QK], captions_QK[match_QK]]) if match_QK.any() else None,
    )
