"""The rules of mining that read one query's candidates alone: each candidate is filtered out by the first rule that holds.

They serve both directions: a query is an image and its candidates captions, or a caption and its candidates images. Rules over all queries
together, or by a cross-encoder's score, are in train/mining/selection.py. Shape letters: Q queries, K depth.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from train.config.mining import MiningConfig


class Outcome(IntEnum):
    """The outcome of a candidate. The names from KNOWN_POSITIVE on are the rules, in the order in which they are applied."""

    NOT_LOOKED_AT = 0
    MINED = 1
    RELABELLED = 2
    NOT_DRAWN = 3
    KNOWN_POSITIVE = 4
    EQUAL_TOKENS = 5
    NEAR_DUPLICATE = 6
    RANK_MIN = 7
    RANK_MAX = 8
    MAX_SCORE = 9
    MARGIN = 10
    PERC_POS = 11
    MARGIN_POS = 12
    SAME_TEXT = 13
    MAX_USES = 14
    MATCH = 15


@dataclass(frozen=True)
class RankedLists:
    """The top K candidates of every query, best first, with the labels of each.

    Attributes:
        there_QK: bool; False where there is no candidate (an image that does not decode, or a list shorter than K).
        known_QK: bool; a positive of the data.
        equal_QK: bool; not that, but of the token ids of one.
        near_QK: bool; a near-duplicate of a positive; None: that rule is off.
        key_QK: int64; equal keys count as one candidate (the hash of a caption's normalised text, an image's group).
        cosines_QK, logits_QK: float32.
        best_cosine_Q, best_logit_Q: float32, of the query's best positive.
    """

    there_QK: np.ndarray
    known_QK: np.ndarray
    equal_QK: np.ndarray
    near_QK: np.ndarray | None
    key_QK: np.ndarray
    cosines_QK: np.ndarray
    logits_QK: np.ndarray
    best_cosine_Q: np.ndarray
    best_logit_Q: np.ndarray

    @property
    def margins_QK(self) -> np.ndarray:
        """Logit of the best positive less the candidate's, float32."""
        return self.best_logit_Q[:, None] - self.logits_QK


def filtered_out(lists: RankedLists, config: MiningConfig) -> np.ndarray:
    """The rule that filters each candidate out, as Outcome, or NOT_LOOKED_AT where none does; uint8 of shape (Q, K)."""
    ranks_1K = np.arange(1, lists.there_QK.shape[1] + 1)[None, :]
    hits = [(Outcome.KNOWN_POSITIVE, lists.known_QK), (Outcome.EQUAL_TOKENS, lists.equal_QK)]
    if lists.near_QK is not None:
        hits.append((Outcome.NEAR_DUPLICATE, lists.near_QK))
    hits.append((Outcome.RANK_MIN, ranks_1K < config.rank_min))
    if config.rank_max is not None:
        hits.append((Outcome.RANK_MAX, ranks_1K > config.rank_max))
    if config.max_score is not None:
        hits.append((Outcome.MAX_SCORE, lists.logits_QK > config.max_score))
    if config.margin is not None:
        hits.append((Outcome.MARGIN, lists.margins_QK < config.margin))
    if config.perc_pos is not None:
        hits.append((Outcome.PERC_POS, lists.cosines_QK > perc_pos_bound(lists.best_cosine_Q, config.perc_pos)[:, None]))
    if config.margin_pos is not None:
        hits.append((Outcome.MARGIN_POS, lists.cosines_QK > (lists.best_cosine_Q - np.float32(config.margin_pos))[:, None]))
    outcome_QK = np.full(lists.there_QK.shape, Outcome.NOT_LOOKED_AT, dtype=np.uint8)
    for rule, hit_QK in hits:
        outcome_QK[hit_QK & (outcome_QK == Outcome.NOT_LOOKED_AT) & lists.there_QK] = rule
    open_QK = (outcome_QK == Outcome.NOT_LOOKED_AT) & lists.there_QK
    outcome_QK[open_QK & _repeats(lists.key_QK, open_QK)] = Outcome.SAME_TEXT
    return outcome_QK


def perc_pos_bound(best_cosine_Q: np.ndarray, share: float) -> np.ndarray:
    """The largest cosine of a negative under TopK-PercPos, float32 of shape (Q,): share * positive for a positive cosine above 0.

    Below 0 the published product would exceed the positive's cosine (0.95 * -0.2 = -0.19) and let through what outscores it. There the
    bound is positive - (1 - share) * |positive|, as far below the positive as for a cosine of the opposite sign.
    """
    return best_cosine_Q - np.float32(1 - share) * np.abs(best_cosine_Q)


def _repeats(key_QK: np.ndarray, counted_QK: np.ndarray) -> np.ndarray:
    """True where an earlier candidate of the same query, among those counted, has the same key; bool of shape (Q, K)."""
    order_QK = np.argsort(key_QK, axis=1, kind="stable")
    sorted_QK = np.take_along_axis(key_QK, order_QK, axis=1)
    counted_sorted_QK = np.take_along_axis(counted_QK, order_QK, axis=1)
    starts_QK = np.ones_like(counted_sorted_QK)
    starts_QK[:, 1:] = sorted_QK[:, 1:] != sorted_QK[:, :-1]
    run_start_QK = np.maximum.accumulate(np.where(starts_QK, np.arange(key_QK.shape[1]), 0), axis=1)
    before_QK = np.cumsum(counted_sorted_QK, axis=1) - counted_sorted_QK
    repeats_sorted_QK = before_QK > np.take_along_axis(before_QK, run_start_QK, axis=1)
    repeats_QK = np.empty_like(repeats_sorted_QK)
    np.put_along_axis(repeats_QK, order_QK, repeats_sorted_QK, axis=1)
    return repeats_QK
