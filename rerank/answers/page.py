"""The answers as an HTML page: queries with their image or caption, the first answers before and after reranking, and the changed ranks.

One HTML file that opens from disk. Thumbnails are embedded; a click opens the image file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.report.gallery import Thumbnails, shortened
from eval.report.render import relative_link, render
from rerank.answers.answers import Answers
from rerank.answers.first_stage import FirstAnswers

NUM_SHOWN = 6
QUERY_PIXELS, ANSWER_PIXELS = 224, 128


@dataclass(frozen=True)
class PageItem:
    """A picture or a caption: `picture` is a data: URI ("" where it cannot be shown), `link` the file's URL."""

    id: str
    text: str = ""
    picture: str = ""
    link: str = ""


@dataclass(frozen=True)
class Answer:
    """One entry of a list, with its place in both (from 1); `score` is the reranker's, None where the pair was not scored; `probability`
    is that of a match, None without a calibration."""

    item: PageItem
    first_rank: int
    rank: int
    cosine: float
    score: float | None
    probability: float | None = None

    @property
    def places_up(self) -> int:
        """How far reranking moved it up; negative: down."""
        return self.first_rank - self.rank


@dataclass(frozen=True)
class QueryExample:
    """A query with the first answers of its lists; without a reranker `after` is empty.

    Attributes:
        num_matches: answers of the final list that are good enough; None: all are shown.
    """

    query: PageItem
    before: list[Answer]
    after: list[Answer]
    num_matches: int | None = None

    @property
    def matches(self) -> list[Answer]:
        """What is shown of the final list."""
        final = self.after or self.before
        return final if self.num_matches is None else final[: self.num_matches]


def query_examples(found: FirstAnswers, answers: Sequence[Answers], count: int, page: Path) -> dict[str, list[QueryExample]]:
    """The queries to show, by direction: `count` in all, divided equally, those with the largest changes first.

    Args:
        page: the page's path; links are relative to it.
    """
    make = _ExampleBuilder(found, page, Thumbnails(found.collection))
    chosen = {one.direction: make.examples(one, share) for one, share in zip(answers, _shares(answers, count), strict=True)}
    return {direction: shown for direction, shown in chosen.items() if shown}


def _shares(answers: Sequence[Answers], count: int) -> list[int]:
    """Number of queries of each direction: equal shares; what one direction lacks goes to the other."""
    left, shares = count, [0] * len(answers)
    smallest_first = sorted(range(len(answers)), key=lambda number: answers[number].num_queries)
    for waiting, number in zip(range(len(answers), 0, -1), smallest_first, strict=True):
        shares[number] = min(answers[number].num_queries, left // waiting if waiting > 1 else left)
        left -= shares[number]
    return shares


@dataclass(frozen=True)
class _ExampleBuilder:
    found: FirstAnswers
    page: Path
    thumbnails: Thumbnails

    def examples(self, answers: Answers, count: int) -> list[QueryExample]:
        """The examples of one direction."""
        reranked = answers.rerank_scores_QK is not None
        examples = []
        for query in answers.most_moved(count).tolist() if reranked else range(count):
            by_first_rank = np.argsort(answers.first_ranks_QK[query], kind="stable")[:NUM_SHOWN].tolist()
            before = [self._answer(answers, query, place) for place in by_first_rank]
            after = [self._answer(answers, query, place) for place in range(min(NUM_SHOWN, answers.depth))] if reranked else []
            num_matches = None if answers.num_matches_Q is None else int(answers.num_matches_Q[query])
            examples.append(QueryExample(self._item(answers.direction == "image_to_text", query, QUERY_PIXELS), before, after, num_matches))
        return examples

    def _answer(self, answers: Answers, query: int, place: int) -> Answer:
        score = None if answers.rerank_scores_QK is None else float(answers.rerank_scores_QK[query, place])
        return Answer(
            self._item(answers.direction == "text_to_image", int(answers.indices_QK[query, place]), ANSWER_PIXELS),
            int(answers.first_ranks_QK[query, place]),
            place + 1,
            float(answers.cosines_QK[query, place]),
            None if score is None or np.isnan(score) else score,
            None if answers.probabilities_QK is None else float(answers.probabilities_QK[query, place]),
        )

    def _item(self, is_image: bool, index: int, pixels: int) -> PageItem:
        collection = self.found.collection
        if not is_image:
            return PageItem(collection.caption_ids[index], shortened(collection.captions[index]))
        path = collection.pictures.path(index)
        return PageItem(collection.image_ids[index], "", self.thumbnails.of(index, pixels), relative_link(path, self.page) if path else "")


def answers_page(page: Path, found: FirstAnswers, answers: Sequence[Answers], count: int, about: dict[str, Any]) -> str:
    """The HTML of the page with this path and at most `count` queries; `about`: model, reranker (None: none), table (the file's name)."""
    return render(
        "page.html.j2",
        Path(__file__).parent,
        about=about,
        shown=query_examples(found, answers, count, page),
        answers={one.direction: one for one in answers},
        num_images=found.collection.num_images,
        num_captions=found.collection.num_captions,
        num_broken=len(found.broken),
    )
