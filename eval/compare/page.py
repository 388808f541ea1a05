"""The page of a comparison: the answer in a sentence, a chart of the differences, and the queries whose first answer differs.

One HTML file that opens from disk and asks for nothing; every string from outside is escaped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from math import ceil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.compare.items import Items, Shown
from eval.compare.reports import letters_of, main_pairs, precision_lines, same_weights_lines
from eval.metrics.stage_metrics import mean_recall_at_1
from eval.report.answer import answer_lines
from eval.report.render import render
from eval.search.ranking import DIRECTIONS

MOST_SHOWN, MOST_BYTES = 300, 1_500_000
"""Queries of a page, and bytes of their pictures."""


@dataclass(frozen=True)
class Differing:
    """A query whose first answer is relevant in some runs and not in others.

    Attributes:
        stages: which are compared, in words.
        runs: their letters, the first run's before all.
        ranks: of the best relevant item in each, from 1.
        firsts: id of what each puts first.
    """

    stages: str
    direction: str
    query: str
    runs: Sequence[str]
    ranks: Sequence[int]
    firsts: Sequence[str]

    @property
    def outcomes(self) -> list[str]:
        """Of each run but the first "won" or "lost" against it, or ""; of the first ""."""
        is_right = self.ranks[0] == 1
        return ["", *("" if (rank == 1) == is_right else "lost" if is_right else "won" for rank in self.ranks[1:])]

    @property
    def largest_change(self) -> int:
        """Of the rank, over the runs."""
        return max(abs(rank - self.ranks[0]) for rank in self.ranks)

    def shown(self, items: Items) -> "ShownDiffering":
        """With pictures and captions; the relevant item is the first answer of a run where that is relevant."""
        answers_are_captions = self.direction == "image_to_text"
        firsts = [items.of(answers_are_captions, name) for name in self.firsts]
        return ShownDiffering(self, items.of(not answers_are_captions, self.query), firsts[self.ranks.index(1)], firsts)


@dataclass(frozen=True)
class ShownDiffering:
    """A differing query as people see it; `firsts`: what each run puts first."""

    found: Differing
    query: Shown
    relevant: Shown
    firsts: Sequence[Shown]

    @property
    def places(self) -> list[tuple[str, int, str, Shown]]:
        """(run, rank, outcome, what it puts first) of each run."""
        return list(zip(self.found.runs, self.found.ranks, self.found.outcomes, self.firsts, strict=True))

    @property
    def marks(self) -> str:
        """Each outcome with its run, as the page's filters find it: "won-B lost-C"."""
        return " ".join(f"{outcome}-{run}" for run, _, outcome, _ in self.places if outcome)

    @property
    def words(self) -> str:
        """What a search of the page looks through."""
        shown = [self.query, self.relevant, *self.firsts]
        return " ".join(dict.fromkeys(word for one in shown for word in (one.id, one.text) if word)).lower()

    @property
    def num_bytes(self) -> int:
        """Of its pictures."""
        return sum(len(one.picture) for one in (self.query, self.relevant, *self.firsts))


def sentences(record: Mapping[str, Any]) -> list[str]:
    """The answer on each run but the first, a line each, as a terminal prints it."""
    pairs = main_pairs(record)
    rows = [row for row in record["comparisons"] if (row["stage"], row["against"]) in pairs]
    return answer_lines({"stages": record["stages"], "comparisons": rows}, most=len(pairs))


def page(record: Mapping[str, Any], items: Items, note: str = "") -> str:
    """The HTML page of a record.

    Args:
        items: makes what is shown of an id.
        note: on pictures and captions; empty: nothing.
    """
    every = differing_queries(record)
    shown = list(_within_size(every, items))
    return render(
        "page.html.j2",
        Path(__file__).parent,
        record=record,
        runs=letters_of(record),
        answers=[_answer(record, pair) for pair in main_pairs(record)],
        notes=[*same_weights_lines(record), *precision_lines(record)],
        chart=Chart.of(record),
        queries=shown,
        num_differing=len(every),
        groups=list(dict.fromkeys(query.found.stages for query in shown)),
        note=note,
        nouns={"image_to_text": ("picture", "caption"), "text_to_image": ("caption", "picture")},
    )


def _answer(record: Mapping[str, Any], pair: tuple[str, str]) -> dict[str, Any]:
    """What the first sentence says of one run: mean R@1 of both, in percent, and the row of their difference."""
    row = next(r for r in record["comparisons"] if (r["stage"], r["against"], r["direction"], r["metric"]) == (*pair, "both", "R@1"))
    return dict(row) | {"means": [100 * mean_recall_at_1(record["stages"][stage]) for stage in pair]}


@dataclass(frozen=True)
class Chart:
    """Dots and intervals of the differences of mean R@1 on one axis, whose places are in percent of its width.

    Attributes:
        rows: of the comparisons, each with `low`, `dot` and `high` on the axis.
        ticks: (place, points).
        zero: place of no difference.
    """

    rows: list[dict[str, Any]]
    ticks: list[tuple[float, str]]
    zero: float
    width: int = 100

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Chart":
        """Of all pairs of a record."""
        found = [row for row in record["comparisons"] if row["direction"] == "both" and row["metric"] == "R@1"]
        reach = max((100 * abs(bound) for row in found for bound in row["ci95"]), default=0.0)
        step = next((step for step in (0.5, 1, 2, 5, 10, 20) if 3 * step >= reach), 50)
        most = step * max(1, ceil(reach / step))

        def place(points: float) -> float:
            return round(50 * (points / most + 1), 2)

        rows = [dict(row) | {"dot": place(100 * row["delta"])} for row in found]
        for row in rows:
            row["low"], row["high"] = (place(100 * bound) for bound in row["ci95"])
        ticks = [step * number for number in range(-round(most / step), round(most / step) + 1)]
        return cls(rows, [(place(tick), f"{tick:+g}" if tick else "0") for tick in ticks], place(0))


def differing_queries(record: Mapping[str, Any]) -> list[Differing]:
    """Every query whose first answer differs, of each stage of the first run and what it is compared with; won and lost of each direction
    by turns, those whose rank changes most first, so that a page that shows a part shows some of each."""
    others: dict[str, list[str]] = {}
    for row in record["comparisons"]:
        if row["stage"] not in (compared := others.setdefault(row["against"], [])):
            compared.append(row["stage"])
    tables = {name: _table(Path(record[name])) for name in letters_of(record)}
    kinds: dict[tuple[str, str, str], list[Differing]] = {}
    for against, compared in others.items():
        stages = [against, *compared]
        names = list(dict.fromkeys(stage.split(":", 1)[1] for stage in stages))
        words, runs = names[0] if len(names) == 1 else " / ".join(stages), [stage.split(":", 1)[0] for stage in stages]
        for direction in DIRECTIONS:
            sides = [_rows(tables, stage, direction) for stage in stages]
            for query in sides[0]:
                ranks, firsts = zip(*(side[query] for side in sides), strict=True)
                if len({rank == 1 for rank in ranks}) > 1:
                    found = Differing(words, direction, query, runs, ranks, firsts)
                    kinds.setdefault((words, direction, next(filter(None, found.outcomes))), []).append(found)
    turns = zip_longest(*(sorted(kind, key=lambda one: (-one.largest_change, one.query)) for kind in kinds.values()))
    return [one for one in chain.from_iterable(turns) if one is not None]


def _table(folder: Path) -> pa.Table:
    """The rows of a report; without first answers, as a report that was kept for its figures, there are none."""
    path = folder / "queries.parquet"
    if "top_ids" not in pq.read_schema(path).names:
        return pa.table({name: pa.array([], pa.string()) for name in ("stage", "direction", "query_id", "rank", "top_ids")})
    return pq.read_table(path, columns=["stage", "direction", "query_id", "rank", "top_ids"])


def _rows(tables: Mapping[str, pa.Table], stage: str, direction: str) -> dict[str, tuple[int, str]]:
    """Query -> (rank, id of its first answer) of a stage such as B:tuned; no query where a table has none."""
    if not all(table.num_rows for table in tables.values()):
        return {}
    run, name = stage.split(":", 1)
    rows = tables[run].filter(pc.and_(pc.equal(tables[run]["stage"], name), pc.equal(tables[run]["direction"], direction)))
    columns = (rows["query_id"].to_pylist(), rows["rank"].to_pylist(), pc.list_element(rows["top_ids"], 0).to_pylist())
    return {query: (rank, first) for query, rank, first in zip(*columns, strict=True)}


def _within_size(every: Sequence[Differing], items: Items) -> Iterator[ShownDiffering]:
    """As many as a page can hold; a picture counts each time it is shown."""
    size = 0
    for found in every[:MOST_SHOWN]:
        query = found.shown(items)
        size += query.num_bytes
        if size > MOST_BYTES:
            return
        yield query
