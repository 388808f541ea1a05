"""Metrics against ir-measures, and the two it has no name for against a loop over the ranking."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, Rprec, Success

from eval.metrics.metrics import RECALL_AT, average_precision_at_r, r_precision, recall_at_k, reciprocal_rank

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


def test_by_hand() -> None:
    offsets, ranks = flat([[1], [2], [3, 1, 9], [4, 5, 6]])
    assert average_precision_at_r(offsets, ranks).tolist() == pytest.approx([1.0, 0.0, (1 + 2 / 3) / 3, 0.0])
    assert r_precision(offsets, ranks).tolist() == pytest.approx([1.0, 0.0, 2 / 3, 0.0])
    assert recall_at_k(np.array([1, 5, 6]), 5).tolist() == [1.0, 1.0, 0.0]
