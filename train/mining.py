"""Mine hard-negative captions: what the model itself ranks highest for an image and what is not known to be true of it.

Mining is retrieval (eval/search), so what is mined and what is measured cannot disagree. Every caption that is passed over is counted
by its reason (train/mining_rules.py, train/allotment.py); where fewer than asked for remain, the shortfall stays and is counted.
Shape letters: I images mined for, K depth, N rows of the table.
`python -m train.mining CONFIG.yaml` mines only, with the base model (train/mining_command.py).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import SiglipModel

from eval.checkpoint import hash_weights
from eval.inputs import SiglipInputs
from eval.processes import Processes
from rerank.pair_store import PairStore
from rerank.scorer import PairScorer
from train.allotment import Allotment, Judge, Taking, allot, priorities
from train.approximate import Approximate
from train.candidates import Candidates, find_candidates
from train.denoising import Matcher
from train.distillation import distillation_rules, with_matcher_logits
from train.frozen import NOTHING_FROZEN, FrozenEmbeddings
from train.mining_config import MiningConfig
from train.mining_members import Member, check_members, scale_and_bias, shares_of
from train.mining_rules import Outcome, RankedLists, Rules, passed_over
from train.mining_sheet import Mined, MiningSheet, draw_up
from train.negatives import Negatives, table_name
from train.pool import CaptionPool

_RULES = (
    "negatives_per_image", "margin", "pool_top_k", "near_duplicates", "rank_min", "rank_max", "max_score", "perc_pos", "margin_pos",
    "max_uses", "selection",
)  # fmt: skip


@dataclass(frozen=True)
class Refresh:
    """When and for whom is mined.

    Attributes:
        seed, step: of the run; random draws follow from them and the image.
        images_I: int64, the images to mine for, ascending; None: all.
        before: the table that this one takes the place of; None for the first.
        frozen: embeddings that are kept already and need not be made again.
        members: the fixed checkpoints of config.ensemble.
    """

    seed: int = 0
    step: int = 0
    images_I: np.ndarray | None = None
    before: Negatives | None = None
    frozen: FrozenEmbeddings = NOTHING_FROZEN
    members: tuple[Member, ...] = ()


def rules_of(config: MiningConfig, refresh: Refresh = Refresh(), matcher: PairScorer | None = None, pool: CaptionPool | None = None) -> Any:
    """What, beside weights and data, decides which captions are mined (the weight in the loss does not); goes into the table's name."""
    rules: dict[str, Any] = config.model_dump(include=set(_RULES))
    if config.selection == "softmax":
        rules["temperature"] = temperature_of(config)
    if config.selection != "top":
        rules["draws"] = [refresh.seed, refresh.step]
    if refresh.images_I is not None:
        rules["images"] = hashlib.sha256(refresh.images_I.astype(np.int64).tobytes()).hexdigest()
    if pool is not None and len(pool) > pool.num_captions:
        rules["pool"] = pool.further.sha256
    if refresh.members:
        rules["ensemble"] = [[member.sha256, member.weight] for member in refresh.members]
    if config.index == "faiss":
        rules |= Approximate(config.index_probes).rules()
    if matcher is not None and config.denoise is not None:
        rules["denoise"] = [matcher.fingerprint, config.denoise.threshold, config.denoise.relabel_at]
    if matcher is not None and config.distil is not None:
        rules["distil"] = distillation_rules(config.distil, matcher)
    return rules


def temperature_of(config: MiningConfig) -> float:
    """The temperature in force, in logits."""
    return 1.0 if config.temperature is None else config.temperature


def mine(
    model: SiglipModel,
    inputs: SiglipInputs,
    pool: CaptionPool,
    config: MiningConfig,
    *,
    data_sha256: str,
    refresh: Refresh = Refresh(),
    matcher: PairScorer | None = None,
    kept: PairStore | None = None,
    folder: Path | None = None,
    processes: Processes = Processes(),
    num_workers: int = 0,
    truth: set[tuple[str, str]] | None = None,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> tuple[Negatives, MiningSheet]:
    """Mine negatives for the images of a split among the captions of a pool; the same on every process.

    Args:
        data_sha256: dataset.sha256(), which is slow to compute again and again.
        matcher: the cross-encoder of config.denoise and config.distil; its scores are margins (train/denoising.py).
        kept: where its scores are kept, and read from; None: it is asked about every pair.
        folder: where embeddings lie meanwhile; None: the system's temporary folder.
        truth: (image id, caption id) pairs known to be true beyond the data; used to count false negatives only.
        on_progress: called with the number of rows embedded.

    Raises:
        UserError: a score of the cross-encoder is not finite.
        ValueError: there is a matcher that nothing asks, or none that is asked; or other members than config.ensemble names.
    """
    check_matcher(config, matcher)
    check_members(config, refresh.members)
    name = table_name(hash_weights(model), data_sha256, rules_of(config, refresh, matcher, pool) | inputs.contract)
    found = find_candidates(
        model,
        inputs,
        pool.dataset,
        config.pool_top_k,
        folder=folder,
        further=pool.further.texts,
        images_I=refresh.images_I,
        approximate=Approximate(config.index_probes) if config.index == "faiss" else None,
        frozen=refresh.frozen,
        members=refresh.members,
        processes=processes,
        num_workers=num_workers,
        on_progress=on_progress,
    )
    asked = Matcher(matcher, pool, processes, on_progress, kept) if matcher is not None else None
    judge = asked.probabilities if asked is not None and config.denoise is not None else None
    mined = select(name, pool, found, *scale_and_bias(model, refresh.members), config, refresh, judge)
    if asked is not None and config.distil is not None:
        negatives = with_matcher_logits(mined.negatives, asked, pool.dataset, config.distil)
        mined = replace(mined, negatives=negatives, num_judged=asked.num_judged)
    sheet = draw_up(mined, pool, truth, refresh.before)
    return mined.negatives, replace(sheet, index_recall=found.recall, shares=shares_of(model, refresh.members))


def select(
    name: str,
    pool: CaptionPool,
    found: Candidates,
    scale: np.float32,
    bias: np.float32,
    config: MiningConfig,
    refresh: Refresh = Refresh(),
    judge: Judge | None = None,
) -> Mined:
    """Apply the rules to every image's candidates and take, for each, up to negatives_per_image of those that pass.

    Args:
        scale, bias: of the logits, the model's or the ensemble's.
        judge: probabilities that pairs of (image, caption of the pool) match; None: no denoising.
    """
    lists = _lists(pool, found, scale, bias, near_duplicates=config.near_duplicates)
    images_IK = np.broadcast_to(found.images_I[:, None], found.captions_IK.shape)
    result = apply_rules(config, lists, refresh, found.images_I, images_IK, found.captions_IK, judge)
    return Mined(
        tabulate(name, pool.dataset.num_images, images_IK, found.captions_IK, lists, result, judged=judge is not None),
        found.images_I,
        result.outcome_QK,
        lists,
        found.decodable_I,
        config.negatives_per_image,
        result.num_judged,
    )


def check_matcher(config: MiningConfig, matcher: PairScorer | None) -> None:
    """Raises ValueError where there is a matcher and neither config.denoise nor config.distil, or the other way round."""
    if (config.denoise is None and config.distil is None) != (matcher is None):
        raise ValueError("a matcher is given if and only if config.denoise or config.distil asks for one")


def apply_rules(
    config: MiningConfig,
    lists: RankedLists,
    refresh: Refresh,
    queries_Q: np.ndarray,
    images_QK: np.ndarray,
    captions_QK: np.ndarray,
    judge: Judge | None,
) -> Allotment:
    """What becomes of every candidate, whether images ask for captions or captions for images.

    Args:
        queries_Q: int64, the images or captions mined for, which random draws are keyed by.
        images_QK, captions_QK: int64, the pair that each candidate is.
        judge: probabilities that pairs of (image, caption of the pool) match; None: no denoising.
    """
    denoise = config.denoise
    taking = Taking(config.negatives_per_image, config.max_uses)
    if denoise is not None:
        taking = Taking(config.negatives_per_image, config.max_uses, denoise.threshold, denoise.relabel_at)
    return allot(
        passed_over(lists, bounds_of(config)),
        lists.there_QK,
        lists.key_QK,
        priorities(lists.logits_QK, config.selection, temperature_of(config), refresh.seed, refresh.step, queries_Q),
        taking,
        in_rank_order=config.selection == "top",
        judge=None if judge is None else lambda rows_N, places_N: judge(images_QK[rows_N, places_N], captions_QK[rows_N, places_N]),
    )


def tabulate(
    name: str,
    num_images: int,
    images_QK: np.ndarray,
    captions_QK: np.ndarray,
    lists: RankedLists,
    result: Allotment,
    *,
    judged: bool,
) -> Negatives:
    """The table of what was taken: by image, and within an image in the order of the queries and their ranks.

    Args:
        images_QK, captions_QK: int64, the pair that each candidate is.
        judged: whether a cross-encoder was asked.
    """
    relabelled_QK, match_QK = result.outcome_QK == Outcome.RELABELLED, result.outcome_QK == Outcome.MATCH
    rows_N, places_N = np.nonzero((result.outcome_QK == Outcome.MINED) | relabelled_QK)
    order_N = np.argsort(images_QK[rows_N, places_N], kind="stable")
    taken_N = rows_N[order_N], places_N[order_N]
    return Negatives(
        name,
        np.concatenate([[0], np.cumsum(np.bincount(images_QK[taken_N], minlength=num_images))]).astype(np.int64),
        captions_QK[taken_N],
        (taken_N[1] + 1).astype(np.int64),
        lists.logits_QK[taken_N],
        lists.margins_QK[taken_N],
        result.probability_QK[taken_N] if judged else None,
        relabelled_QK[taken_N] if relabelled_QK.any() else None,
        np.stack([images_QK[match_QK], captions_QK[match_QK]]) if match_QK.any() else None,
    )


def _lists(pool: CaptionPool, found: Candidates, scale: np.float32, bias: np.float32, *, near_duplicates: bool) -> RankedLists:
    """The candidates of every image as the rules read them."""
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


def bounds_of(config: MiningConfig) -> Rules:
    """The bounds on ranks and scores."""
    return Rules(config.rank_min, config.rank_max, config.max_score, config.margin, config.perc_pos, config.margin_pos)


if __name__ == "__main__":
    import sys

    from train.mining_command import main

    sys.exit(main(sys.argv[1:]))
