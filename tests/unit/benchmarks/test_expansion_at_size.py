"""benchmarks/expansion_at_size.py on a few images: every system agrees with its dense reference, and the reference can disagree."""

import dataclasses

import numpy as np
import pytest

from benchmarks.expansion_at_size import SYSTEMS, Bounds, MadeUp, Reference, largest_difference, run_system, table
from eval.search.ranking import Ranking
from rerank.combine.combine import rank_ensemble

SIZE = (30, 151)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_equals_its_reference(name: str) -> None:
    assert run_system(name, SIZE, check=True)["difference"] <= 1e-6


def ranked() -> tuple[Ranking, Bounds, np.ndarray]:
    dataset, queries = MadeUp(*SIZE), np.arange(9)
    member = dataset.member(0, expanded=True)
    found = rank_ensemble([member], dataset, pools=SYSTEMS["expansions, max"].pools(), depth=5)["text_to_image"]  # type: ignore[arg-type]
    return found, Reference(SYSTEMS["expansions, max"], [member], "text_to_image", queries).bounds(), queries


def test_a_wrong_score_or_rank_is_noticed() -> None:
    found, bounds, queries = ranked()
    assert largest_difference(found, bounds, queries) <= 1e-6
    assert largest_difference(dataclasses.replace(found, top_scores_QK=found.top_scores_QK + np.float32(0.01)), bounds, queries) > 0.009
    with pytest.raises(SystemExit, match="text_to_image, query 0"):
        largest_difference(dataclasses.replace(found, positive_ranks_P=found.positive_ranks_P + 1), bounds, queries)


def test_the_table_takes_medians_of_ratios_within_a_round() -> None:
    rounds = [
        {"plain": {"seconds": 2.0, "megabytes": 5.0, "difference": 0.0}, "two": {"seconds": 3.0, "megabytes": 7.0, "difference": 2e-8}},
        {"plain": {"seconds": 4.0, "megabytes": 6.0}, "two": {"seconds": 10.0, "megabytes": 8.0}},
    ]
    assert table(rounds)[-1] == "| two | 6.5 (3.0 to 10.0) | 2.00 (1.50 to 2.50) | 8 | 2.0e-08 |"
