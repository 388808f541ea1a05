"""Small sets of captions and images without pictures, models that see them through noise, and ranks by a dense float64 matrix."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage
from eval.search.ranking import DIRECTIONS, Direction
from rerank.combine.views import EnsembleMember, LateFusion, Pool, Views

Scores = Mapping[Direction, np.ndarray]
ALONE = LateFusion("logits", (1.0,))
"""Of one member."""


def caption_set(num_images: int, split: str = "val", text: str = "numbered") -> RetrievalSet:
    """1 to 3 captions each, all different."""
    images = [
        ManifestImage(f"i{number:02d}", split, None, None, 1, None, [f"{text} {number} {place}" for place in range(1 + number % 3)], "here")
        for number in range(num_images)
    ]
    return RetrievalSet(images, None, source="made", split=split)


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


def true_vectors(dataset: RetrievalSet, seed: int = 0) -> np.ndarray:
    """The vector of each image without noise: float64, 8 wide."""
    return np.random.default_rng(seed).normal(size=(dataset.num_images, 8))


def member(
    dataset: RetrievalSet, seed: int, noise: float = 0.9, views: int = 0, view_noise: float = 0.9, side: str = "captions"
) -> EnsembleMember:
    """A model that sees images and captions through noise of its own.

    Args:
        views: the item n of the side has n modulo (views + 1) additional views, each seen through noise of its own.
    """
    rng, truth = np.random.default_rng(seed), true_vectors(dataset)
    images, captions = truth, truth[dataset.caption_image_C]
    seen = [unit(side + noise * rng.normal(size=side.shape)) for side in (images, captions)]
    items = captions if side == "captions" else images
    counts = np.arange(len(items)) % (views + 1)
    of_view = np.repeat(np.arange(len(items)), counts)
    additional = unit(items[of_view] + view_noise * rng.normal(size=(len(of_view), 8))) if len(of_view) else np.zeros((0, 8), np.float32)
    offsets = np.append(0, np.cumsum(counts)).astype(np.int64)
    plain = [Views.plain(vectors) for vectors in seen]
    with_views = Views(seen[side == "captions"], additional, offsets)
    made = (plain[0], with_views) if side == "captions" else (with_views, plain[1])
    return EnsembleMember(*made, scale=20.0 + seed, bias=-5.0, device=torch.device("cpu"))


def best_ranks(dataset: RetrievalSet, scores: np.ndarray, direction: Direction) -> np.ndarray:
    """Rank of each query's best relevant item, one query at a time, equal scores by index; `scores` by query and item."""
    positives, ranks = dataset.positives(direction), []
    for query, row in enumerate(scores):
        order = sorted(range(len(row)), key=lambda item: (-row[item], item))
        ranks.append(1 + min(order.index(item) for item in positives.of(query).tolist()))
    return np.array(ranks)


def cosines(one: EnsembleMember) -> Scores:
    """Plain cosines of every query with every item, float64."""
    cosines_IC = one.images.vectors_ND.astype(np.float64) @ one.captions.vectors_ND.T.astype(np.float64)
    return {"image_to_text": cosines_IC, "text_to_image": cosines_IC.T}


def combined(members: Sequence[EnsembleMember], weights: Sequence[float], combination: str) -> Scores:
    """The combined score of every query with every item, as rerank/combine/views.py states it."""
    found: dict[Direction, np.ndarray] = {}
    for direction in DIRECTIONS:
        parts = []
        for one, weight in zip(members, weights, strict=True):
            plain = cosines(one)[direction]
            part = one.scale * plain + one.bias if combination == "logits" else 1 / (60 + ranks_of(plain))
            parts.append(weight * part)
        found[direction] = np.sum(parts, axis=0)
    return found


def ranks_of(scores: np.ndarray) -> np.ndarray:
    """The rank of every item for every query, from 1; equal scores by index."""
    return np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) + 1


def pooled(asks: Views, others_ND: np.ndarray, pool: Pool | None, scale: float, only: int | None = None) -> np.ndarray:
    """Score of every item that asks with every other, one item at a time.

    Args:
        only: the number (from 0) of the one additional view that may join; None: the first `pool.number`.
    """
    rows = []
    for item, vector in enumerate(asks.vectors_ND.astype(np.float64)):
        additional = asks.additional_XD[asks.offsets[item] : asks.offsets[item + 1]].astype(np.float64)
        used = additional[: pool.number if pool else 0] if only is None else additional[only : only + 1]
        views = np.concatenate([vector[None], used])
        s = views @ others_ND.T.astype(np.float64)
        if pool is None or not len(used):
            rows.append(s[0] if pool is None or pool.pooling != "reciprocal-rank" else 1 / (60 + ranks_of(s[:1])[0]))
            continue
        match pool.pooling:
            case "mean":
                joined = (1 - pool.weight) * vector + pool.weight * views.mean(axis=0)
                rows.append(joined / np.linalg.norm(joined) @ others_ND.T.astype(np.float64))
            case "max":
                rows.append((1 - pool.weight) * s[0] + pool.weight * s.max(axis=0))
            case "log-sum-exp":
                rows.append((1 - pool.weight) * s[0] + pool.weight * np.log(np.mean(np.exp(scale * s), axis=0)) / scale)
            case _:
                shares = 1 / (60 + ranks_of(s))
                rows.append((1 - pool.weight) * shares[0] + pool.weight * shares.mean(axis=0))
    return np.array(rows)
