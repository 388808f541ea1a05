"""Captions as BLIP reads them: the original's cleaning, and tokens packed without padding.

Shape letters: C captions packed together, P tokens of them all, L their longest in tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from eval.processes import sent

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
        ids_P, positions_P: int64, each token and its place in its caption.
        rows_P: int64, the caption of each token, from 0.
        starts_C: int64, where each caption begins in the packed tokens.
        index_CL: int64, the packed place of each token of the padded form; 0 where that is padding.
        mask_C11L: bool, True for tokens; None where nothing is padding.
    """

    ids_P: torch.Tensor
    positions_P: torch.Tensor
    rows_P: torch.Tensor
    starts_C: torch.Tensor
    index_CL: torch.Tensor
    mask_C11L: torch.Tensor | None

    @classmethod
    def of(cls, ids: Sequence[tuple[int, ...]], device: torch.device) -> "PackedCaptions":
        """Pack captions, given by their token ids; they go to a device in one copy."""
        lengths_C = np.array([len(caption) for caption in ids])
        starts_C = np.cumsum(lengths_C) - lengths_C
        columns_L = np.arange(lengths_C.max())
        real_CL = columns_L < lengths_C[:, None]
        rows_P, positions_P = np.nonzero(real_CL)
        index_CL = np.where(real_CL, starts_C[:, None] + columns_L, 0)
        ids_P = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=len(rows_P))
        arrays = (ids_P, positions_P, rows_P, starts_C, index_CL.ravel())
        packed = sent(torch.from_numpy(np.concatenate(arrays)), device).split([len(array) for array in arrays])
        tokens, positions, rows, starts, index = packed
        mask_C11L = None if real_CL.all() else sent(torch.from_numpy(real_CL[:, None, None]), device)
        return cls(tokens, positions, rows, starts, index.view(index_CL.shape), mask_C11L)
