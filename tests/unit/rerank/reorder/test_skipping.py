"""rerank/reorder/skipping.py against loops over queries: what a margin leaves out, saves and loses, and which is chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import UserError
from eval.search.ranking import DIRECTIONS
from rerank.reorder.reorder import rerank
from rerank.reorder.skipping import choose_margin, depths, needed_lists, pair_trails, rerank_within, saving, trails
from rerank.scoring.candidates import candidate_lists
from tests.unit.rerank.combine.drawn_searches import Drawn, made, ranking, searches, unhurried

INF = float("inf")
MARGINS = st.sampled_from([0.0, 1 / 64, 2 / 64, 4 / 64, 0.3, 9.0, INF])


def depth_by_hand(head: list, margin: float) -> int:
    """Candidates within the margin of the first; one that is left alone is not scored."""
    number = sum(head[0][1] - one[1] < margin for one in head)
    return number if number > 1 else 0


@unhurried
@given(searches(), MARGINS)
def test_rankings_and_pairs_equal_a_loop_over_queries(drawn: Drawn, margin: float) -> None:
    rankings = list(drawn.first.values())
    lists = needed_lists(rankings, drawn.top_k, margin)
    needed = set()
    for direction, first in drawn.first.items():
        found = rerank_within(first, drawn.scores(lists), drawn.top_k, margin)  # the pairs needed are all it needs
        for query in range(first.num_queries):
            head = drawn.head(direction, query)
            depth = depth_by_hand(head, margin)
            assert depths(first, drawn.top_k, margin)[query] == depth
            order = sorted(range(depth), key=lambda place: (-head[place][2], place)) + list(range(depth, drawn.top_k))
            assert found.top_indices_QK[query, : drawn.top_k].tolist() == [head[place][0] for place in order]
            shown = [head[place][2] if number < depth else head[place][1] for number, place in enumerate(order)]
            assert found.top_scores_QK[query, : drawn.top_k].tolist() == shown
            items = found.top_indices_QK[query].tolist()
            row = drawn.right_IC[query] if direction == "image_to_text" else drawn.right_IC[:, query]
            assert found.best_ranks()[query] == 1 + min(items.index(item) for item in np.flatnonzero(row))
            needed |= {(query, one[0]) if direction == "image_to_text" else (one[0], query) for one in head[:depth]}
    assert set(zip(lists.image_of_pair_N.tolist(), lists.caption_indices_N.tolist(), strict=True)) == needed


@unhurried
@given(searches())
def test_a_margin_beyond_all_is_full_reranking_and_saves_nothing(drawn: Drawn) -> None:
    for margin in (INF, 9.0):
        for first in drawn.first.values():
            full, found = rerank(first, drawn.scores(), drawn.top_k), rerank_within(first, drawn.scores(), drawn.top_k, margin)
            assert np.array_equal(found.top_indices_QK, full.top_indices_QK) and np.array_equal(found.top_scores_QK, full.top_scores_QK)
            assert np.array_equal(found.positive_ranks_P, full.positive_ranks_P)
        made_of = saving(drawn.first, drawn.scores(), drawn.top_k, margin)
        assert (made_of.saved, made_of.lost, made_of.loss) == (0, 0.0, 0.0)
        assert made_of.pairs == candidate_lists(drawn.first.values(), drawn.top_k).num_pairs
    none = saving(drawn.first, drawn.scores(), drawn.top_k, 0.0)
    assert none.share_saved == 1.0
    assert all(
        np.array_equal(rerank_within(f, drawn.scores(), drawn.top_k, 0.0).top_indices_QK, f.top_indices_QK) for f in drawn.first.values()
    )


@unhurried
@given(searches())
def test_what_is_saved_falls_with_the_margin_and_a_shared_pair_is_saved_only_if_neither_needs_it(drawn: Drawn) -> None:
    rankings, margins = list(drawn.first.values()), [0.0, 1 / 64, 3 / 64, 5 / 64, 0.3, INF]
    trails_N = pair_trails(rankings, drawn.top_k)
    counts = [needed_lists(rankings, drawn.top_k, margin).num_pairs for margin in margins]
    assert [int((trails_N < margin).sum()) for margin in margins] == counts == sorted(counts)
    everything = candidate_lists(rankings, drawn.top_k).num_pairs
    assert [saving(drawn.first, drawn.scores(), drawn.top_k, m).saved for m in margins] == [everything - count for count in counts]


def lost_by_hand(drawn: Drawn, margin: float) -> float:
    """Mean over directions of the share of queries that full reranking answers rightly and this margin does not."""
    shares = []
    for direction, first in drawn.first.items():
        lost = 0
        for query in range(first.num_queries):
            head = drawn.head(direction, query)
            within = head[: max(1, depth_by_hand(head, margin))]
            full, found = (max(enumerate(part), key=lambda one: (one[1][2], -one[0]))[1][3] for part in (head, within))
            lost += full and not found
        shares.append(lost / first.num_queries)
    return sum(shares) / 2


@unhurried
@given(searches(), st.sampled_from([0.0, 0.1, 0.2, 0.4, 1.0]))
def test_the_margin_chosen_is_the_smallest_that_holds_with_all_larger_ones(drawn: Drawn, max_loss: float) -> None:
    candidates = sorted({float(t) for first in drawn.first.values() for t in trails(first, drawn.top_k).ravel()}, reverse=True)
    expected = INF
    for margin in candidates:
        if lost_by_hand(drawn, margin) > max_loss + 1e-9:
            break
        expected = margin
    chosen = choose_margin(drawn.first, drawn.scores(), drawn.top_k, max_loss)
    assert chosen == expected
    found = saving(drawn.first, drawn.scores(), drawn.top_k, chosen)
    assert found.lost == pytest.approx(lost_by_hand(drawn, chosen), abs=1e-12)
    assert found.loss <= found.lost <= max_loss + 1e-9
    assert max_loss < 1 or found.saved == found.pairs, "where any loss will do, nothing is scored"


def test_where_the_last_candidate_is_the_right_one_nothing_is_skipped() -> None:
    """Image 0's own caption trails by 0.8, the most there is: it must be scored, but where one query of four may be lost."""
    cosines, right = np.array([[0.9, 0.1], [0.5, 0.6]], dtype=np.float32), np.array([[False, True], [True, False]])
    sides = {"image_to_text": (cosines, right), "text_to_image": (cosines.T, right.T)}
    drawn = Drawn({d: ranking(d, *sides[d]) for d in DIRECTIONS}, right.astype(np.float32), right, 2)
    assert choose_margin(drawn.first, drawn.scores(), 2, 0.0) == INF
    assert choose_margin(drawn.first, drawn.scores(), 2, 0.25) == pytest.approx(0.8)
    assert saving(drawn.first, drawn.scores(), 2, float(np.float64(np.float32(0.9)) - np.float32(0.1))).lost == 0.25


@unhurried
@given(searches())
def test_a_larger_loss_saves_no_less(drawn: Drawn) -> None:
    saved = [
        saving(drawn.first, drawn.scores(), drawn.top_k, choose_margin(drawn.first, drawn.scores(), drawn.top_k, loss)).saved
        for loss in (0.0, 0.05, 0.2, 0.5, 1.0)
    ]
    assert saved == sorted(saved)


@unhurried
@given(searches(), MARGINS)
def test_loss_is_the_fall_of_mean_recall(drawn: Drawn, margin: float) -> None:
    def recall(at: float) -> float:
        return float(
            np.mean([(rerank_within(drawn.first[d], drawn.scores(), drawn.top_k, at).best_ranks() == 1).mean() for d in DIRECTIONS])
        )

    assert saving(drawn.first, drawn.scores(), drawn.top_k, margin).loss == pytest.approx(recall(INF) - recall(margin), abs=1e-12)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: depths(d.first["image_to_text"], 1, 0.1), "top_k of 2 to 4"),
        (lambda d: depths(d.first["image_to_text"], 5, 0.1), "top_k of 2 to 4"),
        (lambda d: depths(d.first["image_to_text"], 2, -0.1), "0 or more; found -0.1"),
        (lambda d: depths(d.first["image_to_text"], 2, float("nan")), "0 or more; found nan"),
    ],
)
def test_what_has_no_meaning_is_refused(ask, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask(made(0, 3, 4, 4, 3))


def test_a_pair_that_is_needed_and_was_not_scored_is_named() -> None:
    drawn = made(0, 3, 4, 4, 3)
    few = drawn.scores(needed_lists(list(drawn.first.values()), 3, 0.0))
    with pytest.raises(LookupError, match="have no score"):
        rerank_within(drawn.first["image_to_text"], few, 3, INF)
