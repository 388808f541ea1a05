"""A small set with real pictures and a first stage, re-ordered by random pair scores: for what looks at reranked arms."""

from pathlib import Path

import numpy as np
from PIL import Image

from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage
from eval.search.ranking import DIRECTIONS, Direction, Ranking
from eval.search.stage import Stage
from rerank.reorder.reorder import rerank
from rerank.scoring.candidates import CandidateLists, candidate_lists
from rerank.scoring.pair_scores import PairScores, ScoringCost
from tests.unit.eval.one_direction import search

TOP_K = 6


def picture_set(folder: Path, num_images: int = 24, side: int = 200) -> RetrievalSet:
    """Pictures of noise with 1 to 3 captions each; image 1 says nearly what image 0 says; columns `kind` (text) and `size` (number)."""
    images, rng = [], np.random.default_rng(0)
    for number in range(num_images):
        path = folder / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, (side, side // 2, 3), dtype=np.uint8)).save(path)
        captions = [f"{'a thing ' * (number % 5)}numbered {number} {place}" for place in range(1 + number % 3)]
        captions[0] = {0: "a dog runs", 1: "the dog runs"}.get(number, captions[0])
        columns = {"kind": ["odd" if number % 2 else "even"] * len(captions), "size": [str(number)] * len(captions)}
        images.append(ManifestImage(f"i{number:02d}", "test", path, None, 1, None, captions, "here", columns))
    return RetrievalSet(images, None, source="made", split="test")


def first_stage(dataset: RetrievalSet, name: str = "base", noise: float = 0.8, depth: int = 10, seed: int = 1) -> Stage:
    """Noisy embeddings, searched."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(dataset.num_images, 8))
    captions = images[dataset.caption_image_C] + noise * rng.normal(size=(dataset.num_captions, 8))
    images, captions = (np.float32(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (images, captions))
    sides = {"image_to_text": (images, captions), "text_to_image": (captions, images)}
    return Stage(name, {d: search(d, *sides[d], dataset.positives(d), depth) for d in DIRECTIONS}, {"seconds": 1.0})


def pair_scores(lists: CandidateLists, dataset: RetrievalSet, seed: int) -> PairScores:
    """Random ones; a right caption is likelier to score high."""
    own_N = dataset.caption_image_C[lists.caption_indices_N] == lists.image_of_pair_N
    scores_N = np.random.default_rng(seed).normal(size=lists.num_pairs) + own_N
    return PairScores(lists, scores_N.astype(np.float32), ScoringCost(lists.num_pairs, lists.num_images, 0.0))


def reranked(dataset: RetrievalSet, first: Stage, top_k: int = TOP_K, seed: int = 2) -> Stage:
    """The twin of a first stage."""
    scores = pair_scores(candidate_lists(first.rankings.values(), top_k), dataset, seed)

    def at(k: int) -> dict[Direction, Ranking]:
        return {d: rerank(first.rankings[d], scores, k) for d in DIRECTIONS}

    sweep = {k: {d: ranking.best_ranks() for d, ranking in at(k).items()} for k in range(1, top_k + 1)}
    return Stage(f"{first.name}+blip", at(top_k), {"pairs_scored": 7, "top_k": top_k}, first.name, top_k, sweep)
