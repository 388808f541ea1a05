"""Combined scores as whole matrices in float64, by plain loops over pairs and views: what rerank/combine/combine.py is held against."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch

from eval.dataset.retrieval_set import PositivePairs
from eval.search.ranking import Direction
from rerank.combine.combine import Pools
from rerank.combine.rules import COMBINATIONS, POOLINGS, Combination
from rerank.combine.views import EnsembleMember, Pool, Views


def ranks_of(scores: Sequence[float]) -> list[int]:
    """Rank from 1 of each score, equal ones by the lower index."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
    place = {item: rank for rank, item in enumerate(order, 1)}
    return [place[item] for item in range(len(scores))]


def views_of(side: Views, item: int, pool: Pool | None) -> list[np.ndarray]:
    """View 0 and the additional ones that count, float64."""
    number = 0 if pool is None or pool.weight == 0 else pool.number
    additional = side.additional_XD[side.offsets[item] : side.offsets[item + 1]][:number]
    return [side.vectors_ND[item].astype(np.float64), *additional.astype(np.float64)]


def averaged(views: list[np.ndarray], weight: float) -> np.ndarray:
    mixed = (1 - weight) * views[0] + weight * sum(views) / len(views)
    return mixed / np.linalg.norm(mixed)


def pooled(scores: list[float], pool: Pool, scale: float) -> float:
    """One score of those of the views."""
    if len(scores) == 1:
        return scores[0]
    if pool.pooling == "max":
        best = max(scores)
    else:
        best = math.log(sum(math.exp(scale * (score - max(scores))) for score in scores) / len(scores)) / scale + max(scores)
    return (1 - pool.weight) * scores[0] + pool.weight * best


def with_gallery(view: np.ndarray, gallery: Views, pool: Pool | None, scale: float) -> list[float]:
    """Scores of one vector with every pooled item of the gallery."""
    found = []
    for item in range(len(gallery.vectors_ND)):
        views = views_of(gallery, item, pool)
        if pool is None or len(views) == 1:
            found.append(float(view @ views[0]))
        elif pool.pooling == "mean":
            found.append(float(view @ averaged(views, pool.weight)))
        else:
            found.append(pooled([float(view @ one) for one in views], pool, scale))
    return found


def member_scores(member: EnsembleMember, direction: Direction, pools: Pools) -> np.ndarray:
    """Pooled cosines of one member, float64 (Q, N)."""
    queries, gallery = (member.images, member.captions) if direction == "image_to_text" else (member.captions, member.images)
    asks, ranked = pools
    if all(len(views_of(queries, query, asks)) == 1 for query in range(len(queries.vectors_ND))):
        asks = None  # nothing to pool: cosines, not ranks
    rows = []
    for query in range(len(queries.vectors_ND)):
        views = views_of(queries, query, asks)
        if asks is not None and asks.pooling == "mean" and len(views) > 1:
            views = [averaged(views, asks.weight)]
        by_view = [with_gallery(view, gallery, ranked, member.scale) for view in views]
        if asks is not None and asks.pooling == "reciprocal-rank":
            places = [[1 / (60 + rank) for rank in ranks_of(scores)] for scores in by_view]
            means = [sum(column) / len(column) for column in zip(*places, strict=True)]
            rows.append([(1 - asks.weight) * own + asks.weight * mean for own, mean in zip(places[0], means, strict=True)])
        elif len(views) == 1 or asks is None:
            rows.append(by_view[0])
        else:
            rows.append([pooled(list(column), asks, member.scale) for column in zip(*by_view, strict=True)])
    return np.array(rows)


def ensemble_scores(
    members: Sequence[EnsembleMember], direction: Direction, weights: Sequence[float], combination: str, pools: Pools
) -> np.ndarray:
    """The combined scores, float64 (Q, N); those of logits as weighted means of cosines."""
    kept = [(member, weight / sum(weights)) for member, weight in zip(members, weights, strict=True) if weight]
    scores = [member_scores(member, direction, pools) for member, _ in kept]
    if len(kept) == 1:
        return scores[0]
    parts = np.array([weight for _, weight in kept])
    if combination == "reciprocal-rank":
        found = np.array([[[1 / (60 + rank) for rank in ranks_of(row.tolist())] for row in own.astype(np.float32)] for own in scores])
    else:
        logits = [member.scale * own + member.bias for (member, _), own in zip(kept, scores, strict=True)]
        bias = sum(weight * member.bias for member, weight in kept)
        found = (np.array(logits) - bias) / sum(weight * member.scale for member, weight in kept)
    return np.einsum("m,mqn->qn", parts, found)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def side(generator: np.random.Generator, num: int, width: int, most: int) -> Views:
    """Unit vectors with 0 to `most` additional views each, near the item."""
    own = unit(generator.standard_normal((num, width)))
    counts = generator.integers(0, most + 1, num)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    additional = unit(np.repeat(own, counts, axis=0) + 0.7 * generator.standard_normal((int(offsets[-1]), width)))
    return Views(own, additional.reshape(-1, width), offsets)


def made_up(seed: int, num_images: int, num_captions: int, width: int = 6, most: int = 3) -> EnsembleMember:
    """A member of random vectors."""
    generator = np.random.default_rng(seed)
    scale = float(generator.uniform(5, 120))
    images, captions = side(generator, num_images, width, most), side(generator, num_captions, width, most)
    return EnsembleMember(images, captions, scale, float(generator.uniform(-12, 0)), torch.device("cpu"))


class Owned:
    """A data set in which caption c is true of image c modulo the number of images, and of one more here and there."""

    def __init__(self, num_images: int, num_captions: int) -> None:
        pairs = {(caption % num_images, caption) for caption in range(num_captions)}
        pairs |= {(image, image % num_captions) for image in range(num_images)} | {(0, num_captions - 1)}
        self._pairs = sorted(pairs)
        self._sizes = num_images, num_captions

    def positives(self, direction: Direction) -> PositivePairs:
        """As `eval.dataset.retrieval_set.RetrievalSet` gives them."""
        asks = 0 if direction == "image_to_text" else 1
        ordered = sorted(self._pairs, key=lambda pair: (pair[asks], pair[1 - asks]))
        counts = np.bincount([pair[asks] for pair in ordered], minlength=self._sizes[asks])
        return PositivePairs(np.append(0, np.cumsum(counts)), np.array([pair[1 - asks] for pair in ordered], dtype=np.int64))


def as_set(num_images: int, num_captions: int) -> Any:
    """What `rank_ensemble` takes for a data set."""
    return Owned(num_images, num_captions)


def mixtures(members: int) -> list[tuple[Combination, str | None, str | None]]:
    """Every (combination, pooling of the queries, pooling of the gallery) that has a meaning."""
    ways: list[str | None] = [None, *POOLINGS]
    return [
        (combination, asks, ranked)
        for combination, asks, ranked in product(COMBINATIONS if members > 1 else COMBINATIONS[:1], ways, ways)
        if ranked != "reciprocal-rank" and (asks != "reciprocal-rank" or members == 1 or combination == "reciprocal-rank")
    ]


def pool(pooling: str | None, number: int, weight: float) -> Pool | None:
    return None if pooling is None else Pool(pooling, number, weight)  # type: ignore[arg-type]
