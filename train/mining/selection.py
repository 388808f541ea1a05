"""Which of the candidates that pass the rules are taken: in the order of their scores or drawn, no candidate too often, none that matches.

All of it is a function of whole arrays and of (seed, step, query), so any number of processes, and a resumed run, take the same. It does
not care about direction (train/mining/rules.py). Shape letters: Q queries, K depth, N candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from train.data.order import generator
from train.mining.rules import Outcome

Selection = Literal["top", "random", "softmax"]
Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(rows, places) of candidates, int64 of shape (N,), to the probability that each is true, float32 of shape (N,)."""

_STREAM = 0x6D696E65  # of random numbers; apart from those of train/data/batches.py


@dataclass(frozen=True)
class SelectionOutcome:
    """What became of every candidate.

    Attributes:
        outcome_QK: uint8, an Outcome.
        probability_QK: float32, the judge's word; NaN where it was not asked.
    """

    outcome_QK: np.ndarray
    probability_QK: np.ndarray

    @property
    def num_judged(self) -> int:
        """Candidates that the judge was asked about."""
        return int((~np.isnan(self.probability_QK)).sum())


@dataclass(frozen=True)
class SelectionRule:
    """How many are taken of each, and in which order.

    Attributes:
        per_query: most taken for a query.
        max_uses: most queries that take candidates of one key; None: no bound.
        match_at: probability from which a candidate counts as a match, which is never taken as a negative.
        relabel_at: probability from which a match becomes a positive of its query, at most per_query of them; None: none does.
    """

    per_query: int
    max_uses: int | None = None
    match_at: float = 0.5
    relabel_at: float | None = None


def priorities(logits_QK: np.ndarray, selection: Selection, temperature: float, seed: int, step: int, queries_Q: np.ndarray) -> np.ndarray:
    """What decides who comes first, larger first; float64 of shape (Q, K).

    "top": the logits. "random": a uniform number each. "softmax": logits / temperature and a Gumbel number each, so that the first n are a
    draw of n without replacement with odds exp(logit / temperature) (Gumbel-top-k, Kool et al. 2019, arXiv 1903.06059).

    Args:
        queries_Q: int64; the numbers of a query follow from (seed, step, query) alone.
    """
    if selection == "top":
        return logits_QK.astype(np.float64)
    uniform_QK = np.empty(logits_QK.shape, dtype=np.float64)
    for row, query in enumerate(queries_Q.tolist()):
        uniform_QK[row] = generator(seed, _STREAM, step, query).random(logits_QK.shape[1])
    if selection == "random":
        return uniform_QK
    tiny = np.finfo(np.float64).tiny  # random() may give 0
    gumbel_QK = -np.log(-np.log(np.maximum(uniform_QK, tiny)))
    priority_QK: np.ndarray = logits_QK.astype(np.float64) / temperature + gumbel_QK
    return priority_QK


def select_negatives(
    verdict_QK: np.ndarray,
    there_QK: np.ndarray,
    key_QK: np.ndarray,
    priority_QK: np.ndarray,
    taking: SelectionRule,
    *,
    in_rank_order: bool,
    judge: Judge | None = None,
) -> SelectionOutcome:
    """Go through all candidates that no rule passes over, of all queries together, in the order of their priority, and take each whose
    query has not enough, whose key has not been used too often, and which the judge does not call a match.

    The judge is asked only about those that would be taken, in rounds, until no question is left: what is taken is the same as if it had
    been asked about all.

    Args:
        verdict_QK: of `filtered_out`.
        in_rank_order: priority falls with rank ("top"): then candidates behind the last one taken were not looked at.
    """
    open_QK = (verdict_QK == Outcome.NOT_LOOKED_AT) & there_QK
    turn_QK = _turns(priority_QK)
    probability_QK = np.full(open_QK.shape, np.nan, dtype=np.float32)
    while True:
        match_QK = probability_QK >= taking.match_at
        taken_QK = _take(open_QK & ~match_QK, turn_QK, key_QK, priority_QK, taking)
        rows_N, places_N = np.nonzero(taken_QK & np.isnan(probability_QK))
        if judge is None or not len(rows_N):
            break
        probability_QK[rows_N, places_N] = judge(rows_N, places_N)
    outcome_QK = verdict_QK.copy()
    reached_QK = _reached(taken_QK, turn_QK, taking.per_query)
    left_QK = open_QK & ~taken_QK & reached_QK
    used_QK = _used_up(taken_QK, left_QK, key_QK, priority_QK, taking.max_uses)
    outcome_QK[left_QK] = np.where(used_QK, Outcome.MAX_USES, Outcome.MATCH)[left_QK]
    outcome_QK[taken_QK] = Outcome.MINED
    if taking.relabel_at is not None:
        sure_QK = (outcome_QK == Outcome.MATCH) & (probability_QK >= taking.relabel_at)
        outcome_QK[_first(sure_QK, turn_QK, taking.per_query)] = Outcome.RELABELLED
    if in_rank_order:
        outcome_QK[~reached_QK] = Outcome.NOT_LOOKED_AT
    else:
        outcome_QK[open_QK & ~reached_QK] = Outcome.NOT_DRAWN
    return SelectionOutcome(outcome_QK, probability_QK)


def _turns(priority_QK: np.ndarray) -> np.ndarray:
    """Place of each candidate in its query's order, from 0; equal priorities stay in the order of rank."""
    by_turn_QK = np.argsort(-priority_QK, axis=1, kind="stable")
    turn_QK = np.empty_like(by_turn_QK)
    np.put_along_axis(turn_QK, by_turn_QK, np.arange(priority_QK.shape[1])[None, :], axis=1)
    return turn_QK


def _first(wanted_QK: np.ndarray, turn_QK: np.ndarray, count: int) -> np.ndarray:
    """The first `count` wanted of each query, by turn; bool of shape (Q, K)."""
    in_turn_QK = np.zeros_like(wanted_QK)
    np.put_along_axis(in_turn_QK, turn_QK, wanted_QK, axis=1)
    first_QK: np.ndarray = wanted_QK & np.take_along_axis(np.cumsum(in_turn_QK, axis=1) <= count, turn_QK, axis=1)
    return first_QK


def _take(left_QK: np.ndarray, turn_QK: np.ndarray, key_QK: np.ndarray, priority_QK: np.ndarray, taking: SelectionRule) -> np.ndarray:
    """What is taken of those left, every query's share and every key's uses kept; bool of shape (Q, K).

    Queries propose their first, keys keep the best proposals, and who was refused proposes the next (Gale and Shapley 1962): as both
    sides go by the same priority, this ends where going through all candidates one by one would.
    """
    left_QK = left_QK.copy()
    while True:
        chosen_QK = _first(left_QK, turn_QK, taking.per_query)
        if taking.max_uses is None:
            return chosen_QK
        refused_QK = _used_up(chosen_QK, chosen_QK, key_QK, priority_QK, taking.max_uses)
        if not refused_QK.any():
            return chosen_QK
        left_QK &= ~refused_QK


def _used_up(taken_QK: np.ndarray, asked_QK: np.ndarray, key_QK: np.ndarray, priority_QK: np.ndarray, max_uses: int | None) -> np.ndarray:
    """Where, of those asked about, max_uses candidates of the same key that were taken come before it; bool of shape (Q, K)."""
    used_QK = np.zeros_like(asked_QK)
    if max_uses is None:
        return used_QK
    rows_N, places_N = np.nonzero(taken_QK | asked_QK)
    keys_N, taken_N = key_QK[rows_N, places_N], taken_QK[rows_N, places_N]
    order_N = np.lexsort((places_N, rows_N, -priority_QK[rows_N, places_N], keys_N))
    before_N = np.cumsum(taken_N[order_N]) - taken_N[order_N]
    starts_N = np.concatenate([[True], np.diff(keys_N[order_N]) != 0])[: len(order_N)]
    uses_N = before_N - np.maximum.accumulate(np.where(starts_N, before_N, 0))
    used_QK[rows_N[order_N], places_N[order_N]] = uses_N >= max_uses
    return used_QK & asked_QK


def _reached(taken_QK: np.ndarray, turn_QK: np.ndarray, per_query: int) -> np.ndarray:
    """Whether a candidate's turn came before its query had enough; bool of shape (Q, K)."""
    last_Q = np.where(taken_QK, turn_QK, -1).max(axis=1, initial=-1)
    is_full_Q = taken_QK.sum(axis=1) >= per_query
    reached_QK: np.ndarray = (turn_QK <= last_Q[:, None]) | ~is_full_Q[:, None]
    return reached_QK
