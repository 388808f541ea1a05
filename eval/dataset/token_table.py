"""Token ids of texts, made once and held in a memory-mapped file in the hub's cache for assets (HF_ASSETS_CACHE).

The file's name is a hash of the texts and the tokenizer; it ends in the SHA-256 of the rest and is committed by a rename, so a stale or
damaged one is never read. A text is found by a hash of 128 bits, so whoever asks for its ids need not know where it is from. Files that no
run has used for 30 days are removed. Shape letters: T different texts, N texts asked for, L tokens.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from eval.atomic import replace_files, sweep
from eval.dataset.picture_warnings import tell
from eval.files import cache_folder
from eval.processes import Processes
from eval.progress import bar

_VERSION = 1
_TEXTS_AT_ONCE = 1024
_BLOCKS_AT_ONCE = 16
"""Blocks of each process that are made before they are written; bounds memory."""
_LONG = 20_000  # texts that take seconds
_DIGEST_BYTES = 32
_SUFFIX = ".tokens"
_KEPT_SECONDS = 30 * 24 * 3600.0

Keys = Callable[[Sequence[str]], np.ndarray]
"""128-bit hashes of texts, uint64 of shape (N, 2)."""
Tokenise = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
"""(padded token ids, int64 of shape (N, L); whether the text is longer, bool of shape (N,)) of texts."""


@dataclass(frozen=True)
class TokenTable:
    """Token ids of texts (looked up in eval/encoder/inputs.py).

    Attributes:
        path: of the file.
        keys_2T: uint64, the two halves of the hash of each text, ascending by the first.
        rows_T: uint16, or uint32 with a larger vocabulary, of shape (T, L + 1): padded token ids, and 1 where the text is longer.
    """

    path: Path
    keys_2T: np.ndarray
    rows_T: np.ndarray

    @classmethod
    def mapped(cls, path: Path, num_texts: int, num_tokens: int, dtype: type) -> "TokenTable | None":
        """A whole file; None where there is none."""
        with suppress(OSError, ValueError):
            num_bytes = num_texts * (16 + (num_tokens + 1) * np.dtype(dtype).itemsize)
            if path.stat().st_size != num_bytes + _DIGEST_BYTES:
                return None
            data = np.memmap(path, dtype=np.uint8, mode="r", shape=(num_bytes + _DIGEST_BYTES,))
            if hashlib.sha256(data[:num_bytes].data).digest() != data[num_bytes:].tobytes():
                return None
            with suppress(OSError):  # of another user
                os.utime(path)
            keys, ids = data[: 16 * num_texts].view(np.uint64), data[16 * num_texts : num_bytes].view(np.dtype(dtype))
            return cls(path, keys.reshape(2, num_texts), ids.reshape(num_texts, num_tokens + 1))
        return None


def open_table(
    tokenizer: str,
    reads: tuple[Keys, Tokenise],
    sizes: tuple[int, int],
    texts: Sequence[Sequence[str]],
    processes: Processes = Processes(),
    folder: Path | None = None,
) -> TokenTable | None:
    """The table of some sets of texts, made first where a machine has no whole file of it; call on every process, which share the work.

    None, which is said once, where the file cannot be written or mapped: texts are then tokenised whenever they are asked for.

    Args:
        tokenizer: what the ids follow from besides the texts.
        reads: what gives the keys and the ids of some texts.
        sizes: tokens of a row, and of the vocabulary.
        folder: another one than the machine's.
    """
    (keys_of, tokenise), num_tokens, dtype = reads, sizes[0], np.uint16 if sizes[1] <= 2**16 else np.uint32
    lengths = [len(one) for one in texts]
    blocks = [(one, start) for one, length in enumerate(lengths) for start in range(0, length, _TEXTS_AT_ONCE)]
    if not blocks:
        return None
    own = [keys_of(texts[one][start : start + _TEXTS_AT_ONCE]) for one, start in map(blocks.__getitem__, processes.share_of(len(blocks)))]
    keys_C2 = np.concatenate(processes.gather_blocks(own, len(blocks)))
    _, index_T = np.unique(keys_C2[:, 0], return_index=True)
    keys_2T = np.ascontiguousarray(keys_C2[index_T].T)
    named = f"{_VERSION} {tokenizer} {sizes} ".encode() + keys_2T.tobytes()
    path = (folder or cache_folder("tokens")) / f"{hashlib.sha256(named).hexdigest()[:32]}{_SUFFIX}"
    mapped = partial(TokenTable.mapped, path, len(index_T), num_tokens, dtype)
    found = mapped()
    if not processes.is_on_all(found is not None):
        _make(path, keys_2T, _windows(texts, lengths, index_T, tokenise, dtype, processes), is_missing=found is None)
        processes.barrier()
        found = found or mapped()
        if found is None:
            tell(f"{path.parent}: token ids cannot be held there, and are made whenever they are needed")
    return found


def _windows(
    texts: Sequence[Sequence[str]], lengths: list[int], index_T: np.ndarray, tokenise: Tokenise, dtype: type, processes: Processes
) -> Iterator[np.ndarray]:
    """Rows of the table, some blocks after the others, each the ids and whether the text is longer; the same on every process."""
    ends = np.cumsum(lengths)
    starts = range(0, len(index_T), _TEXTS_AT_ONCE)
    at_once = _BLOCKS_AT_ONCE * processes.world_size
    show = processes.is_main and len(index_T) >= _LONG
    with bar(len(index_T), "tokenising", "text", show=show, leave=False) as progress:
        for first in range(0, len(starts), at_once):
            window, own = starts[first : first + at_once], list[np.ndarray]()
            for number in processes.share_of(len(window)):
                chosen = index_T[window[number] : window[number] + _TEXTS_AT_ONCE]
                which = np.searchsorted(ends, chosen, side="right")
                places = chosen - np.concatenate([[0], ends])[which]
                ids_NL, cut_N = tokenise([texts[one][place] for one, place in zip(which.tolist(), places.tolist(), strict=True)])
                own.append(np.concatenate([ids_NL, cut_N[:, None]], axis=1).astype(dtype))
            rows = np.concatenate(processes.gather_blocks(own, len(window)))
            progress.update(len(rows))
            yield rows


def _make(path: Path, keys_2T: np.ndarray, windows: Iterator[np.ndarray], *, is_missing: bool) -> None:
    """Write the file, on the process of each machine that writes for all of it."""

    def write(temporary: Path) -> None:
        digest = hashlib.sha256()
        with temporary.open("wb") as file:
            for part in chain([keys_2T], windows):
                digest.update(part.data)
                file.write(part.data)
            file.write(digest.digest())

    if is_missing and os.environ.get("LOCAL_RANK", "0") == "0":
        with suppress(OSError):  # said by whoever finds no file
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            for other in path.parent.glob(f"*{_SUFFIX}"):
                with suppress(OSError):  # of another user, or another process removed it
                    if time.time() - other.stat().st_mtime > _KEPT_SECONDS:
                        other.unlink()
            replace_files({path: write})
    for _ in windows:  # what is not written here: the other processes need this process's part
        pass
