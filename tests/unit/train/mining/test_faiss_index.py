"""The approximate search on a GPU, by a stand-in: only faiss-cpu is installed where these tests run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.dataset.retrieval_set import PositivePairs
from eval.encoder.embedding_files import Shards
from eval.execution import Execution
from eval.processes import Processes
from eval.search.streamed import Found
from train.mining.faiss_index import approximate_search

faiss = pytest.importorskip("faiss")
MOST = 2048  # results that faiss returns from a GPU


class OnGpu:
    """An index of faiss on a GPU: the same answers, and faiss's limits there."""

    def __init__(self, index: Any) -> None:
        self._index, self.counts = index, list[int]()

    def search(self, vectors: np.ndarray, count: int) -> Any:
        self._note(count)
        return self._index.search(vectors, count)

    def search_preassigned(self, vectors: np.ndarray, count: int, numbers: np.ndarray, scores: np.ndarray) -> Any:
        self._note(count)
        return self._index.search_preassigned(vectors, count, numbers, scores)

    def _note(self, count: int) -> None:
        assert count <= MOST, "faiss refuses it on a GPU"
        self.counts.append(count)


def shards(vectors: np.ndarray, folder: Path, block: int) -> Shards:
    found = Shards(folder, len(vectors), block, Processes())
    for start in range(0, len(vectors), block):
        found.append(vectors[start : start + block])
    found.seal()
    return found


@pytest.fixture
def search(tmp_path: Path) -> Callable[[str], Found]:
    """Thirty queries among 5,000 captions, half of which are one and the same: ties beyond what a GPU returns."""
    draws = np.random.default_rng(0)
    queries, captions = (draws.standard_normal((num, 16), dtype=np.float32) for num in (30, 5000))
    captions[::2] = captions[0]
    queries[0] = captions[0]
    nothing = PositivePairs(np.zeros(31, dtype=np.int64), np.zeros(0, dtype=np.int64))

    def run(device: str) -> Found:
        images, pool = shards(queries, tmp_path, 128), shards(captions, tmp_path, 256)
        return approximate_search(images, pool, nothing, 7, 4, Execution(device=torch.device(device)))

    return run


def test_lists_and_centroids_are_searched_on_the_runs_gpu(search: Callable[[str], Found], monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, OnGpu]] = []

    def move(resources: object, number: int, index: Any) -> OnGpu:
        moved.append((number, OnGpu(index)))
        return moved[-1][1]

    expected = search("cpu")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 3, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", move, raising=False)
    found = search("cuda:2")
    assert [number for number, _ in moved] == [2, 2]
    lists, centroids = (index for _, index in moved)
    assert set(centroids.counts) == {4} and min(lists.counts) == 8 and max(lists.counts) > 1000, "ties are asked for again, deeper"
    for one, other in zip(found.arrays(), expected.arrays(), strict=True):
        assert one.tobytes() == other.tobytes()
    assert found.indices_QK[0].tolist() == [0, 2, 4, 6, 8, 10, 12], "of 2,500 equal captions those first in the pool"
    assert search("cpu") is not None and len(moved) == 2, "a run on the CPU has nothing to move"


def test_a_faiss_without_gpus_searches_on_the_cpu(search: Callable[[str], Found], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    assert search("cuda:0").indices_QK.tobytes() == search("cpu").indices_QK.tobytes()
