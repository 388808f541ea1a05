"""What mining captions and mining images (train/mining/mine.py) share: the rules, and the table of the result.

Mining is retrieval (eval/search), so what is mined and what is measured cannot disagree. Every candidate that is filtered out is counted
by its rule (train/mining/rules.py, train/mining/selection.py). Where fewer negatives remain than asked for, the shortfall is counted, never
filled. Shape letters: Q queries (images or captions mined for), K depth, N rows of the table.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.encoder.checkpoint import hash_weights
from rerank.scorers.scorer import PairScorer
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives, table_name
from train.mining.cross_encoder import MiningCrossEncoder
from train.mining.ensemble import MiningMember, Retriever
from train.mining.faiss_index import Approximate
from train.mining.rules import Outcome, RankedLists, Rules, filtered_out
from train.mining.selection import PairProbability, SelectionOutcome, SelectionRule, priorities, select_negatives

_RULES = (
    "negatives_per_image", "margin", "pool_top_k", "near_duplicates", "rank_min", "rank_max", "max_score", "perc_pos", "margin_pos",
    "max_uses", "selection",
)  # fmt: skip


@dataclass(frozen=True)
class Refresh:
    """One refresh of the negatives: at which step, for which images, and with what is cached.

    Attributes:
        seed, step: of the run; random numbers are keyed by them and the query.
        images_I: int64, the images to mine for, ascending; None: all.
        before: the table that this one takes the place of; None for the first.
    """

    seed: int = 0
    step: int = 0
    images_I: np.ndarray | None = None
    before: Negatives | None = None


def rules_of(
    config: MiningConfig,
    refresh: Refresh = Refresh(),
    cross_encoder: PairScorer | None = None,
    pool: CaptionPool | None = None,
    members: Sequence[MiningMember] = (),
) -> dict[str, Any]:
    """What decides which captions are mined, next to weights and data (the weight in the loss does not); part of the table's name."""
    rules: dict[str, Any] = config.model_dump(include=set(_RULES))
    if config.selection == "softmax":
        rules["temperature"] = temperature_of(config)
    if config.selection != "top":
        rules["draws"] = [refresh.seed, refresh.step]
    if refresh.images_I is not None:
        rules["images"] = hashlib.sha256(refresh.images_I.astype(np.int64).tobytes()).hexdigest()
    if pool is not None and len(pool) > pool.num_captions:
        rules["pool"] = pool.additional.sha256
    if members:
        rules["ensemble"] = [[member.sha256, member.weight] for member in members]
    if config.index == "faiss":
        rules |= Approximate(config.index_probes).rules()
    if cross_encoder is not None and config.denoise is not None:
        rules["denoise"] = [cross_encoder.fingerprint, config.denoise.threshold, config.denoise.relabel_at]
    if cross_encoder is not None and config.distil is not None:
        rules["distil"] = [cross_encoder.fingerprint, config.distil.form]
    return rules


def temperature_of(config: MiningConfig) -> float:
    """The temperature in force, in logits."""
    return 1.0 if config.temperature is None else config.temperature


def table_name_of(
    retriever: Retriever,
    pool: CaptionPool,
    config: MiningConfig,
    refresh: Refresh,
    cross_encoder: MiningCrossEncoder | None,
) -> str:
    """The name of a table to be mined: a hash of all that decides what will be in it.

    Raises:
        ValueError: a cross-encoder is given and neither config.denoise nor config.distil asks for one, or the other way round; or there are
            other members than config.ensemble names.
    """
    if (config.denoise is None and config.distil is None) != (cross_encoder is None):
        raise ValueError("a cross-encoder is given if and only if config.denoise or config.distil asks for one")
    if [weight for _, weight in config.members] != [member.weight for member in retriever.members]:
        raise ValueError(f"expected the {len(config.members)} members of config.ensemble; found {len(retriever.members)}, or other weights")
    rules = rules_of(config, refresh, cross_encoder.scorer if cross_encoder is not None else None, pool, retriever.members)
    rules |= ({"form": "images"} if config.form == "images" else {}) | retriever.inputs.contract
    return table_name(hash_weights(retriever.model), pool.data_sha256, rules)


def apply_rules(
    config: MiningConfig,
    lists: RankedLists,
    refresh: Refresh,
    queries_Q: np.ndarray,
    images_QK: np.ndarray,
    captions_QK: np.ndarray,
    match_probability: PairProbability | None,
) -> SelectionOutcome:
    """Filter and select every query's candidates; queries are images or captions.

    Args:
        queries_Q: int64, the images or captions mined for, by which random numbers are keyed.
        images_QK, captions_QK: int64, the pair of each candidate.
        match_probability: probability that each pair (image, caption of the pool) matches; None: no denoising.
    """
    denoise, of_pairs = config.denoise, match_probability
    of_places = None if of_pairs is None else lambda rows_N, places_N: of_pairs(images_QK[rows_N, places_N], captions_QK[rows_N, places_N])
    bounds = Rules(config.rank_min, config.rank_max, config.max_score, config.margin, config.perc_pos, config.margin_pos)
    rule = SelectionRule(config.negatives_per_image, config.max_uses)
    if denoise is not None:
        rule = SelectionRule(config.negatives_per_image, config.max_uses, denoise.threshold, denoise.relabel_at)
    return select_negatives(
        filtered_out(lists, bounds),
        lists.there_QK,
        lists.key_QK,
        priorities(lists.logits_QK, config.selection, temperature_of(config), refresh.seed, refresh.step, queries_Q),
        rule,
        in_rank_order=config.selection == "top",
        match_probability=of_places,
    )


def tabulate(
    name: str,
    num_images: int,
    images_QK: np.ndarray,
    captions_QK: np.ndarray,
    lists: RankedLists,
    result: SelectionOutcome,
    *,
    is_scored: bool,
) -> Negatives:
    """The table of the selected candidates: by image, and within an image in the order of the queries and their ranks.

    Args:
        images_QK, captions_QK: int64, the pair of each candidate.
        is_scored: whether a cross-encoder scored them.
    """
    relabelled_QK, match_QK = result.outcome_QK == Outcome.RELABELLED, result.outcome_QK == Outcome.MATCH
    rows_N, places_N = np.nonzero((result.outcome_QK == Outcome.MINED) | relabelled_QK)
    order_N = np.argsort(images_QK[rows_N, places_N], kind="stable")
    selected_N = rows_N[order_N], places_N[order_N]
    return Negatives(
        name,
        np.concatenate([[0], np.cumsum(np.bincount(images_QK[selected_N], minlength=num_images))]).astype(np.int64),
        captions_QK[selected_N],
        (selected_N[1] + 1).astype(np.int64),
        lists.logits_QK[selected_N],
        lists.margins_QK[selected_N],
        result.probability_QK[selected_N] if is_scored else None,
        relabelled_QK[selected_N] if relabelled_QK.any() else None,
        np.stack([images_QK[match_QK], captions_QK[match_QK]]) if match_QK.any() else None,
    )
