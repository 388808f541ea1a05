"""Mine hard-negative images: for every caption what the model itself ranks highest and what is not known to be right for it.

The other direction of train/mining.py, by the same rules (train/mining_rules.py, train/allotment.py) turned round: a group of images
(pictures of one scene, say, which share their captions) stands where a caption's text stood. Shape letters: I images, Q captions mined
for, K depth, N rows of the table, P true pairs, D width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import SiglipModel

from eval.checkpoint import hash_weights
from eval.dataset import GroupHashes
from eval.inputs import SiglipInputs
from eval.processes import Processes
from rerank.scorer import PairScorer
from train.allotment import Judge, Taking, allot, priorities
from train.candidates import ImageCandidates, find_image_candidates
from train.denoising import Matcher
from train.mining import Refresh, bounds_of, doubtful, rules_of, temperature_of
from train.mining_config import MiningConfig
from train.mining_rules import Outcome, RankedLists, passed_over
from train.mining_sheet import Mined, MiningSheet, draw_up
from train.negatives import Negatives, table_name
from train.pool import CaptionPool


def mine_images(
    model: SiglipModel,
    inputs: SiglipInputs,
    pool: CaptionPool,
    config: MiningConfig,
    *,
    data_sha256: str,
    refresh: Refresh,
    matcher: PairScorer | None = None,
    folder: Path | None = None,
    processes: Processes = Processes(),
    num_workers: int = 0,
    truth: set[tuple[str, str]] | None = None,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> tuple[Negatives, MiningSheet]:
    """Mine hard images for the captions of a split, or of refresh.images_I, among all its images; the same on every process.

    The table holds pairs of an image and a caption as ever, by image: here the image was mined for the caption, the rank is the image's
    among all images for that caption, and the margin is taken from the caption's best true image.

    Args, Raises: as train.mining.mine.
    """
    if (config.denoise is None) != (matcher is None):
        raise ValueError("a matcher is given if and only if config.denoise asks for one")
    name = table_name(hash_weights(model), data_sha256, rules_of(config, refresh, matcher, pool) | {"form": "images"} | inputs.contract)
    captions_Q = np.arange(pool.dataset.num_captions)
    if refresh.images_I is not None:
        captions_Q = captions_Q[np.isin(pool.dataset.caption_image_C, refresh.images_I)]
    found = find_image_candidates(
        model,
        inputs,
        pool.dataset,
        config.pool_top_k,
        captions_Q,
        folder=folder,
        processes=processes,
        num_workers=num_workers,
        on_progress=on_progress,
    )
    scale, bias = np.float32(float(model.logit_scale.detach().exp())), np.float32(float(model.logit_bias.detach()))
    asked = Matcher(matcher, pool, processes, on_progress) if matcher is not None else None
    mined = select_images(name, pool, found, scale, bias, config, refresh, asked.probabilities if asked is not None else None)
    return mined.negatives, draw_up(mined, pool, truth, refresh.before)


def select_images(
    name: str,
    pool: CaptionPool,
    found: ImageCandidates,
    scale: np.float32,
    bias: np.float32,
    config: MiningConfig,
    refresh: Refresh,
    judge: Judge | None = None,
) -> Mined:
    """Apply the rules to every caption's candidates and take, for each, up to negatives_per_image of those that pass.

    Args:
        scale, bias: of the model's logits.
        judge: probabilities that pairs of (image, caption of the pool) match; None: no denoising.
    """
    lists = _lists(pool, found, scale, bias, near_duplicates=config.near_duplicates)
    taking = Taking(config.negatives_per_image, config.max_uses)
    if config.denoise is not None:
        taking = Taking(config.negatives_per_image, config.max_uses, config.denoise.threshold, config.denoise.relabel_at)
    result = allot(
        passed_over(lists, bounds_of(config)),
        lists.there_QK,
        lists.key_QK,
        priorities(lists.logits_QK, config.selection, temperature_of(config), refresh.seed, refresh.step, found.captions_Q),
        taking,
        in_rank_order=config.selection == "top",
        judge=None if judge is None else lambda rows_N, places_N: judge(found.images_QK[rows_N, places_N], found.captions_Q[rows_N]),
    )
    _settle(result.outcome_QK, found, pool)
    return Mined(
        _table(name, pool.dataset.num_images, found, lists, result.outcome_QK, None if judge is None else result.probability_QK),
        found.captions_Q,
        result.outcome_QK,
        lists,
        np.isfinite(found.best_positive_Q),
        config.negatives_per_image,
        int((~np.isnan(result.probability_QK)).sum()),
        mined_for="captions",
    )


def _settle(outcome_QK: np.ndarray, found: ImageCandidates, pool: CaptionPool) -> None:
    """Captions of one text are judged apart: an image that was relabelled for one of them is no negative of another."""
    relabelled_QK, mined_QK = outcome_QK == Outcome.RELABELLED, outcome_QK == Outcome.MINED
    if relabelled_QK.any():
        hashes_QK = np.broadcast_to(pool.hash_C[found.captions_Q][:, None], outcome_QK.shape)
        true = GroupHashes(found.images_QK[relabelled_QK], hashes_QK[relabelled_QK], pool.dataset.num_images)
        both_QK = mined_QK & true.contains(found.images_QK, hashes_QK)
        outcome_QK[both_QK] = Outcome.MATCH


def _lists(pool: CaptionPool, found: ImageCandidates, scale: np.float32, bias: np.float32, *, near_duplicates: bool) -> RankedLists:
    """The candidates of every caption as the rules read them; a caption none of whose true images decodes has none."""
    images_QK, captions_Q1 = np.maximum(found.images_QK, 0), found.captions_Q[:, None]
    cosines_QK = np.where(found.images_QK >= 0, found.cosines_QK, np.float32(0))  # where there is none, any number does
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


def _table(
    name: str, num_images: int, found: ImageCandidates, lists: RankedLists, outcome_QK: np.ndarray, match_QK: np.ndarray | None
) -> Negatives:
    """What was taken, in the order of a table: by image, then by caption."""
    relabelled_QK = outcome_QK == Outcome.RELABELLED
    rows_N, places_N = np.nonzero((outcome_QK == Outcome.MINED) | relabelled_QK)
    order_N = np.lexsort((found.captions_Q[rows_N], found.images_QK[rows_N, places_N]))
    rows_N, places_N = rows_N[order_N], places_N[order_N]
    counts = np.bincount(found.images_QK[rows_N, places_N], minlength=num_images)
    return Negatives(
        name,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        found.captions_Q[rows_N],
        (places_N + 1).astype(np.int64),
        lists.logits_QK[rows_N, places_N],
        lists.margins_QK[rows_N, places_N],
        None if match_QK is None else match_QK[rows_N, places_N],
        relabelled_QK[rows_N, places_N] if relabelled_QK.any() else None,
        doubtful(outcome_QK, found.images_QK, found.captions_Q[:, None]),
    )
