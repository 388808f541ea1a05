"""Query expansion and ensembles at the size of COCO's test set: what every pooling and combination costs next to the plain search.

    OMP_NUM_THREADS=2 python -m benchmarks.expansion_at_size --rounds 5 --output results/expansion-at-size.md

5,000 images, 25,010 captions with 5 expansions each, random unit vectors: an image's is random, its captions' are near it, a caption's
expansions near the caption. A member is 768 wide, a second one 1,024. Every system ranks both directions, and pools the expansions of text
queries. A system runs in a process of its own, in turns, and reports its seconds and how far its memory rose above the vectors. In round
one the scores and ranks of some queries are compared with whole rows in float64 by numpy.
Shape letters: I images, C captions, X expansions of all captions, D width; q some queries, N gallery items, v views of one query.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.conclusion import title_lines
from benchmarks.cost import measured
from eval.dataset.retrieval_set import PositivePairs
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from rerank.combine.combine import rank_ensemble
from rerank.combine.rules import Combination, Pooling
from rerank.combine.views import EnsembleMember, Pool, Views

WIDTHS, NUM_EXPANSIONS, DEPTH, NOISE = (768, 1024), 5, 10, 8.0
WEIGHT, WEIGHTS = 0.5, (0.4, 0.6)
CHECKED = 24  # queries of each direction
NEAR = 1e-6


@dataclass(frozen=True)
class System:
    """What is measured.

    Attributes:
        num_members: one or two.
        combination: of the members.
        pooling: of a caption's expansions where it asks; none: without them.
    """

    num_members: int = 1
    combination: Combination = "logits"
    pooling: Pooling | None = None

    def pools(self) -> dict[Direction, tuple[Pool | None, Pool | None]]:
        """As `rank_ensemble` takes them."""
        return {} if self.pooling is None else {"text_to_image": (Pool(self.pooling, NUM_EXPANSIONS, WEIGHT), None)}

    def weights(self) -> list[float]:
        """One for each member."""
        return list(WEIGHTS) if self.num_members > 1 else [1.0]


SYSTEMS: Mapping[str, System] = {
    "plain": System(),
    "expansions, mean": System(pooling="mean"),
    "expansions, max": System(pooling="max"),
    "expansions, log-sum-exp": System(pooling="log-sum-exp"),
    "expansions, reciprocal-rank": System(pooling="reciprocal-rank"),
    "two members, logits": System(2, "logits"),
    "two members, reciprocal-rank": System(2, "reciprocal-rank"),
}


class MadeUp:
    """A split of which caption c is true of one image; the captions lie in the order of their images."""

    def __init__(self, num_images: int, num_captions: int) -> None:
        self.image_C = np.sort(np.arange(num_captions) % num_images)
        self.num_images, self.num_captions = num_images, num_captions

    def positives(self, direction: Direction) -> PositivePairs:
        """As `eval.dataset.retrieval_set.RetrievalSet` gives them."""
        if direction == "text_to_image":
            return PositivePairs(np.arange(self.num_captions + 1), self.image_C)
        return PositivePairs(np.searchsorted(self.image_C, np.arange(self.num_images + 1)), np.arange(self.num_captions))

    def member(self, number: int, *, expanded: bool) -> EnsembleMember:
        """A model of this split, without expansions where they are not asked for."""
        generator, width = np.random.default_rng(number), WIDTHS[number]
        images_ID = _unit(generator.standard_normal((self.num_images, width), dtype=np.float32))
        captions_CD = _near(generator, images_ID, self.image_C, NOISE)
        views = Views.plain(captions_CD)
        if expanded:
            owner_X = np.repeat(np.arange(self.num_captions), NUM_EXPANSIONS)
            offsets = np.arange(self.num_captions + 1) * NUM_EXPANSIONS
            views = Views(captions_CD, _near(generator, captions_CD, owner_X, 1.0), offsets)
        return EnsembleMember(Views.plain(images_ID), views, 100.0 + 15 * number, -10.0 - 2 * number, torch.device("cpu"))


def _near(generator: np.random.Generator, centres_ND: np.ndarray, owner_M: np.ndarray, noise: float) -> np.ndarray:
    """Unit vectors, each its owner's plus noise of some length, without a second copy of them all."""
    width = centres_ND.shape[1]
    near_MD = np.empty((len(owner_M), width), dtype=np.float32)
    for start in range(0, len(owner_M), 10_000):
        chosen = centres_ND[owner_M[start : start + 10_000]]
        near_MD[start : start + 10_000] = chosen + noise / width**0.5 * generator.standard_normal(chosen.shape, dtype=np.float32)
        _unit(near_MD[start : start + 10_000])
    return near_MD


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND


@dataclass(frozen=True)
class Bounds:
    """What a score may be, float64 (q, N). Where cosines are so near that float32 may swap them, ranks have a span; cosines have none."""

    low_qN: np.ndarray
    high_qN: np.ndarray

    @classmethod
    def reciprocal_ranks(cls, scores_qN: np.ndarray) -> "Bounds":
        """1 / (60 + rank) with every score that is near counted on either side."""
        low, high = np.empty_like(scores_qN), np.empty_like(scores_qN)
        for query, scores_N in enumerate(scores_qN):
            ascending_N = np.sort(scores_N)
            low[query] = 1 / (60 + len(scores_N) - np.searchsorted(ascending_N, scores_N - NEAR))
            high[query] = 1 / (61 + len(scores_N) - np.searchsorted(ascending_N, scores_N + NEAR, side="right"))
        return cls(low, high)

    @classmethod
    def weighted(cls, parts: Sequence[tuple[float, "Bounds"]]) -> "Bounds":
        """The weighted sum of several."""
        return cls(*(np.asarray(sum(weight * getattr(part, side) for weight, part in parts)) for side in ("low_qN", "high_qN")))


class Reference:
    """Whole rows of some queries in float64."""

    def __init__(self, system: System, members: Sequence[EnsembleMember], direction: Direction, queries_q: np.ndarray) -> None:
        self._system, self._members, self._queries_q = system, members, queries_q
        self._forth = direction == "image_to_text"

    def bounds(self) -> Bounds:
        """Of the blended scores."""
        system, members, weights = self._system, self._members, self._system.weights()
        scores = [self._pooled(member) for member in members]
        if system.num_members == 1:
            return scores[0]
        if system.combination == "reciprocal-rank":
            scores = [Bounds.reciprocal_ranks(own.low_qN) for own in scores]
        else:
            weights = [weight * member.scale for weight, member in zip(weights, members, strict=True)]
        return Bounds.weighted([(weight / sum(weights), own) for weight, own in zip(weights, scores, strict=True)])

    def _pooled(self, member: EnsembleMember) -> Bounds:
        queries, gallery = (member.images, member.captions) if self._forth else (member.captions, member.images)
        items_DN = gallery.vectors_ND.T.astype(np.float64)
        plain_qN = queries.vectors_ND[self._queries_q].astype(np.float64) @ items_DN
        pooling = None if self._forth else self._system.pooling
        if pooling is None:
            return Bounds(plain_qN, plain_qN)
        further_qvD = queries.additional_XD.reshape(len(queries.vectors_ND), NUM_EXPANSIONS, -1)[self._queries_q].astype(np.float64)
        if pooling == "mean":
            own_qD = queries.vectors_ND[self._queries_q].astype(np.float64)
            mixed_qD = (1 - WEIGHT) * own_qD + WEIGHT * (own_qD + further_qvD.sum(axis=1)) / (1 + NUM_EXPANSIONS)
            mean_qN = _unit(mixed_qD) @ items_DN
            return Bounds(mean_qN, mean_qN)
        by_view = [plain_qN, *(further_qvD[:, view] @ items_DN for view in range(NUM_EXPANSIONS))]
        if pooling == "reciprocal-rank":
            ranks = [Bounds.reciprocal_ranks(scores_qN) for scores_qN in by_view]
            return Bounds.weighted([(1 - WEIGHT, ranks[0]), *((WEIGHT / len(ranks), one) for one in ranks)])
        best_qN = np.max(by_view, axis=0)
        if pooling == "log-sum-exp":
            best_qN += np.log(np.mean([np.exp(member.scale * (scores_qN - best_qN)) for scores_qN in by_view], axis=0)) / member.scale
        pooled_qN = (1 - WEIGHT) * plain_qN + WEIGHT * best_qN
        return Bounds(pooled_qN, pooled_qN)


def largest_difference(found: Ranking, bounds: Bounds, queries_q: np.ndarray) -> float:
    """How far a score lies outside its bounds; raises where a rank does.

    Raises:
        SystemExit: a relevant item has a rank that no reading of near scores explains.
    """
    items_qK = found.top_indices_QK[queries_q]
    scores_qK = found.top_scores_QK[queries_q].astype(np.float64)
    low_qK, high_qK = (np.take_along_axis(bound, items_qK, axis=1) for bound in (bounds.low_qN, bounds.high_qN))
    for row, query in enumerate(queries_q.tolist()):
        span = slice(found.positive_offsets[query], found.positive_offsets[query + 1])
        for item, rank in zip(found.positive_indices_P[span].tolist(), found.positive_ranks_P[span].tolist(), strict=True):
            first = 1 + (bounds.low_qN[row] > bounds.high_qN[row, item] + NEAR).sum()
            last = (bounds.high_qN[row] >= bounds.low_qN[row, item] - NEAR).sum()
            if not first <= rank <= last:
                raise SystemExit(f"{found.direction}, query {query}, item {item}: rank {rank}, expected {first} to {last}")
    return float(np.maximum(np.maximum(low_qK - scores_qK, scores_qK - high_qK), 0).max())


def run_system(name: str, size: tuple[int, int], *, check: bool) -> dict[str, Any]:
    """One system in this process: {"seconds", "processor", "megabytes"}, and with `check` the largest "difference" of a score."""
    system, dataset = SYSTEMS[name], MadeUp(*size)
    members = [dataset.member(number, expanded=system.pooling is not None) for number in range(system.num_members)]
    warm = torch.ones(512, 512)
    torch.topk(warm @ warm, 3)  # what torch loads on its first call is nobody's memory

    def work() -> dict[Direction, Ranking]:
        return rank_ensemble(
            members,
            dataset,  # type: ignore[arg-type]  # of a set only its true pairs are asked for
            weights=system.weights(),
            combination=system.combination,
            pools=system.pools(),
            depth=DEPTH,
        )

    found, cost = measured(work)
    differences = []
    for direction in DIRECTIONS if check else ():
        num_queries = found[direction].num_queries
        queries_q = np.unique(np.linspace(0, num_queries - 1, CHECKED).astype(np.int64))
        differences.append(largest_difference(found[direction], Reference(system, members, direction, queries_q).bounds(), queries_q))
    return cost | ({"difference": max(differences)} if check else {})


def child(name: str, size: tuple[int, int], *, check: bool) -> dict[str, Any]:
    """One system in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.expansion_at_size", "--system", name, "--size", *map(str, size)]
    done = subprocess.run([*command, *(["--check"] if check else [])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(name, f"{result['seconds']:.1f} s, {result['megabytes']:.0f} MB", flush=True)
    return result


def table(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> list[str]:
    """A line for each system; seconds and ratios are medians over rounds, with the least and the most."""
    lines = [
        "| system | seconds | times the plain search | MB beyond the vectors | largest difference of a score |",
        "|---|---|---|---|---|",
    ]
    for name in rounds[0]:
        seconds = [one[name]["seconds"] for one in rounds]
        ratios = [one[name]["seconds"] / one["plain"]["seconds"] for one in rounds]
        megabytes = max(one[name]["megabytes"] for one in rounds)
        lines.append(f"| {name} | {_spread(seconds, 1)} | {_spread(ratios, 2)} | {megabytes:.0f} | {rounds[0][name]['difference']:.1e} |")
    return lines


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def heading(size: tuple[int, int], num_rounds: int) -> list[str]:
    """Title, command, machine, and what is held next to the scores."""
    num_images, num_captions = size
    return [
        *title_lines("expansion-at-size", "Query expansion and ensembles at size"),
        f"`python -m benchmarks.expansion_at_size {' '.join(sys.argv[1:])}`; {num_images:,} images, {num_captions:,} captions with"
        f" {NUM_EXPANSIONS} expansions each, random unit vectors, D = {WIDTHS[0]} (a second member: {WIDTHS[1]}), both directions, torch"
        f" {torch.__version__}, {torch.get_num_threads()} thread(s) of a shared machine: read the ratios. Medians over {num_rounds} rounds"
        " (least to most); a ratio is to the plain search of the same round.",
        f"The whole matrix of scores would be {4e-6 * num_images * num_captions:,.0f} MB, that of all views"
        f" {4e-6 * num_images * num_captions * (1 + NUM_EXPANSIONS):,.0f} MB. Scores of {CHECKED} queries of each direction were held"
        " against numpy in float64.",
        "",
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(5000, 25_010), metavar=("IMAGES", "CAPTIONS"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--system", choices=tuple(SYSTEMS), help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    size = asked.size[0], asked.size[1]
    if asked.system:
        print(json.dumps(run_system(asked.system, size, check=asked.check)))
        return
    rounds = [{name: child(name, size, check=number == 0) for name in SYSTEMS} for number in range(asked.rounds)]
    text = "\n".join([*heading(size, asked.rounds), *table(rounds)]) + "\n"
    print(text)
    if asked.output is not None:
        asked.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
