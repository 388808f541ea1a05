"""benchmarks/skip_rules.py against rerank/reorder/skipping.py: the same pairs and the same answers; and the page quotes the committed
table."""

from pathlib import Path

import numpy as np
from hypothesis import given

from benchmarks.skip_rules import TopK, choose, saved_shares
from eval.search.ranking import DIRECTIONS
from rerank.reorder.skipping import needed_lists, rerank_within, trails
from rerank.scoring.candidates import candidate_lists
from tests.unit.rerank.combine.drawn_searches import Drawn, searches, unhurried

ROOT = Path(__file__).parents[3]


def heads_of(drawn: Drawn) -> tuple[TopK, TopK]:
    made = []
    for direction in DIRECTIONS:
        first, rows = drawn.first[direction], [drawn.head(direction, query) for query in range(drawn.first[direction].num_queries)]
        items, match, right = (np.array([[one[column] for one in row] for row in rows]) for column in (0, 2, 3))
        made.append(TopK(items, trails(first, drawn.top_k), match, right, np.arange(len(rows))))
    return made[0], made[1]


@unhurried
@given(searches())
def test_pairs_and_answers_are_those_of_the_real_thing(drawn: Drawn) -> None:
    heads, margins_M = heads_of(drawn), np.array([0.0, 1 / 64, 4 / 64, 9.0])
    everything = candidate_lists(drawn.first.values(), drawn.top_k).num_pairs
    shares = np.diagonal(saved_shares(heads, margins_M))
    for place, margin in enumerate(margins_M.tolist()):
        needed = needed_lists(list(drawn.first.values()), drawn.top_k, margin).num_pairs
        assert abs(shares[place] - (1 - needed / everything)) < 1e-12
        for head, first in zip(heads, drawn.first.values(), strict=True):
            full, found = (rerank_within(first, drawn.scores(), drawn.top_k, at).best_ranks() == 1 for at in (np.inf, margin))
            assert np.array_equal(head.changes(margins_M)[place], full.astype(int) - found)
            whole = np.where(trails(first, drawn.top_k)[:, 1] < margin, full, first.best_ranks() == 1)
            assert np.array_equal(head.whole().changes(margins_M)[place], full.astype(int) - whole)


def test_the_limit_is_kept_by_all_larger_margins_too() -> None:
    saved_MM = np.add.outer([0.5, 0.4, 0.3, 0.0], [0.5, 0.4, 0.3, 0.0])
    limited = np.add.outer([0.0, 0.004, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0])
    assert choose(limited, saved_MM, one_margin=True) == (2, 2), "the lucky 0 below the 0.004 is not taken"
    assert choose(limited, saved_MM, one_margin=False) == (2, 0)


def test_the_page_quotes_the_table() -> None:
    table, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("results/skip-rules.md", "docs/adaptive-reranking.md"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| tuned |")]
    assert len(rows) == 8
    quoted = 0
    for _, what, margin, limit, saved, fall, _, above in rows:
        words = {"fall": "fall of R@1"}.get(limit, limit)
        start, end = f"| {what} | {margin} | {words} | {saved} | {fall}", f"| {above} |"
        quoted += any(line.startswith(start) and line.endswith(end) for line in page.splitlines())
    assert quoted == 5
