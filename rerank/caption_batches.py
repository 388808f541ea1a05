"""Captions in batches padded to the longest, for models that read them so.

Shape letters: C captions of a batch, L its longest caption in tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class CaptionBatch:
    """Some captions of one image, padded to the longest among them.

    Attributes:
        positions_C: int64, which of the captions these are.
        input_ids_CL: int64.
        attention_mask_CL: int64, 1 for tokens and 0 for padding.
    """

    positions_C: np.ndarray
    input_ids_CL: torch.Tensor
    attention_mask_CL: torch.Tensor


def positions_by_length(ids: Sequence[tuple[int, ...]], chunk_size: int) -> Iterator[list[int]]:
    """Positions of all captions, `chunk_size` at a time, shortest first, so that captions of like length come together.

    The order depends on lengths and positions alone: the same captions always meet in the same company.
    """
    by_length = sorted(range(len(ids)), key=lambda position: len(ids[position]))
    for start in range(0, len(ids), chunk_size):
        yield by_length[start : start + chunk_size]


def caption_batches(ids: Sequence[tuple[int, ...]], chunk_size: int, pad_token_id: int) -> Iterator[CaptionBatch]:
    """All captions in batches of `chunk_size`, in the company that `positions_by_length` gives them."""
    for positions in positions_by_length(ids, chunk_size):
        longest = max(len(ids[position]) for position in positions)
        rows = [list(ids[position]) + [pad_token_id] * (longest - len(ids[position])) for position in positions]
        masks = [[1] * len(ids[position]) + [0] * (longest - len(ids[position])) for position in positions]
        yield CaptionBatch(np.asarray(positions), torch.tensor(rows), torch.tensor(masks))
