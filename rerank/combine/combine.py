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
from rerank.combine.ensemble import mean_of_members
from rerank.combine.pooled_tiles import DirectedMember, PooledSide
from rerank.combine.views import Combination, EnsembleMember, Pool, Views, combination_fault

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
        pools: how views count, by direction: (of the queries, of the gallery). A direction left out has none.
        depth: length of each query's top list.
        directions: those that are ranked.

    Raises:
        UserError: weights or members that do not fit, a vector that is not finite, a pooling where it has no meaning.
    """
    if fault := combination_fault(combination):
        raise UserError(f"combination: {fault}")
    members, weights = active_members(members, weights)
    to_text, to_image = dataset.positives("image_to_text"), dataset.positives("text_to_image")
    _check_members(members, len(to_text.counts), len(to_image.counts))
    for direction in DIRECTIONS:
        _check_pools(direction, pools.get(direction, _NO_POOLS), len(members), combination)
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

    Raises:
        UserError: no member, another number of weights than of members, a weight below 0 or not finite, or only weights of 0.
    """
    given = [1.0] * len(members) if weights is None else list(weights)
    if not members or len(given) != len(members):
        raise UserError(f"ensemble: expected one member or more and a weight for each; found {len(members)} and {len(given)}")
    if bad := [weight for weight in given if not 0 <= weight < float("inf")]:
        raise UserError(f"ensemble: a weight is a number of 0 or more; found {bad[0]:g}")
    if not any(given):
        raise UserError("ensemble: every weight is 0; give one member a weight above 0")
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
        if key not in known:
            known[key] = PooledSide.of(views, used)
        return known[key]

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


def _check_members(members: Sequence[EnsembleMember], num_images: int, num_captions: int) -> None:
    for number, member in enumerate(members, 1):
        found = len(member.images.vectors_ND), len(member.captions.vectors_ND)
        if found != (num_images, num_captions):
            raise UserError(
                f"ensemble, member {number}: expected vectors of {num_images} images and {num_captions} captions, as the data set has;"
                f" found {found[0]} and {found[1]}. Embed the same split with every member"
            )
        widths = member.images.vectors_ND.shape[1], member.captions.vectors_ND.shape[1]
        if widths[0] != widths[1]:
            raise UserError(f"ensemble, member {number}: its images and captions differ in width, {widths[0]} and {widths[1]}")
        if not 0 < member.scale < float("inf") or not np.isfinite(member.bias):
            raise UserError(f"ensemble, member {number}: expected a scale above 0 and a bias; found {member.scale:g} and {member.bias:g}")
        for noun, views in (("image", member.images), ("caption", member.captions)):
            search.check_finite(noun, views.vectors_ND)
            search.check_finite(f"additional {noun}", views.additional_XD)


def _check_pools(direction: Direction, pools: Pools, num_members: int, combination: Combination) -> None:
    of_queries, of_gallery = (pool is not None and pool.pooling == "reciprocal-rank" and pool.weight * pool.number > 0 for pool in pools)
    if of_gallery:
        raise UserError(
            f"pooling reciprocal-rank, {direction}: a rank is a position in a gallery, so only views of queries have one;"
            " pool the views of the gallery by mean, max or log-sum-exp"
        )
    if of_queries and num_members > 1 and combination != "reciprocal-rank":
        raise UserError(
            f"pooling reciprocal-rank, {direction}: with {num_members} members it leaves ranks and no cosines to combine by {combination};"
            " combine them by reciprocal-rank too, or pool by mean, max or log-sum-exp"
        )
