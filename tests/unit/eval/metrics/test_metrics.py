"""Metrics against ir-measures, and mAP@R, which it lacks, against a loop over the ranking."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, Rprec, Success

from eval.metrics.metrics import (
    RECALL_AT,
    average_precision_at_r,
    positive_ranks,
    r_precision,
    recall_at_k,
    reciprocal_rank,
    retrieval_metrics,
)

NUM_ITEMS = 30


@st.composite
def rank_lists(draw: st.DrawFn) -> list[list[int]]:
    return draw(st.lists(st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=8, unique=True), min_size=1, max_size=6))


def flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *map(len, rows)]).astype(np.int64), np.array([rank for row in rows for rank in row], dtype=np.int64)


@settings(deadline=None, max_examples=40)
@given(rank_lists())
def test_equal_to_ir_measures(rows: list[list[int]]) -> None:
    qrels = [ir_measures.Qrel(f"q{q}", f"d{rank:02d}", 1) for q, row in enumerate(rows) for rank in row]
    run = [ir_measures.ScoredDoc(f"q{q}", f"d{rank:02d}", float(-rank)) for q in range(len(rows)) for rank in range(1, NUM_ITEMS + 1)]
    measures = [RR, Rprec, *(Success @ k for k in RECALL_AT)]
    theirs = {(m.query_id, str(m.measure)): m.value for m in ir_measures.iter_calc(measures, qrels, run)}
    offsets, ranks = flat(rows)
    best = np.minimum.reduceat(ranks, offsets[:-1])
    ours = {"RR": reciprocal_rank(best), "Rprec": r_precision(offsets, ranks)} | {f"Success@{k}": recall_at_k(best, k) for k in RECALL_AT}
    for name, values in ours.items():
        assert values.tolist() == pytest.approx([theirs[f"q{q}", name] for q in range(len(rows))], abs=1e-12), name


@settings(deadline=None)
@given(rank_lists())
def test_map_at_r_equals_a_walk_down_the_list(rows: list[list[int]]) -> None:
    """Musgrave et al. 2020, eq. 4-5: (1 / R) sum over i <= R of P(i) where the i-th is right, else 0."""
    expected = []
    for row in rows:
        total, seen = 0.0, 0
        for place in range(1, len(row) + 1):
            if place in row:
                seen += 1
                total += seen / place
        expected.append(total / len(row))
    assert average_precision_at_r(*flat(rows)).tolist() == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 12))
def test_a_score_matrix_with_ties_equals_ir_measures(seed: int, num_queries: int, num_items: int) -> None:
    """Ours orders equal scores by index; theirs is given the order made by a sort of (-score, index), as scores without ties."""
    draws = np.random.default_rng(seed)
    scores = draws.integers(0, 4, (num_queries, num_items)).astype(np.float32)
    relevant = draws.random((num_queries, num_items)) < 0.3
    relevant[np.arange(num_queries), draws.integers(num_items, size=num_queries)] = True
    orders = [sorted(range(num_items), key=lambda item, row=row: (-row[item], item)) for row in scores]
    qrels = [ir_measures.Qrel(f"q{q}", f"d{item}", 1) for q, item in np.argwhere(relevant)]
    run = [ir_measures.ScoredDoc(f"q{q}", f"d{item}", -rank) for q, order in enumerate(orders) for rank, item in enumerate(order)]
    theirs = ir_measures.calc_aggregate([RR, Rprec, *(Success @ k for k in RECALL_AT)], qrels, run)
    found = retrieval_metrics(scores, relevant)
    expected = {"MRR": theirs[RR], "R-Precision": theirs[Rprec]} | {f"R@{k}": theirs[Success @ k] for k in RECALL_AT}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    ranks = [[order.index(item) + 1 for item in np.flatnonzero(row)] for order, row in zip(orders, relevant, strict=True)]
    assert [positive_ranks(scores, relevant)[k].tolist() for k in (0, 1)] == [values.tolist() for values in flat(ranks)]
    best = [min(row) for row in ranks]
    assert (found["mean_rank"], found["median_rank"]) == pytest.approx((np.mean(best), np.median(best)))


def test_a_model_that_scores_all_alike_gets_chance() -> None:
    found = retrieval_metrics(np.zeros((4, 4)), np.eye(4, dtype=bool))
    assert (found["R@1"], found["mean_rank"], found["MRR"]) == (0.25, 2.5, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_by_hand() -> None:
    offsets, ranks = flat([[1], [2], [3, 1, 9], [4, 5, 6]])
    assert average_precision_at_r(offsets, ranks).tolist() == pytest.approx([1.0, 0.0, (1 + 2 / 3) / 3, 0.0])
    assert r_precision(offsets, ranks).tolist() == pytest.approx([1.0, 0.0, 2 / 3, 0.0])
    assert recall_at_k(np.array([1, 5, 6]), 5).tolist() == [1.0, 1.0, 0.0]
