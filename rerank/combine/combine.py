"""Several models, and several views of what they embed, ranked as one: exactly, and tile by tile, never the whole matrix of scores.

With s_m a member's pooled cosine (rerank/combine/views.py) and w_m its weight, weights summing to 1:

    logits           sum of w_m (scale_m s_m + bias_m)
    standardised     sum of w_m s_m / unit_m, unit_m the deviation of the member's plain cosines within a query, pooled over queries
    probabilities    sum of w_m sigmoid(scale_m s_m + bias_m)
    reciprocal-rank  sum of w_m / (60 + rank_m), the rank from 1 by s_m (Cormack, Clarke, Buettcher 2009, SIGIR)

The first two are, but for a constant that orders nothing and a factor, weighted means of cosines, the weights being w_m scale_m and
w_m / unit_m over their sum. Such means are the scores kept, so that margins mean what they mean for one model. The unit is that of
rerank/reorder/fusion.py over the whole gallery. It needs no matrix: the variance of a query's scores is q' S q, S the gallery's covariance.

Shape letters: N items, D width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.processes import Processes
from eval.search import exact as search
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from rerank.combine.combined_tiles import Asking, RankedRows, SummedTiles
from rerank.combine.views import COMBINATIONS, Combination, Member, Pool, Views

Pools = tuple[Pool | None, Pool | None]

_NO_POOLS: Pools = (None, None)
_LEAST_UNIT = 1e-9  # below the last bit of a cosine in float32: there a member says the same of everything
_MULTIPLIED_AT_ONCE = 1024


def rank_ensemble(
    members: Sequence[Member],
    dataset: RetrievalSet,
    *,
    weights: Sequence[float] | None = None,
    combination: Combination = "logits",
    pools: Mapping[Direction, Pools] = {},
    depth: int,
    directions: Sequence[Direction] = DIRECTIONS,
    processes: Processes = Processes(),
) -> dict[Direction, Ranking]:
    """Exact ranks of every positive and the best of every query by the blended score.

    One member without pools gives the bits of `eval.search.exact.search_both`. A member of weight 0 is left out, and one that is left alone
    ranks by its own pooled score, whatever the combination.

    Args:
        members: models that embed the same images and captions; widths may differ.
        weights: one for each member, 0 or more; only their ratios count. None: equal ones.
        pools: how views count, by direction: (of the side that asks, of the side that is ranked). A direction left out has none.
        depth: how many of the best to keep.
        directions: those that are ranked.

    Raises:
        UserError: weights or members that do not fit, a vector that is not finite, a pooling where it has no meaning.
    """
    if combination not in COMBINATIONS:
        raise UserError(f"combination: expected one of {', '.join(COMBINATIONS)}; found {combination!r}")
    members, shares = _participants(members, weights)
    to_text, to_image = dataset.positives("image_to_text"), dataset.positives("text_to_image")
    _check_members(members, len(to_text.counts), len(to_image.counts))
    for direction in DIRECTIONS:
        _check_pools(direction, pools.get(direction, _NO_POOLS), len(members), combination)
    sides = _Sides()
    asking = {
        direction: [sides.asking(member, direction, pools.get(direction, _NO_POOLS)) for member in members] for direction in directions
    }
    scaled = {direction: _scaled(members, shares, combination, direction) for direction in directions}
    if len(directions) == 2:
        product = _product(asking["image_to_text"], scaled["image_to_text"], combination)
        if isinstance(product, SummedTiles) and scaled["image_to_text"] == scaled["text_to_image"] and _mirrored(asking):
            return search.rank_product_both(product, to_text, to_image, depth, processes)
        del product  # its buffers go before those of another direction come
    found: dict[Direction, Ranking] = {}
    for direction in directions:
        product = _product(asking[direction], scaled[direction], combination)
        positives = to_text if direction == "image_to_text" else to_image
        found[direction] = search.rank_product(direction, product, positives, depth, processes)
        del product
    return found


def within_query_deviation(member: Member, direction: Direction) -> float:
    """Deviation of a member's plain cosines within a query over the whole gallery, pooled over queries; 0 where each query's are equal.

    Worked out in float64 from the moments of the vectors, at a cost of N x D x D and no matrix of scores.
    """
    queries, gallery = _sides_of(member, direction)
    mean_D = gallery.vectors_ND.mean(axis=0, dtype=np.float64)
    covariance_DD = _second_moment(gallery.vectors_ND, mean_D)
    queries_DD = _second_moment(queries.vectors_ND, np.zeros_like(mean_D))
    deviation = float(max(0.0, (covariance_DD * queries_DD).sum())) ** 0.5
    return deviation if deviation > _LEAST_UNIT else 0.0


def _second_moment(vectors_ND: np.ndarray, centre_D: np.ndarray) -> np.ndarray:
    """Mean of (v - centre)(v - centre)', float64 of shape (D, D), on buffers of one shape, so that the bits are any process's."""
    width = vectors_ND.shape[1]
    sum_DD, block_nD = torch.zeros(width, width, dtype=torch.float64), torch.empty(_MULTIPLIED_AT_ONCE, width, dtype=torch.float64)
    for start in range(0, len(vectors_ND), _MULTIPLIED_AT_ONCE):
        some = vectors_ND[start : start + _MULTIPLIED_AT_ONCE]
        block_nD.zero_()
        block_nD[: len(some)] = torch.from_numpy(some - centre_D)
        sum_DD.addmm_(block_nD.T, block_nD)
    return (sum_DD / len(vectors_ND)).numpy()


def _participants(members: Sequence[Member], weights: Sequence[float] | None) -> tuple[list[Member], list[float]]:
    """The members that have a say, and their shares of it, which sum to 1."""
    given = [1.0] * len(members) if weights is None else list(weights)
    if not members or len(given) != len(members):
        raise UserError(f"ensemble: expected one member or more and a weight for each; found {len(members)} and {len(given)}")
    if bad := [weight for weight in given if not 0 <= weight < float("inf")]:
        raise UserError(f"ensemble: a weight is a number of 0 or more; found {bad[0]:g}")
    if not any(given):
        raise UserError("ensemble: every weight is 0; give one member a say")
    kept = [(member, weight) for member, weight in zip(members, given, strict=True) if weight]
    return [member for member, _ in kept], _normalised([weight for _, weight in kept])


def _normalised(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights]


def _scaled(members: Sequence[Member], shares: Sequence[float], combination: Combination, direction: Direction) -> list[float]:
    """By what the members' scores are multiplied before they are summed."""
    if len(members) == 1 or combination in ("probabilities", "reciprocal-rank"):
        return list(shares)
    if combination == "logits":
        return _normalised([share * member.scale for share, member in zip(shares, members, strict=True)])
    units = [within_query_deviation(member, direction) for member in members]
    divided = [share / unit if unit else 0.0 for share, unit in zip(shares, units, strict=True)]
    return _normalised(divided) if any(divided) else list(shares)  # where all members say the same of everything there is no order


def _sides_of(member: Member, direction: Direction) -> tuple[Views, Views]:
    """(side that asks, side that is ranked)."""
    return (member.images, member.captions) if direction == "image_to_text" else (member.captions, member.images)


class _Sides:
    """The sides of members with their pools; what is worked out once, such as mean vectors, serves both directions."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, Pool | None], tuple[Views, Pool | None]] = {}

    def asking(self, member: Member, direction: Direction, pools: Pools) -> Asking:
        """One member in one direction."""
        views = _sides_of(member, direction)
        (queries, asks), (gallery, ranked) = (self._side(side, pool) for side, pool in zip(views, pools, strict=True))
        return Asking(queries, gallery, (asks, ranked), member.scale, member.bias, member.device)

    def _side(self, views: Views, pool: Pool | None) -> tuple[Views, Pool | None]:
        """Views and the pool that is left: a mean is a vector like any other, and a pool that changes nothing is none."""
        key = id(views), pool
        if key not in self._known:
            if pool is None or not pool.changes(views):
                self._known[key] = views, None
            elif pool.pooling == "mean":
                self._known[key] = Views.plain(views.mean(pool.number, pool.weight)), None
            else:
                self._known[key] = views, pool
        return self._known[key]


def _mirrored(asking: Mapping[Direction, Sequence[Asking]]) -> bool:
    """Whether the scores of text to image are those of image to text turned over. Where both sides pool, it matters which does first."""
    return all(
        forth.queries is back.gallery and forth.gallery is back.queries and forth.pools == back.pools[::-1] and None in forth.pools
        for forth, back in zip(*(asking[direction] for direction in DIRECTIONS), strict=True)
    )


def _product(asking: Sequence[Asking], scaled: Sequence[float], combination: Combination) -> SummedTiles | RankedRows:
    several = len(asking) > 1
    by_rank = any(one.pools[0] is not None and one.pools[0].pooling == "reciprocal-rank" for one in asking)
    if by_rank or (several and combination == "reciprocal-rank"):
        return RankedRows(asking, scaled, column_block=search.GALLERY_BLOCK)
    shape = search.QUERY_BLOCK, search.GALLERY_BLOCK
    return SummedTiles(asking, scaled, probabilities=several and combination == "probabilities", shape=shape)


def _check_members(members: Sequence[Member], num_images: int, num_captions: int) -> None:
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
            search.check_finite(f"further {noun}", views.further_XD)


def _check_pools(direction: Direction, pools: Pools, num_members: int, combination: Combination) -> None:
    asks, ranked = (pool is not None and pool.pooling == "reciprocal-rank" and pool.weight * pool.number > 0 for pool in pools)
    if ranked:
        raise UserError(
            f"pooling reciprocal-rank, {direction}: a rank is a place in a gallery, so only views of the side that asks have one;"
            " pool the views of the side that is ranked by mean, max or log-sum-exp"
        )
    if asks and num_members > 1 and combination != "reciprocal-rank":
        raise UserError(
            f"pooling reciprocal-rank, {direction}: with {num_members} members it leaves ranks and no cosines to combine by {combination};"
            " combine them by reciprocal-rank too, or pool by mean, max or log-sum-exp"
        )
