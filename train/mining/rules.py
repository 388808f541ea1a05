"""The rules of mining that look at one query's candidates alone: which are passed over, each by the first rule that says so.

They do not care about direction: a query is an image and its candidates captions, or a caption and its candidates images. What a rule of
its own decides over all queries together, or by asking a cross-encoder, stands in train/mining/selection.py. Shape letters: Q queries, K
depth.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Outcome(IntEnum):
    """What became of a candidate. The names from KNOWN_POSITIVE on are the rules, in the order in which they are asked."""

    NOT_LOOKED_AT = 0
    MINED = 1
    RELABELLED = 2
    NOT_DRAWN = 3
    KNOWN_POSITIVE = 4
    NEAR_DUPLICATE = 5
    RANK_MIN = 6
    RANK_MAX = 7
    MAX_SCORE = 8
    MARGIN = 9
    PERC_POS = 10
    MARGIN_POS = 11
    SAME_TEXT = 12
    MAX_USES = 13
    MATCH = 14

    @property
    def is_rule(self) -> bool:
        """Whether it says that a rule passed the candidate over."""
        return self >= Outcome.KNOWN_POSITIVE


@dataclass(frozen=True)
class Rules:
    """Bounds on a candidate's rank and score; None: no such rule.

    Attributes:
        rank_min, rank_max: the window of ranks, from 1, both ends in it.
        max_score: most logit.
        margin: least logits under the query's best positive; negative: so many above it are still taken.
        perc_pos: most share of the best positive's cosine (TopK-PercPos of NV-Retriever, arXiv 2407.15831).
        margin_pos: least cosine under the best positive's (TopK-MarginPos, the same).
    """

    rank_min: int = 1
    rank_max: int | None = None
    max_score: float | None = None
    margin: float | None = None
    perc_pos: float | None = None
    margin_pos: float | None = None


@dataclass(frozen=True)
class RankedLists:
    """The head of every query's own retrieval, best first, with what the data knows of each candidate.

    Attributes:
        there_QK: bool; False: no candidate at all (its picture does not decode, say), never looked at.
        known_QK: bool; the data says it is true.
        near_QK: bool; it says in nearly the same words what is true; None: not asked.
        key_QK: int64; equal keys are one candidate twice (the hash of a caption's normalised text, an image's group).
        cosines_QK, logits_QK: float32.
        best_cosine_Q, best_logit_Q: float32, of the query's best positive.
    """

    there_QK: np.ndarray
    known_QK: np.ndarray
    near_QK: np.ndarray | None
    key_QK: np.ndarray
    cosines_QK: np.ndarray
    logits_QK: np.ndarray
    best_cosine_Q: np.ndarray
    best_logit_Q: np.ndarray

    @property
    def margins_QK(self) -> np.ndarray:
        """Logit of the best positive less the candidate's, float32."""
        margins_QK: np.ndarray = self.best_logit_Q[:, None] - self.logits_QK
        return margins_QK


def filtered_out(lists: RankedLists, rules: Rules) -> np.ndarray:
    """The rule that passes each candidate over, as Outcome, or NOT_LOOKED_AT where none does; uint8 of shape (Q, K)."""
    verdict_QK = np.full(lists.there_QK.shape, Outcome.NOT_LOOKED_AT, dtype=np.uint8)
    for rule, hit_QK in _hits(lists, rules):
        verdict_QK[hit_QK & (verdict_QK == Outcome.NOT_LOOKED_AT) & lists.there_QK] = rule
    open_QK = (verdict_QK == Outcome.NOT_LOOKED_AT) & lists.there_QK
    verdict_QK[open_QK & repeats(lists.key_QK, open_QK)] = Outcome.SAME_TEXT
    return verdict_QK


def _hits(lists: RankedLists, rules: Rules) -> list[tuple[Outcome, np.ndarray]]:
    """(rule, where it holds) of every rule in force, in order."""
    ranks_1K = np.arange(1, lists.there_QK.shape[1] + 1)[None, :]
    hits = [(Outcome.KNOWN_POSITIVE, lists.known_QK)]
    if lists.near_QK is not None:
        hits.append((Outcome.NEAR_DUPLICATE, lists.near_QK))
    hits.append((Outcome.RANK_MIN, ranks_1K < rules.rank_min))
    if rules.rank_max is not None:
        hits.append((Outcome.RANK_MAX, ranks_1K > rules.rank_max))
    if rules.max_score is not None:
        hits.append((Outcome.MAX_SCORE, lists.logits_QK > rules.max_score))
    if rules.margin is not None:
        hits.append((Outcome.MARGIN, lists.margins_QK < rules.margin))
    if rules.perc_pos is not None:
        hits.append((Outcome.PERC_POS, lists.cosines_QK > perc_pos_bound(lists.best_cosine_Q, rules.perc_pos)[:, None]))
    if rules.margin_pos is not None:
        hits.append((Outcome.MARGIN_POS, lists.cosines_QK > (lists.best_cosine_Q - np.float32(rules.margin_pos))[:, None]))
    return hits


def perc_pos_bound(best_cosine_Q: np.ndarray, share: float) -> np.ndarray:
    """Most cosine a negative may have under TopK-PercPos, float32 of shape (Q,): share * positive where that is above 0.

    Below 0 the published product would lie above the positive (0.95 * -0.2 = -0.19) and let through what outscores the truth; there the
    bound lies as far below the positive as it would for its mirror image: positive - (1 - share) * |positive|.
    """
    bound_Q: np.ndarray = best_cosine_Q - np.float32(1 - share) * np.abs(best_cosine_Q)
    return bound_Q


def repeats(key_QK: np.ndarray, counted_QK: np.ndarray) -> np.ndarray:
    """True where an earlier candidate of the same query that counts has the same key; bool of shape (Q, K)."""
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
