"""What a report says of expansions (rerank/combine/record.py, rerank/combine/expansion_effects.py): by hand, and recomputed from its own
rows."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.evaluate import Figures, evaluate
from eval.report.report import report_record, write_report
from eval.report.section import section_lines
from eval.search.stage import Stage
from rerank.combine.combine import rank_ensemble
from rerank.combine.expansion_effects import ExpandedStage, Moves, items_of, ranks_of_each_view
from rerank.combine.pooling import Side, ViewSearch, choose_pool, direction_of, pools_at
from rerank.combine.record import EXPANSIONS, combined_sections, expansion_table
from rerank.combine.views import EnsembleMember, Pool, Views
from rerank.evaluation import Report
from tests.unit.rerank.combine.member_sets import ALONE, caption_set, member

EVIL = "<script>document.title='owned'</script>"
POOL = Pool("max", 3, 1.0)


@dataclass(frozen=True)
class Said:
    """What views say, as rerank/expansions/parse.py has it."""

    said: list[list[str]]
    name: str = "synonyms"

    @property
    def offsets(self) -> np.ndarray:
        return np.append(0, np.cumsum([len(texts) for texts in self.said])).astype(np.int64)

    def of(self, item: int) -> list[str]:
        return self.said[item]

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "dropped": {"said twice": 2}}


def said_of(views: Views, text: str = "view") -> Said:
    return Said([[f"{text} {item}.{place}" for place in range(int(number))] for item, number in enumerate(np.diff(views.offsets))])


def said_by(said: Said, view_ranks: list[np.ndarray], number: int) -> ExpandedStage:
    """A stage "s" of captions with these views, the first `number` in use."""
    return ExpandedStage("s", "base", "synonyms", "captions", said, Pool("max", number, 1.0), view_ranks)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Made:
    """A set, the figures of a stage with views and one without, and the arm."""

    dataset: RetrievalSet
    figures: Figures
    arm: ExpandedStage

    def record(self) -> dict[str, Any]:
        (record,) = combined_sections(self.figures, self.dataset, None, [self.arm])[0].record
        return json.loads(json.dumps(record, allow_nan=False))

    def rows(self) -> list[dict[str, Any]]:
        table = expansion_table(self.figures, self.dataset, [self.arm])
        assert table is not None
        return table.to_pylist()

    def ranks(self, stage: str) -> dict[str, int]:
        """By query id, from the rows of queries.parquet."""
        direction = direction_of(self.arm.side)
        return {
            row["query_id"]: row["rank"]
            for row in self.figures.queries.to_pylist()
            if (row["stage"], row["direction"]) == (stage, direction)
        }

    def page(self, folder: Path) -> tuple[str, list[str]]:
        """(report.html, lines of the terminal)"""
        sections = combined_sections(self.figures, self.dataset, None, [self.arm])
        page = (write_report(folder, self.figures, sections) / "report.html").read_text()
        return page, section_lines(report_record(self.figures, sections), [EXPANSIONS])


def made(
    side: Side = "captions", noise: float = 0.9, view_noise: float = 0.9, text: str = "numbered", compared: bool = True, pool: Pool = POOL
) -> Made:
    dataset = caption_set(24, "test", text)
    one = member(dataset, 1, noise, views=4, view_noise=view_noise, side="captions" if side == "captions" else "images")
    plain = EnsembleMember(Views.plain(one.images.vectors_ND), Views.plain(one.captions.vectors_ND), one.scale, one.bias, one.device)
    stages = [
        Stage("base", rank_ensemble([plain], dataset, depth=10)),
        Stage("base+synonyms", rank_ensemble([one], dataset, pools=pools_at(side, pool), depth=10)),
    ]
    alone = ranks_of_each_view(ViewSearch([one], ALONE, dataset, side), pool)
    texts = said_of(one.captions if side == "captions" else one.images, text)
    figures = evaluate(dataset, stages, [("base+synonyms", "base")] if compared else [])
    return Made(
        dataset,
        figures,
        ExpandedStage(stage="base+synonyms", against="base", name="synonyms", side=side, texts=texts, pool=pool, view_ranks=alone),
    )


def test_moves_by_hand() -> None:
    """Four queries: one rose far, one fell, one stayed although a view moves it alone, one has no views."""
    said = Said([["a", "b", "c"], ["d"], ["e", "f"], []])
    before, after = np.array([8, 1, 2, 5]), np.array([2, 3, 2, 5])
    by = said_by(said, [np.array([2, 3, 2, 5]), np.array([8, 1, 1, 5])], number=3)
    moves = Moves(by, np.arange(4), before, after)
    assert moves.counts() == {"up": 1, "down": 1, "same": 2}
    assert moves.shown() == [0, 1], "8 to 2 is fourfold, 1 to 3 threefold"
    rows = [tuple(row.values()) for row in moves.table(["q0", "q1", "q2", "q3"]).to_pylist()]
    assert rows == [
        ("s", "text_to_image", "q0", 1, "a", 8, 2, 2, True),
        ("s", "text_to_image", "q0", 2, "b", 8, 2, 8, False),
        ("s", "text_to_image", "q0", 3, "c", 8, 2, None, None),
        ("s", "text_to_image", "q1", 1, "d", 1, 3, 3, True),
        ("s", "text_to_image", "q2", 1, "e", 2, 2, 2, False),
        ("s", "text_to_image", "q2", 2, "f", 2, 2, 1, True),
    ]
    first = replace(moves, by=replace(by, pool=Pool("max", 1, 1.0)))
    assert len(first.table(["q0", "q1", "q2", "q3"])) == 3, "what the pool leaves out is not said"


def test_examples_by_hand() -> None:
    dataset = caption_set(2)
    by = said_by(Said([["a", "b"], ["c"], []]), [np.array([4, 1, 2])], 3)
    moves = Moves(by, np.arange(3), np.array([8, 1, 2]), np.array([2, 3, 1]))
    assert moves.examples(dataset) == [
        {
            "query_id": "i00#0",
            "text": "numbered 0 0",
            "rank_before": 8,
            "rank_after": 2,
            "num_views": 2,
            "views": [{"text": "a", "rank": 4, "moved": True}, {"text": "b", "rank": None, "moved": None}],
        },
        {
            "query_id": "i01#0",
            "text": "numbered 1 0",
            "rank_before": 1,
            "rank_after": 3,
            "num_views": 1,
            "views": [{"text": "c", "rank": 1, "moved": False}],
        },
    ], "the third has no view of its own"


@pytest.mark.parametrize(("num_up", "num_down", "expected"), [(40, 40, (12, 12)), (40, 3, (21, 3)), (5, 40, (5, 19)), (2, 1, (2, 1))])
def test_shown_are_the_largest_moves_of_both_ways(num_up: int, num_down: int, expected: tuple[int, int]) -> None:
    num = num_up + num_down
    up_Q, step_Q = np.random.default_rng(0).permutation(np.arange(num) < num_up), np.random.default_rng(1).permutation(num) + 2
    before_Q, after_Q = np.where(up_Q, step_Q, 1), np.where(up_Q, 1, step_Q)
    shown = Moves(said_by(Said([["x"]] * num), [before_Q], 1), np.arange(num), before_Q, after_Q).shown()
    assert (int(up_Q[shown].sum()), int((~up_Q[shown]).sum())) == expected
    assert [int(step_Q[query]) for query in shown] == sorted(step_Q[shown].tolist(), reverse=True)
    for way in (up_Q, ~up_Q):
        left = [int(step_Q[query]) for query in np.flatnonzero(way) if query not in shown]
        assert not left or max(left) < min(step_Q[query] for query in shown if way[query])


@pytest.mark.parametrize("side", ["captions", "images", "candidates"])
def test_every_row_is_what_the_queries_table_and_the_searches_say(side: Side) -> None:
    found = made(side)
    before, after, rows = found.ranks("base"), found.ranks("base+synonyms"), found.rows()
    ids = list(before)
    item_Q = found.dataset.caption_image_C if side == "candidates" else range(len(ids))
    stage, direction, alone = "base+synonyms", direction_of(side), found.arm.view_ranks
    expected = [
        (stage, direction, name, place + 1, text, before[name], after[name], int(alone[place][query]))
        for query, (name, item) in enumerate(zip(ids, item_Q, strict=True))
        for place, text in enumerate(found.arm.texts.of(int(item))[:3])
    ]
    assert [tuple(row.values())[:-1] for row in rows] == expected
    assert all(row["moved"] == (row["rank_with_this_view"] != row["rank_without"]) for row in rows)
    assert any(row["moved"] for row in rows) and not all(row["moved"] for row in rows)


def test_the_record_is_recomputed_from_the_rows() -> None:
    found = made()
    record, before, after = found.record(), found.ranks("base"), found.ranks("base+synonyms")
    moved = record["moved"]
    assert moved["up"] == sum(after[q] < before[q] for q in before) and moved["down"] == sum(after[q] > before[q] for q in before)
    assert sum(moved.values()) == len(before) == found.dataset.num_captions
    measured = record["measured"]["text_to_image"]
    wins = [(after[q] == 1) - (before[q] == 1) for q in before]
    assert measured["delta"] == pytest.approx(sum(wins) / len(wins))
    assert measured["R@1"] == pytest.approx(sum(rank == 1 for rank in after.values()) / len(after))
    (row,) = [r for r in found.figures.comparisons if (r["direction"], r["metric"]) == ("text_to_image", "R@1")]
    assert {key: measured[key] for key in ("delta", "ci95", "p_value", "verdict")} == {
        key: row[key] for key in ("delta", "ci95", "p_value", "verdict")
    }
    numbers = [len(texts) for texts in (found.arm.texts.of(item) for item in range(found.dataset.num_captions))]
    assert record["num_items"] == len(numbers) and record["num_expanded"] == sum(n > 0 for n in numbers)
    assert (record["num_views"], record["num_views_used"]) == (sum(numbers), sum(min(n, 3) for n in numbers))
    assert record["pool"] == {"pooling": "max", "number": 3, "weight": 1.0} and record["num_looked_at"] == 3
    assert record["dropped"] == {"said twice": 2} and record["chosen_on"] is None and record["curve"] == []
    rows = found.rows()
    assert 0 < len(record["examples"]) <= 24
    for example in record["examples"]:
        own = [row for row in rows if row["query_id"] == example["query_id"]]
        assert [(v["text"], v["rank"], v["moved"]) for v in example["views"]] == [
            (r["text"], r["rank_with_this_view"], r["moved"]) for r in own
        ]
        assert (example["rank_before"], example["rank_after"]) == (before[example["query_id"]], after[example["query_id"]])


def test_what_was_tried_stands_where_it_was_chosen() -> None:
    found, other = made(), caption_set(15)
    choice = choose_pool(ViewSearch([member(other, 1, views=2)], ALONE, other, "captions"), ["max"])
    record = replace(found, arm=replace(found.arm, choice=choice)).record()
    assert record["chosen_on"]["num_images"] == 15 and len(record["curve"]) == 1 + 2 * 4
    assert record["curve"][0]["pool"] is None
    for point, row in zip(choice.tried, record["curve"], strict=True):
        ranks = point.ranks["text_to_image"].tolist()
        assert row["R@1"] == pytest.approx(sum(rank == 1 for rank in ranks) / len(ranks))
        assert row["ci95"][0] <= row["R@1"] <= row["ci95"][1]


def test_what_hurts_says_so_everywhere(tmp_path: Path) -> None:
    """Views that are all noise, and of full weight, where the captions alone do well."""
    found = made(noise=0.3, view_noise=50.0, pool=Pool("mean", 3, 1.0))
    record = found.record()
    assert record["measured"]["text_to_image"]["verdict"] == "worse"
    assert record["advice"] == "It hurts: synonyms should stay off."
    page, (line,) = found.page(tmp_path)
    assert '<p class="note">It hurts: synonyms should stay off.</p>' in page
    assert line.startswith("expansion synonyms (base+synonyms): worse on test (-") and line.endswith("): leave it off")


def test_a_pair_that_is_not_compared_is_compared_here(tmp_path: Path) -> None:
    found = made(compared=False)
    assert found.record()["measured"]["text_to_image"]["in_comparisons"] is False
    assert "(compared here alone)" in found.page(tmp_path)[0]


def test_off_is_off(tmp_path: Path) -> None:
    found, other = made(), caption_set(6)
    choice = choose_pool(ViewSearch([member(other, 1)], ALONE, other, "captions"))
    off = replace(found, arm=replace(found.arm, stage="never measured", pool=None, view_ranks=(), choice=choice))
    record = off.record()
    assert record["measured"] == {} and record["examples"] == [] and record["moved"] is None and record["num_views_used"] == 0
    assert expansion_table(off.figures, off.dataset, [off.arm]) is None
    page, (line,) = off.page(tmp_path)
    assert record["advice"] in page and line == "expansion synonyms (never measured): off, chosen on val (6 images)"


def test_the_page_marks_what_moved_in_words_and_escapes_what_was_said(tmp_path: Path) -> None:
    found = made(text=EVIL)
    page, _ = found.page(tmp_path)
    assert page.count("<script") == 1 and page.count("&lt;script&gt;") > 10
    views = [view for example in found.record()["examples"] for view in example["views"]]
    assert page.count('<li class="view">') == len(views)
    assert page.count("does not move it") == sum(view["moved"] is False for view in views)
    assert page.count("▲ moves it up") + page.count("▼ moves it down") == sum(view["moved"] is True for view in views) > 0
    assert page.count('<section class="shown-query expansion-example">') == len(found.record()["examples"])


def test_an_image_that_asks_is_named(tmp_path: Path) -> None:
    found = made("images")
    page, examples = found.page(tmp_path)[0], found.record()["examples"]
    assert all(example["text"] is None and f"<small>{example['query_id']}</small>" in page for example in examples)
    assert "None" not in page.split("Additional views of queries and images")[1]


def test_the_table_is_written_whole(tmp_path: Path) -> None:
    found = made()
    table = expansion_table(found.figures, found.dataset, [found.arm])
    assert table is not None
    Report(found.dataset, found.figures, expansions=table).write(tmp_path)
    names = {"expansions.parquet", "queries.parquet", "report.html", "report.json"}
    assert pq.read_table(tmp_path / "expansions.parquet").equals(table) and {p.name for p in tmp_path.iterdir()} == names


def test_views_of_candidates_are_those_of_the_caption_s_own_image() -> None:
    dataset = caption_set(5)
    assert items_of(dataset, "candidates").tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4]
    assert items_of(dataset, "captions").tolist() == list(range(9)) and items_of(dataset, "images").tolist() == list(range(5))
