"""The search of embeddings on disk against a dense loop in float64, and against eval/search/exact.py bit for bit."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.dataset.retrieval_set import PositivePairs
from eval.encoder.embedding_files import InMemoryRows, Shards
from eval.processes import Processes
from eval.search import streamed as streamed_search
from eval.search.streamed import Found, stream_search
from eval.search.top_k import DeviceTopK, TopK
from tests.unit.eval.one_direction import search


@contextmanager
def small_grid() -> Iterator[None]:
    """Several tiles and several bands for a few rows."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"QUERY_BLOCK": 3, "GALLERY_BLOCK": 4, "ROW_BLOCKS_AT_ONCE": 2}.items():
            patch.setattr(streamed_search, name, value)
        yield


def on_disk(vectors_ND: np.ndarray, block: int, folder: Path | None = None) -> Shards:
    shards = Shards(folder, len(vectors_ND), block, Processes())
    for start in range(0, len(vectors_ND), block):
        shards.append(vectors_ND[start : start + block])
    shards.seal()
    return shards


def pairs(rows: list[list[int]]) -> PositivePairs:
    return PositivePairs(np.cumsum([0, *map(len, rows)]).astype(np.int64), np.array([item for row in rows for item in row], dtype=np.int64))


def assert_by_hand(found: Found, queries: np.ndarray, gallery: np.ndarray, rows: list[list[int]], depth: int) -> None:
    """Whole numbers this small are exact in float32 as in float64."""
    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    there = [item for item in range(len(gallery)) if gallery[item].any()]
    assert found.indices_QK.shape == (len(queries), min(depth, len(gallery)))
    for query, row in enumerate(rows):
        head = sorted(there, key=lambda item, query=query: (-scores[query, item], item))[:depth]
        missing = found.indices_QK.shape[1] - len(head)
        assert found.indices_QK[query].tolist() == head + [-1] * missing
        assert found.scores_QK[query].tolist() == [scores[query, item] for item in head] + [-np.inf] * missing
        assert found.best_positive_Q[query] == max([scores[query, item] for item in row if item in there], default=-np.inf)
    assert found.empty_Q.tolist() == [not vector.any() for vector in queries]


@st.composite
def tied_searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[list[int]], int, int]:
    num_queries, num_items, width = draw(st.integers(1, 14)), draw(st.integers(1, 15)), draw(st.integers(1, 3))
    values = np.random.default_rng(draw(st.integers(0, 9999)))
    queries, gallery = (values.integers(-2, 3, (rows, width)).astype(np.float32) for rows in (num_queries, num_items))
    rows = [sorted(draw(st.sets(st.integers(0, num_items - 1), max_size=4))) for _ in range(num_queries)]
    return queries, gallery, rows, draw(st.integers(1, 20)), draw(st.integers(1, 6))


@settings(deadline=None, max_examples=100)
@given(case=tied_searches())
def test_every_top_k_equals_a_dense_loop(case: tuple[np.ndarray, np.ndarray, list[list[int]], int, int]) -> None:
    """Ties by the lower index, over tiles and bands; a row of zeros is never found, as a picture that does not decode must not be."""
    queries, gallery, rows, depth, block = case
    with small_grid(), on_disk(queries, block) as one, on_disk(gallery, block + 1) as other:
        assert_by_hand(stream_search(one, other, pairs(rows), depth), queries, gallery, rows, depth)


@pytest.mark.parametrize("depth", [1, 5, 30])
def test_top_k_of_a_gpu_is_that_of_the_cpu(depth: int) -> None:
    draws = np.random.default_rng(depth)
    ours, theirs = DeviceTopK(depth), TopK(6, depth)
    for first in (0, 16, 32):
        tile = draws.integers(-9, 10, (6, 16)).astype(np.float32)
        tile[:, draws.random(16) < 0.6] = -np.inf
        ours.update(torch.from_numpy(tile), first)
        theirs.update(tile, first, np.empty((6, 0), dtype=np.float32))
    for one, other in zip(ours.best(), theirs.best(), strict=True):
        assert one.dtype == other.dtype and one.tolist() == other.tolist()


def unit(draws: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = draws.standard_normal(shape, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_scores_are_those_of_the_evaluation_bit_for_bit() -> None:
    """Over the borders of both of the real blocks."""
    draws = np.random.default_rng(0)
    queries, gallery = unit(draws, 1100, 24), unit(draws, 2100, 24)
    positives = pairs([[query, query + 900] for query in range(1100)])
    expected = search("image_to_text", queries, gallery, positives, 20)
    with on_disk(queries, 32) as one, on_disk(gallery, 128) as other:
        found = stream_search(one, other, positives, 20)
    assert found.indices_QK.tobytes() == expected.top_indices_QK.tobytes()
    assert found.scores_QK.tobytes() == expected.top_scores_QK.tobytes()
    best = np.maximum(*(np.einsum("qd,qd->q", queries, gallery[first : first + 1100]) for first in (0, 900)))
    np.testing.assert_allclose(found.best_positive_Q, best, atol=1e-6)


def test_a_score_depends_neither_on_its_neighbours_nor_on_its_place() -> None:
    """So mining for some images gives what mining for all gives for them."""
    draws = np.random.default_rng(1)
    queries, gallery, chosen = unit(draws, 50, 24), unit(draws, 60, 24), np.array([3, 7, 8, 30, 49])
    nothing = pairs([[]] * 50)
    with small_grid():
        whole = stream_search(InMemoryRows(queries), InMemoryRows(gallery), nothing, 9)
        part = stream_search(InMemoryRows(queries[chosen]), InMemoryRows(gallery), pairs([[]] * 5), 9)
    assert part.indices_QK.tolist() == whole.indices_QK[chosen].tolist()
    assert part.scores_QK.tobytes() == whole.scores_QK[chosen].tobytes()


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_each_process_keeps_its_own_blocks(world_size: int, tmp_path: Path) -> None:
    """23 rows in blocks of 4: a process reads back its share from its own file, and nothing else."""
    vectors, seen = np.arange(46, dtype=np.float32).reshape(23, 2), []
    with ExitStack() as opened:
        for rank in range(world_size):
            processes = Processes(rank, world_size)
            shards = opened.enter_context(Shards(tmp_path, 23, 4, processes))
            for number in processes.share_of(6):
                shards.append(vectors[4 * number : 4 * number + 4])
            shards._file.flush()  # `seal` would communicate with the others
            for indices, own in shards.own():
                assert np.array_equal(own, vectors[indices])
                seen += indices.tolist()
        assert sorted(seen) == list(range(23)) and list(tmp_path.iterdir()) == []


def test_rows_of_one_process_are_the_rows_that_were_written() -> None:
    vectors = unit(np.random.default_rng(2), 23, 3)
    with on_disk(vectors, 4) as shards:
        assert shards.num_rows == 23 and shards.width == 3
        for start, stop in ((0, 23), (4, 9), (5, 6), (22, 23), (7, 7)):
            assert np.array_equal(shards.rows(start, stop), vectors[start:stop])
        chosen = np.array([22, 0, 7, 7, 3])
        assert np.array_equal(shards.at(chosen), vectors[chosen])


def test_a_disk_that_is_full_is_an_error() -> None:
    with on_disk(np.ones((2, 3), dtype=np.float32), 2) as shards:
        shards._file.close()
        shards._file = open("/dev/full", "wb")  # noqa: SIM115  # closed by the shards
        shards.append(np.ones((2, 3), dtype=np.float32))
        with pytest.raises(OSError, match="No space left"):
            shards.seal()
        shards._file = open("/dev/null", "wb")  # noqa: SIM115
