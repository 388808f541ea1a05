"""Segments: files of kept pair scores, a record of 48 bytes for each, which say by themselves what of them is whole.

One write puts one image's list of records at a segment's end. Every record has a checksum, its place in the list and the list's length, so
that reading takes whole lists only, whatever a kill, a full disk or a bad sector left. Half a list is not taken: the rest of it
would be scored in another batch, and its last bits could differ from what an undisturbed run says.

Shape letters: N pairs, R records.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Little-endian on every machine. image, caption: the first 128 bits of a SHA-256.
RECORD = np.dtype(
    [("image", "<u8", (2,)), ("caption", "<u8", (2,)), ("score", "<f4"), ("place", "<u4"), ("length", "<u4"), ("checksum", "<u4")]
)
_SEED = np.uint64(0x7061697273636F31)  # a record of zeros, which a crashed file system may leave, must not pass
_RECORDS_AT_ONCE = 1 << 17


def digest_words(sha256: bytes) -> np.ndarray:
    """The first 128 bits of a SHA-256, uint64 of shape (2,)."""
    return np.frombuffer(sha256[:16], dtype="<u8")


def list_records(image_2: np.ndarray, caption_N2: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """The records of one image's list, shape (N,) of RECORD.

    Args:
        image_2, caption_N2: digest words.
        scores_N: finite.

    Raises:
        ValueError: a score is not finite.
    """
    if not np.isfinite(scores_N).all():
        raise ValueError("only finite scores are kept")
    records_N = np.zeros(len(scores_N), dtype=RECORD)
    records_N["image"], records_N["caption"], records_N["score"] = image_2, caption_N2, scores_N
    records_N["place"], records_N["length"] = np.arange(len(scores_N)), len(scores_N)
    records_N["checksum"] = checksums(records_N)
    return records_N


def checksums(records_R: np.ndarray) -> np.ndarray:
    """uint32, shape (R,): of everything before the checksum, a word of 64 bits after another mixed in by MurmurHash3's finaliser."""
    words_R6 = records_R.view("<u8").reshape(-1, RECORD.itemsize // 8)
    state_R = np.full(len(words_R6), _SEED)
    for column in range(words_R6.shape[1]):
        word_R = words_R6[:, column]
        state_R ^= word_R & np.uint64(0xFFFFFFFF) if column == words_R6.shape[1] - 1 else word_R
        state_R ^= state_R >> np.uint64(33)
        state_R *= np.uint64(0xFF51AFD7ED558CCD)
        state_R ^= state_R >> np.uint64(33)
        state_R *= np.uint64(0xC4CEB9FE1A85EC53)
        state_R ^= state_R >> np.uint64(33)
    return (state_R >> np.uint64(32)).astype(np.uint32)


def whole_lists(records_R: np.ndarray) -> np.ndarray:
    """bool, shape (R,): the records that belong to a list of which every record is there, sound and in its place."""
    num = len(records_R)
    sound_R = (records_R["checksum"] == checksums(records_R)) & np.isfinite(records_R["score"])
    place_R, length_R, image_R2 = records_R["place"].astype(np.int64), records_R["length"].astype(np.int64), records_R["image"]
    follows_R = np.zeros(num, dtype=bool)  # the next of the same list as the record before
    follows_R[1:] = (
        sound_R[1:]
        & sound_R[:-1]
        & (place_R[1:] == place_R[:-1] + 1)
        & (length_R[1:] == length_R[:-1])
        & (image_R2[1:] == image_R2[:-1]).all(axis=1)
    )
    num_following = np.concatenate([[0], np.cumsum(follows_R)])
    starts = np.flatnonzero(sound_R & (place_R == 0) & (length_R >= 1))
    starts = starts[starts + length_R[starts] <= num]
    ends = starts + length_R[starts]
    is_whole = num_following[ends] - num_following[starts + 1] == ends - starts - 1
    steps = np.zeros(num + 1, dtype=np.int64)
    steps[starts[is_whole]] += 1
    steps[ends[is_whole]] -= 1
    return np.cumsum(steps[:num]) > 0


def read_segment(path: Path, num_bytes: int) -> Iterator[tuple[np.ndarray, int]]:
    """(whole records, number of damaged ones) of part after part of a segment: some hundred thousand records, however long the file.

    Args:
        num_bytes: read so much of it, though it may be growing.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        rest = np.zeros(0, dtype=RECORD)
        while True:
            wanted = min(_RECORDS_AT_ONCE * RECORD.itemsize, num_bytes - file.tell())
            data = file.read(wanted)
            at_end = len(data) < wanted or file.tell() == num_bytes
            num_torn = int(len(data) % RECORD.itemsize > 0)
            records_R = np.concatenate([rest, np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], dtype=RECORD)])
            whole_R = whole_lists(records_R)
            end = len(records_R) if at_end else _open_list(records_R)
            yield records_R[:end][whole_R[:end]], int((~whole_R[:end]).sum()) + num_torn
            rest = records_R[end:]
            if at_end:
                return


def _open_list(records_R: np.ndarray) -> int:
    """Where the list begins that goes on beyond these records; their number, if none does."""
    starts = np.flatnonzero(records_R["place"] == 0)
    starts = starts[records_R["checksum"][starts] == checksums(records_R[starts])]
    if not len(starts):
        return len(records_R)
    last = int(starts[-1])
    return last if last + int(records_R["length"][last]) > len(records_R) else len(records_R)
