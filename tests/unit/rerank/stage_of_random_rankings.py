"""A first stage that ranks at random."""

import numpy as np

from eval.search.ranking import DIRECTIONS, Direction, Ranking
from eval.search.stage import Stage


def random_stage(name: str, seed: int, num_images: int, num_captions: int) -> Stage:
    """Random rankings, whole galleries deep, with one positive per query."""
    rng = np.random.default_rng(seed)

    def ranking(direction: Direction, num_queries: int, num_items: int) -> Ranking:
        top_QK = np.array([rng.permutation(num_items) for _ in range(num_queries)])
        positives_P = rng.integers(0, num_items, num_queries)
        ranks_P = np.array([top.tolist().index(item) + 1 for top, item in zip(top_QK, positives_P, strict=True)])
        scores_QK = np.tile(np.linspace(1, 0, num_items, dtype=np.float32), (num_queries, 1))
        return Ranking(direction, top_QK, scores_QK, np.arange(num_queries + 1), positives_P, ranks_P)

    shapes = {"image_to_text": (num_images, num_captions), "text_to_image": (num_captions, num_images)}
    rankings = {direction: ranking(direction, *shapes[direction]) for direction in DIRECTIONS}
    return Stage(name, rankings, {"seconds": 1000.0, "pairs_scored": 0})
