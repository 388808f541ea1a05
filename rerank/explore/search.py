"""Search a gallery with one query: a sentence, or a picture that need not be in the gallery.

The gallery's vectors are in memory, D x 4 bytes a picture. A query's stages come one by one, so that the first can be shown while the
cross-encoder still scores. Shape letters: N gallery items, D width, K results.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import SiglipModel

from eval.dataset.images import ImageError, decode_image, picture_digest
from eval.encoder.caption_tokens import CaptionTokens
from eval.encoder.encoder import embed_captions, embed_images
from eval.encoder.inputs import SiglipInputs, image_features, text_features
from eval.errors import UserError
from eval.execution import Execution
from eval.manifest.skipped import Skipped
from eval.progress import bar
from eval.report.gallery import Thumbnails, shortened, thumbnail
from eval.search.ranking import Direction, Ranking
from rerank.answers.answers import Answers, pairs_to_score
from rerank.answers.collection import Collection
from rerank.answers.first_stage import without_broken
from rerank.answers.page import ANSWER_PIXELS, QUERY_PIXELS, PageItem
from rerank.explore.probability import StageProbability
from rerank.scorers.scorer import PairScorer
from rerank.scoring.pair_scores import complete_scores

_PIXELS = 2 * ANSWER_PIXELS  # sharp on screens with two pixels for one


@dataclass(frozen=True)
class Gallery:
    """What is searched.

    Attributes:
        collection: pictures that decode, and captions, if there are some.
        images_ND, captions_ND: float32 unit vectors of them.
        broken: pictures that were left out.
    """

    collection: Collection
    images_ND: np.ndarray
    captions_ND: np.ndarray
    broken: list[Skipped]


def embed_gallery(model: SiglipModel, inputs: SiglipInputs, collection: Collection, *, num_workers: int = 0) -> Gallery:
    """Embed every picture and caption once, with a progress bar on stderr; pictures that do not decode are left out.

    Raises:
        UserError: none decodes, or an embedding is not finite.
    """
    with bar(collection.num_images + collection.num_captions, "embed", "row", leave=False) as shown:
        execution = Execution(num_workers=num_workers, on_progress=shown.update)
        images_ND = embed_images(model, inputs, collection, execution=execution, names=collection.image_ids, remedy=None)
        captions_ND = np.empty((0, images_ND.shape[1]), dtype=np.float32)
        if collection.num_captions:
            captions_ND = embed_captions(model, inputs, collection.captions, execution=execution)
    decodes_N = images_ND.any(axis=1)
    broken = np.flatnonzero(~decodes_N)
    skipped = [collection.skipped(image) for image in broken.tolist()]
    return Gallery(without_broken(collection, broken), images_ND[decodes_N], captions_ND, skipped)


@dataclass(frozen=True)
class Hit:
    """One result; `logit`, `score` and `probability` are None where there is none."""

    item: PageItem
    rank: int
    first_rank: int
    cosine: float
    logit: float | None
    score: float | None
    probability: float | None

    @property
    def places_up(self) -> int:
        """How far reranking moved it up; negative: down."""
        return self.first_rank - self.rank


@dataclass(frozen=True)
class ResultList:
    """The results of one stage; `remark`: what there is to know of its probabilities, or why it has no hits yet."""

    title: str
    hits: list[Hit]
    seconds: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Found:
    """What a query found so far.

    Attributes:
        query: the query.
        notes: what a person should know of it.
        groups: heading -> the lists of its stages.
    """

    query: PageItem
    notes: list[str] = field(default_factory=list)
    groups: dict[str, list[ResultList]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pairs:
    """The query and a side of the gallery, as a `rerank.scoring.cached_scoring.ScoringData`."""

    image_ids: Sequence[str]
    caption_ids: Sequence[str]
    captions: Sequence[str]
    load_image: Callable[[int], Image.Image]
    image_digest: Callable[[int], bytes]


class Searcher:
    """Answers queries, one at a time."""

    def __init__(
        self,
        model: SiglipModel,
        inputs: SiglipInputs,
        gallery: Gallery,
        *,
        top_k: int,
        scorer: PairScorer | None = None,
        probabilities: tuple[StageProbability, StageProbability],
    ) -> None:
        """top_k: K, all of which are reranked; probabilities: of the first stage and of the reranked one."""
        self.gallery, self.scorer = gallery, scorer
        self._model, self._inputs, self._top_k = model, inputs, top_k
        self._device = next(model.parameters()).device
        self._scale, self._bias = float(model.logit_scale.detach().float().exp()), float(model.logit_bias.detach().float())
        self._first_probability, self._reranked_probability = probabilities
        self._thumbnails = Thumbnails(gallery.collection)

    def by_sentence(self, text: str) -> Iterator[Found]:
        """The pictures of a sentence: first the first stage's, then with the reranked ones.

        Raises:
            UserError: the sentence is empty, or nothing of it is known to the tokenizer; or a picture does not decode any more.
        """
        sentence = " ".join(text.split())
        if not sentence:
            raise UserError("Nothing to search for yet: type a sentence, or drop a picture.")
        read = CaptionTokens.of(self._inputs, [sentence])
        if read.is_unknown_C[0]:
            raise UserError(f"The model's tokenizer knows nothing of {shortened(sentence)!r}: type words of its language.")
        started = time.perf_counter()
        with torch.no_grad():
            query_D = text_features(self._model, self._inputs.token_ids([sentence]).to(self._device)).cpu().numpy()[0]
        ranking = _ranked("text_to_image", self.gallery.images_ND, query_D, self._top_k)
        cut = f"The model reads {read.num_tokens} tokens; this sentence has more, and its end is not read."
        found = Found(PageItem("", shortened(sentence)), [cut] if read.is_cut_C[0] else [])
        pictures = self.gallery.collection
        pairs = _Pairs(pictures.image_ids, ["query"], [sentence], pictures.load_image, pictures.image_digest)
        yield from self._stages(found, "Pictures", ranking, pairs, started)

    def by_picture(self, path: str | Path) -> Iterator[Found]:
        """The pictures that resemble a picture and, where the gallery has captions, those of the picture: then with the reranked ones.

        Raises:
            UserError: the picture does not decode.
        """
        try:
            picture = decode_image(path)
        except ImageError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise UserError(f"The picture you gave: {reason}. Save it anew as .jpg or .png, or give another one.") from error
        started = time.perf_counter()
        with torch.no_grad():
            query_D = image_features(self._model, self._inputs.pixels(picture)[None].to(self._device)).cpu().numpy()[0]
        ranking = _ranked("image_to_text", self.gallery.images_ND, query_D, self._top_k)
        answers = Answers.of(ranking, None)
        remark = "No probability and no reranking: both are of a picture with a sentence, not with another picture"
        similar = ResultList("First stage", self._hits(answers, are_pictures=True), time.perf_counter() - started, remark)
        found = Found(PageItem("the picture you gave", picture=thumbnail(picture, QUERY_PIXELS)), [], {"Similar pictures": [similar]})
        captions = self.gallery.collection
        if not captions.num_captions:
            yield found
            return
        started = time.perf_counter()
        ranking = _ranked("image_to_text", self.gallery.captions_ND, query_D, self._top_k)
        pairs = _Pairs(["query"], captions.caption_ids, captions.captions, lambda image: picture, lambda image: picture_digest(path))
        yield from self._stages(found, "Captions", ranking, pairs, started)

    def _stages(self, found: Found, heading: str, ranking: Ranking, pairs: _Pairs, started: float) -> Iterator[Found]:
        """What was found with the lists of both stages under a heading, the second one when it is there."""
        answers = Answers.of(ranking, None)
        first = ResultList(
            "First stage", self._hits(answers), time.perf_counter() - started, f"Probability: {self._first_probability.remark}"
        )
        if self.scorer is None:
            yield _with(found, heading, [first])
            return
        title = f"Reranked by {self.scorer.name}"
        yield _with(found, heading, [first, ResultList(title, [], None, f"Scoring {answers.depth} pairs …")])
        started = time.perf_counter()
        scores = complete_scores(self.scorer, pairs, pairs_to_score([ranking]))
        hits = self._hits(Answers.of(ranking, scores))
        yield _with(
            found,
            heading,
            [first, ResultList(title, hits, time.perf_counter() - started, f"Probability: {self._reranked_probability.remark}")],
        )

    def _hits(self, answers: Answers, *, are_pictures: bool = False) -> list[Hit]:
        """The results of the one query of `answers`; are_pictures: of a picture, found by a picture."""
        cosines_K = answers.cosines_QK[0]
        scores_K = None if answers.rerank_scores_QK is None else answers.rerank_scores_QK[0]
        of_stage = (self._first_probability, cosines_K) if scores_K is None else (self._reranked_probability, scores_K)
        probability_K = None if are_pictures else of_stage[0].of(answers.direction, of_stage[1])
        return [
            Hit(
                self._picture(index) if are_pictures or answers.direction == "text_to_image" else self._caption(index),
                place + 1,
                int(answers.first_ranks_QK[0, place]),
                float(cosines_K[place]),
                None if are_pictures else self._scale * float(cosines_K[place]) + self._bias,
                None if scores_K is None else float(scores_K[place]),
                None if probability_K is None else float(probability_K[place]),
            )
            for place, index in enumerate(answers.indices_QK[0].tolist())
        ]

    def _picture(self, index: int) -> PageItem:
        return PageItem(self.gallery.collection.image_ids[index], picture=self._thumbnails.of(index, _PIXELS))

    def _caption(self, index: int) -> PageItem:
        return PageItem(self.gallery.collection.caption_ids[index], shortened(self.gallery.collection.captions[index]))


def _ranked(direction: Direction, gallery_ND: np.ndarray, query_D: np.ndarray, top_k: int) -> Ranking:
    """The K items nearest to one query by cosine, equal ones by the lower index."""
    cosines_N = gallery_ND @ query_D
    first_K = np.argsort(-cosines_N, kind="stable")[:top_k]
    no_positives = np.empty(0, dtype=np.int64)
    return Ranking(direction, first_K[None], cosines_N[first_K][None], np.zeros(2, dtype=np.int64), no_positives, no_positives)


def _with(found: Found, heading: str, lists: list[ResultList]) -> Found:
    return replace(found, groups=found.groups | {heading: lists})
