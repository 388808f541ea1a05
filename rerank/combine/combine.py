"""Late fusion of several models, and of several views of what they embed: exact ranks, tile by tile, without the matrix of all scores.

With s_m a member's pooled cosine (rerank/combine/views.py) and w_m its weight, weights summing to 1:

    logits           sum of w_m (scale_m s_m + bias_m)
    reciprocal-rank  sum of w_m / (60 + rank_m), the rank from 1 by s_m (Cormack, Clarke, Buettcher 2009, SIGIR)

The first is, but for a constant and a factor, which change no order, a weighted mean of cosines, the weights being w_m scale_m over their
sum. That mean is the score of a pair, so margins have the same meaning as those of one model.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.processes import Processes
from eval.search import exact as search
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from rerank.combine.combined_tiles import RankedRows, SummedTiles
from rerank.combine.pooled_tiles import DirectedMember, PooledSide
from rerank.combine.rules import Combination
from rerank.combine.views import EnsembleMember, Pool, Views

Pools = tuple[Pool | None, Pool | None]

_NO_POOLS: Pools = (None, None)


def rank_ensemble(
    members: Sequence[EnsembleMember],
    dataset: RetrievalSet,
    *,
    weights: Sequence[float] | None = None,
    combination: Combination = "logits",
    pools: Mapping[Direction, Pools] = {},
    depth: int,
    directions: Sequence[Direction] = DIRECTIONS,
    processes: Processes = Processes(),
) -> dict[Direction, Ranking]:
    """Exact ranks of every positive and the top items of every query by the combined score.

    One member without pools gives the bits of `eval.search.exact.search_both`. A member of weight 0 is left out; a single active member
    ranks by its own pooled score, whatever the combination.

    Args:
        members: models that embed the same images and captions; widths may differ.
        weights: one for each member, 0 or more; only their ratios count. None: equal ones.
        pools: how views count, by direction: (of the queries, of the gallery). A direction left out has none. reciprocal-rank pools
            views of queries only, and combines with other members by reciprocal-rank only.
        depth: length of each query's top list.

    Raises:
        UserError: a scale is not a number above 0, or a bias is not finite.
    """
    members, weights = active_members(members, weights)
    to_text, to_image = dataset.positives("image_to_text"), dataset.positives("text_to_image")
    for number, member in enumerate(members, 1):
        if not 0 < member.scale < float("inf") or not np.isfinite(member.bias):
            raise UserError(f"ensemble, member {number}: expected a scale above 0 and a bias; found {member.scale:g} and {member.bias:g}")
    if combination == "logits":
        shares, _, _ = mean_of_members([member.scale for member in members], [member.bias for member in members], weights)
    else:
        shares = [weight / sum(weights) for weight in weights]
    directed = _directed(members, pools, directions)
    if len(directions) == 2:
        product = _product(directed["image_to_text"], shares, combination)
        if isinstance(product, SummedTiles) and _is_transposed(directed):
            return search.rank_product_both(product, to_text, to_image, depth, processes)
        del product  # frees its buffers before those of the next direction are made
    found: dict[Direction, Ranking] = {}
    for direction in directions:
        product = _product(directed[direction], shares, combination)
        positives = to_text if direction == "image_to_text" else to_image
        found[direction] = search.rank_product(direction, product, positives, depth, processes)
        del product
    return found


def active_members(members: Sequence[EnsembleMember], weights: Sequence[float] | None) -> tuple[list[EnsembleMember], list[float]]:
    """The members whose weight is above 0, and their weights.

    Args:
        weights: one for each member; None: 1 each.
    """
    given = [1.0] * len(members) if weights is None else weights
    active = [(member, weight) for member, weight in zip(members, given, strict=True) if weight]
    return [member for member, _ in active], [weight for _, weight in active]


def _directed(
    members: Sequence[EnsembleMember], pools: Mapping[Direction, Pools], directions: Sequence[Direction]
) -> dict[Direction, list[DirectedMember]]:
    """The members in each direction; a side with the same pool in both directions is made once, mean vectors included."""
    known: dict[tuple[int, Pool | None], PooledSide] = {}

    def side(views: Views, pool: Pool | None) -> PooledSide:
        used = pool if pool is not None and pool.changes(views) else None
        key = id(views), used
        if key not in known and used is not None and used.pooling == "mean":  # makes plain vectors, which need no pool
            known[key] = PooledSide(Views.plain(views.mean(used.number, used.weight)), None)
        return known.setdefault(key, PooledSide(views, used))

    def directed(member: EnsembleMember, direction: Direction) -> DirectedMember:
        sides = (member.images, member.captions) if direction == "image_to_text" else (member.captions, member.images)
        queries, gallery = (side(views, pool) for views, pool in zip(sides, pools.get(direction, _NO_POOLS), strict=True))
        return DirectedMember(queries, gallery, member.scale, member.device)

    return {direction: [directed(member, direction) for member in members] for direction in directions}


def _is_transposed(directed: Mapping[Direction, Sequence[DirectedMember]]) -> bool:
    """Whether the scores of text to image are the transpose of those of image to text.

    Where both sides pool, they are not: the pooled gallery is scored with each view of the query.
    """
    return all(
        forth.queries is back.gallery and forth.gallery is back.queries and (forth.queries.pool is None or forth.gallery.pool is None)
        for forth, back in zip(*(directed[direction] for direction in DIRECTIONS), strict=True)
    )


def _product(members: Sequence[DirectedMember], shares: Sequence[float], combination: Combination) -> SummedTiles | RankedRows:
    pools_by_rank = any(member.queries.pool is not None and member.queries.pool.pooling == "reciprocal-rank" for member in members)
    if pools_by_rank or (len(members) > 1 and combination == "reciprocal-rank"):
        return RankedRows(members, shares, column_block=search.GALLERY_BLOCK)
    return SummedTiles(members, shares, shape=(search.QUERY_BLOCK, search.GALLERY_BLOCK))


def mean_of_members(scales: Sequence[float], biases: Sequence[float], weights: Sequence[float]) -> tuple[list[float], float, float]:
    """(share of each member, scale, bias) of the mean of logits, which is scale x (sum of share x cosine) + bias; shares sum to 1.

    >>> mean_of_members([10.0, 30.0], [-5.0, -9.0], [1.0, 1.0])
    ([0.25, 0.75], 20.0, -7.0)
    """
    total = sum(weights)
    parts = [weight / total * scale for weight, scale in zip(weights, scales, strict=True)]
    scale = sum(parts)
    return [part / scale for part in parts], scale, sum(weight / total * bias for weight, bias in zip(weights, biases, strict=True))
