"""Captions as BLIP reads them: the original's cleaning, and tokens packed without padding.

Shape letters: C captions packed together, P tokens of them all, L their longest in tokens.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rerank.scorers.base import positions_by_length

MAX_WORDS = 30
_PUNCTUATION = re.compile(r'[.!"()*#:;~]')


def clean_caption(caption: str, *, max_words: int = MAX_WORDS) -> str:
    """The caption as BLIP was trained and evaluated on it: lower case, `.!"()*#:;~` to blanks, blanks collapsed, at most `max_words`.

    Source: Salesforce BLIP, data/utils.py, `pre_caption`; a rewrite, not a copy (any white space counts as a blank here).
    """
    return " ".join(_PUNCTUATION.sub(" ", caption.lower()).split()[:max_words])


@dataclass(frozen=True)
class PackedCaptions:
    """Some captions of one image, their tokens one after another without padding, and the indices to pad and unpad them.

    Attributes:
        places_C: int64 (numpy), which of the captions these are.
        ids_P, positions_P: int64, each token and its place in its caption.
        rows_P: int64, the caption of each token, from 0.
        starts_C: int64, where each caption begins in the packed tokens.
        index_CL: int64, the packed place of each token of the padded form; 0 where that is padding.
        mask_C11L: bool, True for tokens; None where nothing is padding.
    """

    places_C: np.ndarray
    ids_P: torch.Tensor
    positions_P: torch.Tensor
    rows_P: torch.Tensor
    starts_C: torch.Tensor
    index_CL: torch.Tensor
    mask_C11L: torch.Tensor | None

    @classmethod
    def of(cls, places: Sequence[int], ids: Sequence[tuple[int, ...]], device: torch.device) -> "PackedCaptions":
        """Pack the captions `ids`, which are the `places` of a longer list."""
        lengths_C = np.array([len(caption) for caption in ids])
        starts_C = np.cumsum(lengths_C) - lengths_C
        columns_L = np.arange(lengths_C.max())
        real_CL = columns_L < lengths_C[:, None]
        rows_P, positions_P = np.nonzero(real_CL)
        index_CL = np.where(real_CL, starts_C[:, None] + columns_L, 0)

        def on_device(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        return cls(
            np.asarray(places),
            on_device(np.array([token for caption in ids for token in caption])),
            on_device(positions_P),
            on_device(rows_P),
            on_device(starts_C),
            on_device(index_CL),
            None if real_CL.all() else on_device(real_CL[:, None, None]),
        )


def packed_captions(ids: Sequence[tuple[int, ...]], chunk_size: int, device: torch.device) -> Iterator[PackedCaptions]:
    """All captions, packed in the groups of `positions_by_length`."""
    for places in positions_by_length(ids, chunk_size):
        yield PackedCaptions.of(places, [ids[place] for place in places], device)
