"""Segments of kept scores: what was written whole is read back, and of what was damaged nothing but the damaged lists is missing."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.scoring import cache_file as pair_segments
from rerank.scoring.cache_file import RECORD, checksums, digest_words, list_records, read_segment, whole_lists

LENGTHS = [3, 1, 5, 2, 4]


def words_of(text: str) -> np.ndarray:
    return digest_words(hashlib.sha256(text.encode()).digest())


def some_lists(lengths: list[int]) -> list[np.ndarray]:
    """A list of records for each length, all pairs different."""
    return [
        list_records(
            words_of(f"image {number}"),
            np.array([words_of(f"caption {place}") for place in range(length)]),
            np.arange(length, dtype=np.float32) + 100 * number,
        )
        for number, length in enumerate(lengths)
    ]


def read(path: Path) -> tuple[np.ndarray, int]:
    parts = list(read_segment(path, path.stat().st_size))
    return np.concatenate([records for records, _ in parts]), sum(num for _, num in parts)


def expected_without(lists: list[np.ndarray], damaged: set[int]) -> bytes:
    return b"".join(records.tobytes() for number, records in enumerate(lists) if number not in damaged)


@pytest.fixture(params=[2, 3, 7, 1000], ids=lambda num: f"{num} at once")
def parts_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many records are read at once."""
    monkeypatch.setattr(pair_segments, "_RECORDS_AT_ONCE", request.param)
    return request.param


def test_what_was_written_is_read_back_however_little_at_once(tmp_path: Path, parts_of: int) -> None:
    lists = some_lists(LENGTHS)
    (tmp_path / "a.pairs").write_bytes(expected_without(lists, set()))
    records, num_damaged = read(tmp_path / "a.pairs")
    assert records.tobytes() == expected_without(lists, set()) and num_damaged == 0
    (tmp_path / "empty.pairs").write_bytes(b"")
    assert read(tmp_path / "empty.pairs")[0].size == 0 and read(tmp_path / "empty.pairs")[1] == 0


def test_any_bit_that_flips_costs_its_list_and_no_other(tmp_path: Path, parts_of: int) -> None:
    lists = some_lists(LENGTHS)
    data = expected_without(lists, set())
    owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    for bit in range(parts_of % 19, 8 * len(data), 19):  # every field comes by
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged = int(owner[bit // 8 // RECORD.itemsize])
        (tmp_path / "a.pairs").write_bytes(flipped)
        records, num_damaged = read(tmp_path / "a.pairs")
        assert records.tobytes() == expected_without(lists, {damaged}), bit
        assert num_damaged == LENGTHS[damaged], bit


def test_a_file_cut_anywhere_gives_the_lists_before_the_cut(tmp_path: Path, parts_of: int) -> None:
    lists = some_lists(LENGTHS)
    data, ends = expected_without(lists, set()), RECORD.itemsize * np.cumsum(LENGTHS)
    for cut in range(0, len(data) + 1, 7):
        (tmp_path / "a.pairs").write_bytes(data[:cut])
        records, num_damaged = read(tmp_path / "a.pairs")
        whole = int((ends <= cut).sum())
        assert records.tobytes() == expected_without(lists[:whole], set())
        assert (num_damaged > 0) == (cut not in (0, *ends))


def test_of_a_file_that_grows_what_was_there_is_read(tmp_path: Path, parts_of: int) -> None:
    lists = some_lists(LENGTHS)
    (tmp_path / "a.pairs").write_bytes(expected_without(lists, set()))
    parts = list(read_segment(tmp_path / "a.pairs", sum(LENGTHS[:3]) * RECORD.itemsize))
    assert np.concatenate([records for records, _ in parts]).tobytes() == expected_without(lists, {3, 4})
    assert sum(num for _, num in parts) == 0


@given(st.lists(st.integers(0, 4), max_size=4), st.randoms(use_true_random=False))
def test_records_out_of_place_are_not_taken(gone: list[int], random) -> None:
    """Records that are each sound, but missing, doubled or shuffled: only lists that stand together as they were written pass."""
    lists = some_lists(LENGTHS)
    records = list(np.concatenate(lists))
    for _ in gone:
        place, other = random.randrange(len(records)), random.randrange(len(records))
        if random.random() < 0.5:
            records.pop(place)
        else:
            records.insert(place, records[other])
    array = np.array(records, dtype=RECORD)
    taken = array[whole_lists(array)].tobytes()
    assert gone or taken == array.tobytes()
    while taken:
        found = [one.tobytes() for one in lists if taken.startswith(one.tobytes())]
        assert len(found) == 1, "what is taken is not one whole list after another"
        taken = taken[len(found[0]) :]


def test_the_checksum_is_the_one_described() -> None:
    """By Python's own integers; and neither zeros nor noise pass."""

    def by_hand(data: bytes) -> int:
        state, words = 0x7061697273636F31, [int.from_bytes(data[8 * n : 8 * n + 8], "little") for n in range(6)]
        for number, word in enumerate(words):
            state ^= word & 0xFFFFFFFF if number == 5 else word
            for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
                state = (state ^ state >> 33) * factor % 2**64
            state ^= state >> 33
        return state >> 32

    rng = np.random.default_rng(0)
    records = np.frombuffer(rng.bytes(RECORD.itemsize * 50) + bytes(RECORD.itemsize * 50), dtype=RECORD)
    assert checksums(records).tolist() == [by_hand(record.tobytes()) for record in records]
    assert not whole_lists(records).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_only_finite_scores_are_kept(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        list_records(words_of("x"), np.array([words_of("y")]), np.array([value], dtype=np.float32))
