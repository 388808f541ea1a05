"""The answers as people see them: each query with its picture or caption, the first answers before and after, and what moved.

One file of HTML that opens from disk. Small pictures are in it; a click opens the file itself, from where it lay.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from eval.dataset.images import ImageError
from eval.report.gallery import thumbnail
from eval.report.render import render
from rerank.answers.answers import Answers
from rerank.answers.first_stage import FirstAnswers

NUM_SHOWN = 6
QUERY_PIXELS, ANSWER_PIXELS = 224, 128
_MOST_CHARACTERS = 300


@dataclass(frozen=True)
class Thing:
    """A picture or a caption: `picture` is a data: URI ("" where it cannot be shown), `link` leads to the file."""

    id: str
    text: str = ""
    picture: str = ""
    link: str = ""


@dataclass(frozen=True)
class Answer:
    """One entry of a list, with its place in both (from 1); `score` is the reranker's, None where it was not asked."""

    thing: Thing
    first_rank: int
    rank: int
    cosine: float
    score: float | None

    @property
    def places_up(self) -> int:
        """How far reranking moved it up; negative: down."""
        return self.first_rank - self.rank


@dataclass(frozen=True)
class Exhibit:
    """A query with the heads of its lists; without a reranker `after` is empty."""

    query: Thing
    before: list[Answer]
    after: list[Answer]


def exhibits(found: FirstAnswers, answers: Sequence[Answers], count: int, page: Path) -> dict[str, list[Exhibit]]:
    """The queries to show, by direction: `count` in all, as many of each direction as there are, those that moved most first.

    Args:
        page: where the page will lie; links are relative to it.
    """
    show = _Showcase(found, page)
    chosen = {one.direction: show.direction(one, share) for one, share in zip(answers, _shares(answers, count), strict=True)}
    return {direction: shown for direction, shown in chosen.items() if shown}


def _shares(answers: Sequence[Answers], count: int) -> list[int]:
    """How many queries of each direction: equal shares, and what one direction lacks goes to the other."""
    left, shares = count, [0] * len(answers)
    smallest_first = sorted(range(len(answers)), key=lambda number: answers[number].num_queries)
    for waiting, number in zip(range(len(answers), 0, -1), smallest_first, strict=True):
        shares[number] = min(answers[number].num_queries, left // waiting if waiting > 1 else left)
        left -= shares[number]
    return shares


@dataclass
class _Showcase:
    """Makes exhibits; remembers each small picture."""

    found: FirstAnswers
    page: Path
    pictures: dict[tuple[int, int], str] = field(default_factory=dict)

    def direction(self, answers: Answers, count: int) -> list[Exhibit]:
        """The exhibits of one direction."""
        reranked = answers.rerank_scores_QK is not None
        queries = answers.most_moved(count).tolist() if reranked else range(count)
        return [self._exhibit(answers, query, reranked) for query in queries]

    def _exhibit(self, answers: Answers, query: int, reranked: bool) -> Exhibit:
        by_first_rank = np.argsort(answers.first_ranks_QK[query], kind="stable")[:NUM_SHOWN].tolist()
        before = [self._answer(answers, query, place) for place in by_first_rank]
        after = [self._answer(answers, query, place) for place in range(min(NUM_SHOWN, answers.depth))] if reranked else []
        return Exhibit(self._thing(answers.direction == "image_to_text", query, QUERY_PIXELS), before, after)

    def _answer(self, answers: Answers, query: int, place: int) -> Answer:
        score = None if answers.rerank_scores_QK is None else float(answers.rerank_scores_QK[query, place])
        return Answer(
            self._thing(answers.direction == "text_to_image", int(answers.indices_QK[query, place]), ANSWER_PIXELS),
            int(answers.first_ranks_QK[query, place]),
            place + 1,
            float(answers.cosines_QK[query, place]),
            None if score is None or np.isnan(score) else score,
        )

    def _thing(self, is_image: bool, index: int, pixels: int) -> Thing:
        collection = self.found.collection
        if not is_image:
            text = collection.captions[index]
            return Thing(collection.caption_ids[index], text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " …")
        path = collection.pictures.path(index)
        return Thing(collection.image_ids[index], "", self._picture(index, pixels), _link(path, self.page) if path else "")

    def _picture(self, image: int, pixels: int) -> str:
        if (image, pixels) not in self.pictures:
            try:
                self.pictures[image, pixels] = thumbnail(self.found.collection.load_image(image), pixels)
            except ImageError:  # it decoded before; a page of answers already found must not fail for it
                self.pictures[image, pixels] = ""
        return self.pictures[image, pixels]


def _link(path: str, page: Path) -> str:
    """A relative URL; "./" keeps a name such as "a:b.jpg" from being read as a scheme."""
    relative = quote(os.path.relpath(path, page.parent))
    return relative if relative.startswith("../") else f"./{relative}"


def answers_page(page: Path, found: FirstAnswers, answers: Sequence[Answers], count: int, about: dict[str, Any]) -> str:
    """The page's HTML.

    Args:
        page: where it will lie.
        count: queries shown at most.
        about: what the page says of the run: model, reranker (None: none), table (the file's name).
    """
    shown = exhibits(found, answers, count, page)
    return render(
        "page.html.j2",
        Path(__file__).parent,
        about=about,
        shown=shown,
        answers={one.direction: one for one in answers},
        num_images=found.collection.num_images,
        num_captions=found.collection.num_captions,
        num_broken=len(found.broken),
    )
