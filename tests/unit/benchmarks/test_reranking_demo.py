"""benchmarks/reranking_demo.py: the ways not taken, against loops; and the page of a small study."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reranking_demo import offset_margin, page, per_query_recall, whole_query_margin, whole_query_saving
from eval.metrics.evaluate import evaluate
from eval.report.report import report_record
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from rerank.reorder.plan import Plan, Tuning
from rerank.reorder.reranking import rerank_stages
from rerank.reorder.skipping import saving
from tests.unit.eval.reranked_set import first_stage, picture_set
from tests.unit.rerank.combine.drawn_searches import Drawn, searches, unhurried
from tests.unit.rerank.reorder.test_plan import Toy


@unhurried
@given(searches(), st.sampled_from([0.0, 1 / 64, 5 / 64, 9.0]))
def test_skipping_whole_queries_against_a_loop(drawn: Drawn, margin: float) -> None:
    needed, everything, shares = set(), set(), []
    for direction, first in drawn.first.items():
        lost = gained = 0
        for query in range(first.num_queries):
            head = drawn.head(direction, query)
            pairs = {(query, one[0]) if direction == "image_to_text" else (one[0], query) for one in head}
            everything |= pairs
            full = max(enumerate(head), key=lambda one: (one[1][2], -one[0]))[1][3]
            if head[0][1] - head[1][1] < margin:
                needed |= pairs
            else:
                lost, gained = lost + (full and not head[0][3]), gained + (head[0][3] and not full)
        shares.append((lost / first.num_queries, (lost - gained) / first.num_queries))
    found = whole_query_saving(Stage("base", drawn.first), drawn.scores(), drawn.top_k, margin)
    assert found == pytest.approx((1 - len(needed) / len(everything), *np.mean(shares, axis=0)), abs=1e-12)


@unhurried
@given(searches(), st.sampled_from([0.0, 0.1, 0.3]))
def test_margins_of_the_ways_not_taken_keep_their_limits(drawn: Drawn, max_loss: float) -> None:
    stage = Stage("base", drawn.first)
    margin = whole_query_margin(stage, drawn.scores(), drawn.top_k, max_loss)
    assert whole_query_saving(stage, drawn.scores(), drawn.top_k, margin)[1] <= max_loss + 1e-9
    margin = offset_margin(stage, drawn.scores(), drawn.top_k, max_loss)
    assert saving(drawn.first, drawn.scores(), drawn.top_k, margin).loss <= max_loss + 1e-9


@unhurried
@given(searches())
def test_per_query_units_at_weight_0_are_the_cross_encoder_alone(drawn: Drawn) -> None:
    shares = []
    for direction, first in drawn.first.items():
        heads = [drawn.head(direction, query) for query in range(first.num_queries)]
        shares.append(np.mean([max(enumerate(head), key=lambda one: (one[1][2], -one[0]))[1][3] for head in heads]))
    assert per_query_recall(Stage("base", drawn.first), drawn.scores(), drawn.top_k, 0.0) == pytest.approx(np.mean(shares))


def test_the_page_holds_what_was_measured(tmp_path: Path) -> None:
    for split in ("test", "val"):
        (tmp_path / split).mkdir()
    test_set, val_set = picture_set(tmp_path / "test", 24, 20), picture_set(tmp_path / "val", 18, 12)
    plan, firsts = Plan(top_k=5, tuning=Tuning(fusion=True, max_loss=0.05)), [first_stage(test_set, "tuned")]
    tune_on = (val_set, lambda split: [first_stage(split, "tuned")])
    reranked = rerank_stages(plan, test_set, firsts, Toy(test_set, val_set), tune_on=tune_on)
    pairs = plan.pairs(["tuned"], "toy") + plan.tuned_pairs(["tuned"], "toy")
    figures = evaluate(test_set, firsts + reranked.stages, pairs)
    sections = reranked.sections(figures, test_set)
    text = page(figures, sections, reranked, firsts[0], "the command")
    for direction in DIRECTIONS:
        before, after = (100 * figures.stages[stage][direction]["R@1"] for stage in ("tuned", "tuned+toy"))
        assert f"| {direction.replace('_', ' ')} | {before:.2f} | {after:.2f} | {after - before:+.2f} |" in text
    assert text.count(" (chosen) |") == 1 and "| 1 | " in text and "| 5 | " in text
    measured = report_record(figures, sections)["adaptive"][0]["measured"]
    assert f"{measured['saved']} of {measured['pairs']} pairs saved" in text
