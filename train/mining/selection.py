"""Select negatives among the candidates that pass the rules: by score or at random, none more than max_uses times, none that matches.

The selection is a function of all queries' candidates and of (seed, step, query). Each process selects for a run of queries, and what one
query's choice leaves to another is gathered, so any number of processes, and a resumed run, select the same. It serves both directions
(train/mining/rules.py). Shape letters: Q queries of this process, K depth, N candidates.
"""

from collections.abc import Callable

import numpy as np

from eval.processes import Processes
from train.config.mining import MiningConfig
from train.data.order import generator
from train.mining.rules import Outcome, RankedLists

PairProbability = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(images, captions of the pool) of pairs, int64 of shape (N,), to the probability that each matches, float32 of shape (N,)."""

_STREAM = 0x6D696E65  # of random numbers, other than those of the training data


def priorities(logits_QK: np.ndarray, config: MiningConfig, seed: int, step: int, queries_Q: np.ndarray) -> np.ndarray:
    """The priority of each candidate, the largest first; float64 of shape (Q, K).

    "top": the logit. "random": a uniform random number. "softmax": logit / temperature plus Gumbel noise, so that the first n are a sample
    of n without replacement with odds exp(logit / temperature) (Gumbel-top-k, Kool et al. 2019, arXiv 1903.06059).

    Args:
        queries_Q: int64; the random numbers of a query follow from (seed, step, query) alone.
    """
    if config.selection == "top":
        return logits_QK.astype(np.float64)
    uniform_QK = np.empty(logits_QK.shape, dtype=np.float64)
    for row, query in enumerate(queries_Q.tolist()):
        uniform_QK[row] = generator(seed, _STREAM, step, query).random(logits_QK.shape[1])
    if config.selection == "random":
        return uniform_QK
    tiny = np.finfo(np.float64).tiny  # random() may give 0
    gumbel_QK = -np.log(-np.log(np.maximum(uniform_QK, tiny)))
    return logits_QK.astype(np.float64) / (config.temperature or 1.0) + gumbel_QK


def select_negatives(
    filtered_QK: np.ndarray,
    lists: RankedLists,
    priority_QK: np.ndarray,
    config: MiningConfig,
    match_probability: Callable[[tuple[np.ndarray, ...]], np.ndarray] | None = None,
    processes: Processes = Processes(),
) -> tuple[np.ndarray, np.ndarray | None]:
    """Select negatives greedily: of all queries' unfiltered candidates, by priority, each whose query still needs one, whose key was used
    fewer than max_uses times, and which is no match.

    The cross-encoder scores only candidates that would be selected, in rounds, until every selected one has a score. The selection is the
    same as if all had been scored.

    Args:
        filtered_QK: from `filtered_out`.
        match_probability: of the cross-encoder, of the candidates at (rows, places), called on all processes together; None: no candidate
            counts as a match.
        processes: each has the next of the queries, in rank order.

    Returns the outcome of every candidate, uint8 of shape (Q, K), and the match probabilities, float32, NaN where a pair was not scored;
    None where none is asked for.
    """
    open_QK = (filtered_QK == Outcome.NOT_LOOKED_AT) & lists.there_QK
    position_QK = _positions(priority_QK)
    probability_QK = np.full(open_QK.shape, np.nan, dtype=np.float32)
    match_at = config.denoise.threshold if config.denoise is not None else 1
    while True:
        selected_QK = _select(open_QK & ~(probability_QK >= match_at), position_QK, lists.key_QK, priority_QK, config, processes)
        unscored = np.nonzero(selected_QK & np.isnan(probability_QK))
        if match_probability is None or processes.is_on_all(not len(unscored[0])):
            break
        probability_QK[unscored] = match_probability(unscored)
    outcome_QK = filtered_QK.copy()
    reached_QK = _reached(selected_QK, position_QK, config.negatives_per_image)
    left_QK = open_QK & ~selected_QK & reached_QK
    used_QK, _ = _used_up(selected_QK, left_QK, lists.key_QK, priority_QK, config.max_uses, processes)
    outcome_QK[left_QK] = np.where(used_QK, Outcome.MAX_USES, Outcome.MATCH)[left_QK]
    outcome_QK[selected_QK] = Outcome.MINED
    if config.denoise is not None and config.denoise.relabel_at is not None:
        sure_QK = (outcome_QK == Outcome.MATCH) & (probability_QK >= config.denoise.relabel_at)
        outcome_QK[_first(sure_QK, position_QK, config.negatives_per_image)] = Outcome.RELABELLED
    if config.selection == "top":  # priority falls with rank: candidates after the last one selected were not looked at
        outcome_QK[~reached_QK] = Outcome.NOT_LOOKED_AT
    else:
        outcome_QK[open_QK & ~reached_QK] = Outcome.NOT_DRAWN
    return outcome_QK, None if match_probability is None else probability_QK


def _positions(priority_QK: np.ndarray) -> np.ndarray:
    """Position of each candidate in its query's order of priority, from 0; equal priorities stay in the order of rank."""
    order_QK = np.argsort(-priority_QK, axis=1, kind="stable")
    position_QK = np.empty_like(order_QK)
    np.put_along_axis(position_QK, order_QK, np.arange(priority_QK.shape[1])[None, :], axis=1)
    return position_QK


def _first(wanted_QK: np.ndarray, position_QK: np.ndarray, count: int) -> np.ndarray:
    """The first `count` wanted candidates of each query, by position; bool of shape (Q, K)."""
    in_order_QK = np.zeros_like(wanted_QK)
    np.put_along_axis(in_order_QK, position_QK, wanted_QK, axis=1)
    return wanted_QK & np.take_along_axis(np.cumsum(in_order_QK, axis=1) <= count, position_QK, axis=1)


def _select(
    left_QK: np.ndarray,
    position_QK: np.ndarray,
    key_QK: np.ndarray,
    priority_QK: np.ndarray,
    config: MiningConfig,
    processes: Processes,
) -> np.ndarray:
    """The selection among the candidates left, at most negatives_per_image of a query and max_uses of a key; bool of shape (Q, K).

    Deferred acceptance (Gale and Shapley 1962): queries propose their first candidates, keys accept the best proposals, and a refused query
    proposes its next one. Both sides use the same priority, so the result is that of a greedy pass over all candidates.
    """
    left_QK = left_QK.copy()
    while True:
        first_QK = _first(left_QK, position_QK, config.negatives_per_image)
        if config.max_uses is None:
            return first_QK
        refused_QK, is_any = _used_up(first_QK, first_QK, key_QK, priority_QK, config.max_uses, processes)
        if not is_any:
            return first_QK
        left_QK &= ~refused_QK


def _used_up(
    selected_QK: np.ndarray,
    candidates_QK: np.ndarray,
    key_QK: np.ndarray,
    priority_QK: np.ndarray,
    max_uses: int | None,
    processes: Processes,
) -> tuple[np.ndarray, bool]:
    """Which of the candidates in `candidates_QK` come after max_uses selected candidates of the same key, of any process's queries; bool of
    shape (Q, K). And whether one does on any process."""
    used_QK = np.zeros_like(candidates_QK)
    if max_uses is None:
        return used_QK, False
    places_n = np.nonzero(selected_QK | candidates_QK)  # of this process: by query, then by rank, as are all of them after one another
    own = (key_QK[places_n], priority_QK[places_n], selected_QK[places_n], candidates_QK[places_n])
    parts = [processes.gather(values_n) for values_n in own]
    keys_N, priority_N, selected_N, candidates_N = (np.concatenate(part) for part in parts)
    order_N = np.lexsort((-priority_N, keys_N))  # which is stable: equal ones stay in the order of queries and ranks
    before_N = np.cumsum(selected_N[order_N]) - selected_N[order_N]
    starts_N = np.concatenate([[True], np.diff(keys_N[order_N]) != 0])[: len(order_N)]
    uses_N = before_N - np.maximum.accumulate(np.where(starts_N, before_N, 0))
    used_N = np.zeros(len(order_N), dtype=bool)
    used_N[order_N] = uses_N >= max_uses
    used_N &= candidates_N
    first = sum(len(part) for part in parts[0][: processes.rank])
    used_QK[places_n] = used_N[first : first + len(places_n[0])]
    return used_QK, bool(used_N.any())


def _reached(selected_QK: np.ndarray, position_QK: np.ndarray, per_query: int) -> np.ndarray:
    """Whether a candidate was reached before its query had enough negatives; bool of shape (Q, K)."""
    last_Q = np.where(selected_QK, position_QK, -1).max(axis=1, initial=-1)
    is_full_Q = selected_QK.sum(axis=1) >= per_query
    return (position_QK <= last_Q[:, None]) | ~is_full_Q[:, None]
