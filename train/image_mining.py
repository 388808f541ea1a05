"""Mine hard-negative images: for every caption what the model itself ranks highest and what is not known to be right for it.

The other direction of train/mining.py, by the same rules (train/mining_rules.py, train/allotment.py) turned round: a group of images
(pictures of one scene, say, which share their captions) stands where a caption's text stood. Shape letters: I images, Q captions mined
for, K depth, N rows of the table, P true pairs, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import SiglipModel

from eval.checkpoint import hash_weights
from eval.dataset import RetrievalSet
from eval.encoder import embed_captions, embed_images
from eval.inputs import SiglipInputs
from eval.processes import Processes
from eval.search import search
from rerank.scorer import PairScorer
from train.allotment import Judge, Taking, allot, priorities
from train.config import MiningConfig
from train.denoising import Matcher
from train.mining import Refresh, bounds_of, rules_of, temperature_of
from train.mining_rules import Outcome, RankedLists, passed_over
from train.mining_sheet import Mined, MiningSheet, draw_up
from train.negatives import Negatives, table_name
from train.pool import CaptionPool


@dataclass(frozen=True)
class ImageCandidates:
    """The head of each caption's own retrieval over the images of the split; the same on every process.

    Attributes:
        captions_Q: int64, the captions mined for, as they were given.
        images_QK: int64, best first; pictures that do not decode are never among them. -1: none, where fewer than K decode.
        cosines_QK: float32, their cosines; -inf where there is none.
        best_positive_Q: float32, cosine of the caption's best true image; -inf where none of them decodes.
    """

    captions_Q: np.ndarray
    images_QK: np.ndarray
    cosines_QK: np.ndarray
    best_positive_Q: np.ndarray


def mine_images(
    model: SiglipModel,
    inputs: SiglipInputs,
    pool: CaptionPool,
    config: MiningConfig,
    *,
    data_sha256: str,
    refresh: Refresh,
    matcher: PairScorer | None = None,
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
        processes=processes,
        num_workers=num_workers,
        on_progress=on_progress,
    )
    scale, bias = np.float32(float(model.logit_scale.detach().exp())), np.float32(float(model.logit_bias.detach()))
    asked = Matcher(matcher, pool, processes, on_progress) if matcher is not None else None
    mined = select_images(name, pool, found, scale, bias, config, refresh, asked.probabilities if asked is not None else None)
    return mined.negatives, draw_up(mined, pool, truth, refresh.before)


def find_image_candidates(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: RetrievalSet,
    depth: int,
    captions_Q: np.ndarray,
    *,
    processes: Processes = Processes(),
    num_workers: int = 0,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> ImageCandidates:
    """Embed and search.

    Args:
        depth: K, cut to the number of images.
        captions_Q: int64, the captions to mine for.
        on_progress: called with the number of rows embedded.
    """
    images_ID = embed_images(
        model, inputs, dataset, processes=processes, num_workers=num_workers, allow_undecodable=True, on_progress=on_progress
    )
    captions_CD = embed_captions(model, inputs, dataset.captions, processes=processes, on_progress=on_progress)
    positives = dataset.positives("text_to_image")
    decodable_I = np.any(images_ID != 0, axis=1)
    deeper = depth + int((~decodable_I).sum())  # rows of zeros are found too, and left out
    device = next(model.parameters()).device
    ranking = search("text_to_image", captions_CD, images_ID, positives, deeper, device=device, processes=processes)
    images_QK, cosines_QK = ranking.top_indices_QK[captions_Q], ranking.top_scores_QK[captions_Q]
    decodable_QK = decodable_I[images_QK]
    order_QK = np.argsort(~decodable_QK, axis=1, kind="stable")[:, :depth]
    best_C = _best_true_cosines(images_ID, captions_CD, decodable_I, positives.indices_P, positives.query_P)
    return ImageCandidates(
        captions_Q,
        np.take_along_axis(np.where(decodable_QK, images_QK, -1), order_QK, axis=1),
        np.take_along_axis(np.where(decodable_QK, cosines_QK, -np.inf).astype(np.float32), order_QK, axis=1),
        best_C[captions_Q],
    )


def _best_true_cosines(
    images_ID: np.ndarray, captions_CD: np.ndarray, decodable_I: np.ndarray, images_P: np.ndarray, captions_P: np.ndarray
) -> np.ndarray:
    """Cosine of each caption's best true image that decodes, float32 of shape (C,); -inf without one."""
    best_C = np.full(len(captions_CD), -np.inf, dtype=np.float32)
    seen_P = decodable_I[images_P]
    for start in range(0, len(images_P), 65536):  # bounds the memory of the two gathered sides
        part = np.arange(start, min(start + 65536, len(images_P)))[seen_P[start : start + 65536]]
        cosines = np.einsum("pd,pd->p", images_ID[images_P[part]], captions_CD[captions_P[part]])
        np.maximum.at(best_C, captions_P[part], cosines)
    return best_C


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
    )
