"""Recall of a score matrix, for the progress lines of the pre-training scripts only."""

import torch


def mean_recall_at_1(scores_NN: torch.Tensor) -> float:
    """Share of rows and of columns whose largest score lies on the diagonal, mean of the two; float32 scores_NN."""
    right_N = torch.arange(len(scores_NN))
    rows = (scores_NN.argmax(dim=1) == right_N).float().mean()
    columns = (scores_NN.argmax(dim=0) == right_N).float().mean()
    return float((rows + columns) / 2)
