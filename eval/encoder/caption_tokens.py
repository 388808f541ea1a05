"""What a checkpoint's tokenizer makes of captions: which it cuts, of which it knows nothing, and which are one to the model.

Shape letters: C captions, P different pairs of tokens and text.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.encoder.inputs import SiglipInputs
from eval.processes import Processes
from eval.progress import bar

_TEXTS_AT_ONCE = 1024
_LONG = 20_000  # captions that take seconds
_CUT, _UNKNOWN = 1, 2  # bits


@dataclass(frozen=True)
class CaptionTokens:
    """Token ids of captions as the text tower reads them, by a hash.

    Attributes:
        num_tokens: that the text tower reads of a caption.
        key_C: int64; equal exactly where the token ids are.
        is_cut_C: bool; the caption is longer.
        is_unknown_C: bool; it holds nothing that the tokenizer knows: no token at all, or unknown ones and blanks alone.
    """

    num_tokens: int
    key_C: np.ndarray
    is_cut_C: np.ndarray
    is_unknown_C: np.ndarray

    @classmethod
    def of(cls, inputs: SiglipInputs, captions: Sequence[str], processes: Processes = Processes()) -> "CaptionTokens":
        """Tokenise captions; call on every process, which each take their share."""
        starts, blank, own = range(0, len(captions), _TEXTS_AT_ONCE), _blank_tokens(inputs), []
        show = processes.is_main and len(captions) >= _LONG
        with bar(len(captions) // processes.world_size, "tokenising", "caption", show=show, leave=False) as progress:
            for block in processes.share_of(len(starts)):
                own.append(_read(inputs, captions[starts[block] : starts[block] + _TEXTS_AT_ONCE], blank))
                progress.update(len(own[-1]))
        key_C, marks_C = np.concatenate(processes.gather_blocks(own, len(starts))).T if len(starts) else np.empty((2, 0), dtype=np.int64)
        return cls(inputs.num_tokens, key_C.copy(), (marks_C & _CUT) > 0, (marks_C & _UNKNOWN) > 0)


def token_key(ids: Sequence[int]) -> int:
    """Signed 64-bit hash of token ids."""
    return int.from_bytes(hashlib.blake2b(array("q", ids), digest_size=8).digest(), "little", signed=True)


def of_equal_tokens(key_C: np.ndarray, hash_C: np.ndarray) -> np.ndarray:
    """Whether a caption has the token ids of one of another text, bool of shape (C,).

    Args:
        key_C, hash_C: int64, of the token ids and of the normalised texts.
    """
    keys_C = np.unique(key_C, return_inverse=True)[1]
    pairs_2P = np.unique(np.stack([keys_C, np.unique(hash_C, return_inverse=True)[1]]), axis=1)
    found_C: np.ndarray = np.bincount(pairs_2P[0], minlength=1)[keys_C] > 1
    return found_C


def _read(inputs: SiglipInputs, captions: Sequence[str], blank: frozenset[int]) -> np.ndarray:
    """(hash of the token ids, _CUT and _UNKNOWN) of each caption, int64 of shape (C, 2)."""
    ids_CL, is_cut_C = inputs.tokenised(captions)
    pad, rows = inputs.tokenizer.pad_token_id, []
    for read, is_cut in zip(ids_CL.tolist(), is_cut_C.tolist(), strict=True):
        while read and read[-1] == pad:  # padding is not part of a key, however much of it there is
            read.pop()
        rows.append((token_key(read), _CUT * is_cut | _UNKNOWN * blank.issuperset(read)))
    return np.array(rows, dtype=np.int64)


def _blank_tokens(inputs: SiglipInputs) -> frozenset[int]:
    """Ids of tokens that say nothing: special ones, the unknown one, blanks."""
    tokenizer = inputs.tokenizer
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return frozenset(tokenizer.all_special_ids) | {number for token, number in vocabulary.items() if not token.strip("▁ ")}
