"""One direction of a search by cosine: the tiles of the evaluation, ranked for one side's queries."""

import numpy as np
import torch

from eval.dataset.retrieval_set import PositivePairs
from eval.processes import Processes
from eval.search.exact import CosineTiles, rank_product
from eval.search.ranking import Direction, Ranking


def search(
    direction: Direction, queries: np.ndarray, gallery: np.ndarray, positives: PositivePairs, depth: int, processes: Processes = Processes()
) -> Ranking:
    return rank_product(direction, CosineTiles(queries, gallery, torch.device("cpu")), positives, depth, processes)
