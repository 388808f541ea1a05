"""What each additional view does to each query: the rows of expansions.parquet, and the queries a report shows.

A view moves a query's rank if the rank is another when this view alone joins the original, at the pooling and weight that are measured. Of
captions and images that ask, a query's views are its own; of candidates, those of the image a caption belongs to.
Shape letters: Q queries of one direction, N items of the side with views, V view numbers, R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes
from rerank.combine.pooling import Side, ViewSearch, direction_of
from rerank.combine.tuning import TunedSetting
from rerank.combine.views import EnsembleMember, Pool, Views
from rerank.expansions.additional_texts import AdditionalTexts
from rerank.expansions.image_views import ImageViews

MOST_LOOKED_AT = 8
MOST_SHOWN = 24
MOST_VIEWS_SHOWN = 12


def ranks_of_each_view(search: ViewSearch, pool: Pool, processes: Processes = Processes()) -> list[np.ndarray]:
    """Rank of each query's best relevant item when view number 1, 2, ... alone joins the original; int64 (Q,) each.

    One search for each number, of at most the first 8 that the pool uses; call on every process. An item without the view stays plain.

    Args:
        pool: what is measured.
    """
    alone, looked_at = replace(pool, number=1), range(min(pool.number, search.most_views, MOST_LOOKED_AT))
    return [
        replace(search, members=[_only(member, search.side, place) for member in search.members]).ranks(alone, processes)
        for place in looked_at
    ]


def _only(member: EnsembleMember, side: Side, place: int) -> EnsembleMember:
    """A member whose items have one additional view, that of a place, or none."""
    views = member.captions if side == "captions" else member.images
    has_N = np.diff(views.offsets) > place
    offsets = np.concatenate([[0], np.cumsum(has_N)]).astype(np.int64)
    one = Views(views.vectors_ND, views.additional_XD[views.offsets[:-1][has_N] + place], offsets)
    return replace(member, captions=one) if side == "captions" else replace(member, images=one)


@dataclass(frozen=True)
class ExpandedStage:
    """A stage with additional views of one side's items.

    Attributes:
        stage, against: its name, and the stage without them.
        name: of the expansion, unique among a report's.
        texts: the texts of the views, of the split that is measured.
        pool: what is measured; None: off, and `stage` need not be among the report's.
        view_ranks: `ranks_of_each_view` on the split that is measured; empty where off.
        choice: what the pool was chosen from; None: it was given.
    """

    stage: str
    against: str
    name: str
    side: Side
    texts: AdditionalTexts | ImageViews
    pool: Pool | None
    view_ranks: Sequence[np.ndarray] = ()
    choice: TunedSetting[Pool | None] | None = None


@dataclass(frozen=True)
class Moves:
    """What views did to the queries of one direction.

    Attributes:
        by: the stage with the views, in use.
        item_Q: the item whose views are a query's.
        without_Q, with_Q: int64, rank of the best relevant item without views and with all that are used.
    """

    by: ExpandedStage
    item_Q: np.ndarray
    without_Q: np.ndarray
    with_Q: np.ndarray

    def counts(self) -> dict[str, int]:
        """Number of queries whose best relevant item rose, fell or stayed."""
        up, down = int((self.with_Q < self.without_Q).sum()), int((self.with_Q > self.without_Q).sum())
        return {"up": up, "down": down, "same": len(self.with_Q) - up - down}

    @property
    def views_Q(self) -> np.ndarray:
        """How many views each query uses."""
        return np.minimum(np.diff(self.by.texts.offsets)[self.item_Q], self.by.pool.number if self.by.pool is not None else 0)

    def table(self, query_ids: Sequence[str]) -> pa.Table:
        """The rows of expansions.parquet, a query's views in order; a number that was not looked at has null as its rank."""
        views_Q = self.views_Q
        query_R = np.repeat(np.arange(len(views_Q)), views_Q)
        place_R = np.arange(len(query_R)) - np.repeat(np.cumsum(views_Q) - views_Q, views_Q)
        texts = [
            text for item, num in zip(self.item_Q.tolist(), views_Q.tolist(), strict=True) if num for text in self.by.texts.of(item)[:num]
        ]
        ranks_VQ = np.stack([*self.by.view_ranks, self.without_Q])  # the last row stands in for numbers not looked at
        unknown_R = place_R >= len(self.by.view_ranks)
        rank_R = ranks_VQ[np.minimum(place_R, len(self.by.view_ranks)), query_R]
        return pa.table(
            {
                "stage": pa.repeat(self.by.stage, len(query_R)),
                "direction": pa.repeat(direction_of(self.by.side), len(query_R)),
                "query_id": pa.array(list(query_ids), pa.string()).take(pa.array(query_R)),
                "view": place_R + 1,
                "text": pa.array(texts, pa.string()),
                "rank_without": self.without_Q[query_R],
                "rank_with_all": self.with_Q[query_R],
                "rank_with_this_view": pa.array(rank_R, mask=unknown_R),
                "moved": pa.array(rank_R != self.without_Q[query_R], mask=unknown_R),
            }
        )

    def shown(self) -> list[int]:
        """The queries with views that moved most, by how many times smaller or larger their rank became: half up, half down, if there are.

        The largest moves first; of equal ones the lower query.
        """
        size_Q = np.round(np.log(self.with_Q / self.without_Q), 12)  # below 0: up
        order = np.argsort(-np.abs(size_Q), kind="stable")
        order = order[self.views_Q[order] > 0]
        up, down = order[size_Q[order] < 0], order[size_Q[order] > 0]
        num_up = max(min(len(up), MOST_SHOWN // 2), min(len(up), MOST_SHOWN - len(down)))
        taken = {*up[:num_up].tolist(), *down[: MOST_SHOWN - num_up].tolist()}
        return [query for query in order.tolist() if query in taken]

    def examples(self, dataset: RetrievalSet) -> list[dict[str, Any]]:
        """report.json's `examples`: the queries of `shown`, each with its views and what each of them does alone."""
        asks_text = direction_of(self.by.side) == "text_to_image"
        ids = dataset.caption_ids if asks_text else dataset.image_ids
        rows, starts_Q = self.table(ids), np.cumsum(self.views_Q) - self.views_Q
        return [
            {
                "query_id": ids[query],
                "text": dataset.captions[query] if asks_text else None,
                "rank_before": int(self.without_Q[query]),
                "rank_after": int(self.with_Q[query]),
                "num_views": int(self.views_Q[query]),
                "views": [
                    {"text": row["text"], "rank": row["rank_with_this_view"], "moved": row["moved"]}
                    for row in rows.slice(starts_Q[query], min(int(self.views_Q[query]), MOST_VIEWS_SHOWN)).to_pylist()
                ],
            }
            for query in self.shown()
        ]


def items_of(dataset: RetrievalSet, side: Side) -> np.ndarray:
    """The item of the side with views that a query's views are of, int64 (Q,)."""
    if side == "candidates":
        return dataset.caption_image_C
    return np.arange(dataset.num_captions if side == "captions" else dataset.num_images)
