"""Captions as BLIP reads them: the original's cleaning, token ids with or without [ENC], and batches that waste little padding.

Shape letters: C captions of a batch, L its longest caption in tokens.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

MAX_WORDS = 30
MAX_TOKENS = 35
_PUNCTUATION = re.compile(r'[.!"()*#:;~]')


def clean_caption(caption: str, *, max_words: int = MAX_WORDS) -> str:
    """The caption as BLIP was trained and evaluated on it: lower case, `.!"()*#:;~` to blanks, blanks collapsed, at most `max_words`.

    Source: Salesforce BLIP, data/utils.py, `pre_caption`; a rewrite, not a copy (any white space counts as a blank here).
    """
    return " ".join(_PUNCTUATION.sub(" ", caption.lower()).split()[:max_words])


def token_ids(tokenizer: Any, captions: Sequence[str], *, enc_token_id: int | None, max_tokens: int) -> list[tuple[int, ...]]:
    """Token ids of each caption, cut to `max_tokens`, the first one replaced by `enc_token_id` unless that is None."""
    encoded = tokenizer(list(captions), truncation=True, max_length=max_tokens, padding=False, return_token_type_ids=False)["input_ids"]
    if enc_token_id is None:
        return [tuple(ids) for ids in encoded]
    return [(enc_token_id, *ids[1:]) for ids in encoded]


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


def caption_batches(ids: Sequence[tuple[int, ...]], chunk_size: int, pad_token_id: int) -> Iterator[CaptionBatch]:
    """All captions in batches of `chunk_size`, shortest first, so that captions of like length share a batch.

    The order depends on lengths and positions alone: the same captions always meet in the same batches.
    """
    by_length = sorted(range(len(ids)), key=lambda position: len(ids[position]))
    for start in range(0, len(ids), chunk_size):
        positions = by_length[start : start + chunk_size]
        longest = max(len(ids[position]) for position in positions)
        rows = [list(ids[position]) + [pad_token_id] * (longest - len(ids[position])) for position in positions]
        masks = [[1] * len(ids[position]) + [0] * (longest - len(ids[position])) for position in positions]
        yield CaptionBatch(np.asarray(positions), torch.tensor(rows), torch.tensor(masks))
