"""Every query in exactly one bin, against the definitions in plain words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.outcomes import BINS, outcome_bins


@st.composite
def reranks(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Best ranks before and after the first top_k were re-ordered."""
    top_k = draw(st.integers(1, 6))
    before = draw(st.lists(st.integers(1, 9), min_size=1, max_size=30))
    after = [rank if rank > top_k else draw(st.integers(1, top_k)) for rank in before]
    return before, after, top_k


def by_definition(before: int, after: int, top_k: int | None) -> set[str]:
    """Names of all bins whose definition fits."""
    help_possible = top_k is None or before <= top_k
    fits = {
        "right in both": before == 1 and after == 1,
        "fixed": before != 1 and after == 1,
        "broken": before == 1 and after != 1,
        "missing": not help_possible,
        "wrong in both": help_possible and before != 1 and after != 1,
    }
    return {name for name, fit in fits.items() if fit}


@given(reranks())
def test_bins_partition_a_reranking(made: tuple[list[int], list[int], int]) -> None:
    before, after, top_k = made
    bins = outcome_bins(np.array(before), np.array(after), top_k)
    assert [{BINS[bin]} for bin in bins] == [by_definition(b, a, top_k) for b, a in zip(before, after, strict=True)]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1))
def test_bins_partition_two_models_and_nothing_is_missing(ranks: list[tuple[int, int]]) -> None:
    before, after = np.array(ranks).T
    bins = outcome_bins(before, after, None)
    assert [{BINS[bin]} for bin in bins] == [by_definition(b, a, None) for b, a in ranks]


def test_a_rise_from_below_the_candidates_is_refused() -> None:
    with pytest.raises(ValueError, match="query 1 is right after re-ordering the first 2"):
        outcome_bins(np.array([1, 3]), np.array([1, 1]), 2)
