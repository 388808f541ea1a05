"""Approximate search with FAISS, for caption pools too large for exact search: only the inverted lists nearest to an image are searched.

An inverted file (IndexIVFFlat, inner product; Jegou et al., "Product quantization for nearest neighbor search", 2011, section IV, without
the quantization): each caption is in the list of its nearest centroid, and a query searches `num_probes` lists. All processes share the
centroids, and each indexes the captions it embedded, so together they search the lists that one process would. Recall against the exact
search is measured on a sample. The index is in memory: about 4 D bytes a caption, over all processes. Where the run has a GPU and the faiss
that is installed was built for one, each process searches its own captions on its own GPU.
Shape letters: Q queries, q queries of a block, K depth, D width, S sample, P positives.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eval.dataset.retrieval_set import PositivePairs
from eval.encoder.embedding_files import EmbeddingRows, InMemoryRows, Shards
from eval.encoder.encoder import TEXT_BLOCK
from eval.errors import UserError
from eval.execution import ONE_PROCESS, Execution
from eval.processes import Processes
from eval.search.exact import QUERY_BLOCK
from eval.search.streamed import Found, stream_search

SAMPLE = 1024
TRAINED_ON = 64
"""Captions per list for k-means."""
_POSITIVES_AT_ONCE = 8192
_GPU_MOST = 2048
"""Most lists, and most results of a query, that faiss searches on a GPU (its wiki, "Faiss on the GPU", limitations)."""
_ROUNDING = 1e-6  # between faiss's sums of products and ours
_SEED = 20110101


def require_faiss() -> Any:
    """The module faiss.

    Raises:
        UserError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f"mining.index faiss needs the package faiss-cpu, which cannot be imported here ({error}). Install the extra with "
            "pip install -c constraints.txt -e '.[faiss]', or set mining.index=exact"
        ) from None
    return faiss


def approximate_search(
    queries: EmbeddingRows,
    gallery: Shards,
    positives: PositivePairs,
    depth: int,
    num_probes: int,
    execution: Execution = ONE_PROCESS,
) -> Found:
    """As :func:`eval.search.streamed.stream_search`, but items may be missed, and a list may be shorter than K (index -1): each query
    searches `num_probes` lists; more raise recall and cost time.

    The same bits for any number of processes, on the CPU or on GPUs of one kind.

    Args:
        execution: on a GPU its device searches, if faiss can.

    Raises:
        UserError: faiss is not installed.
    """
    processes = execution.processes
    index = _Index.of(_build(gallery, processes), num_probes, execution.device)
    found = Found.blank(queries.num_rows, min(depth, gallery.num_rows))
    buffer_qD = np.zeros((QUERY_BLOCK, gallery.width), dtype=np.float32)
    for start in range(0, queries.num_rows, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, queries.num_rows))
        count = rows.stop - start
        buffer_qD[:count], buffer_qD[count:] = queries.rows(start, rows.stop), 0
        near = index.nearest_lists(buffer_qD)
        own = _own_top_k(index, buffer_qD[:count], (near[0][:count], near[1][:count]), found.indices_QK.shape[1])
        indices_qm, scores_qm = (np.concatenate(processes.gather(part), axis=1) for part in own)
        found.indices_QK[rows], found.scores_QK[rows] = _in_order(indices_qm, scores_qm, found.indices_QK.shape[1])
        found.empty_Q[rows] = ~buffer_qD[:count].any(axis=1)
        span = slice(positives.offsets[start], positives.offsets[rows.stop])
        true = PositivePairs(positives.offsets[start : rows.stop + 1] - span.start, positives.indices_P[span])
        found.best_positive_Q[rows] = _best_positive(buffer_qD[:count], gallery, true)
    return found


@dataclass(frozen=True)
class _Index:
    """This process's index, and its copy on the GPU.

    Attributes:
        lists: on the CPU.
        num_probes: lists that a query searches.
        gpu: the copy of `lists` and of its centroids; None: there is none.
    """

    lists: Any
    num_probes: int
    gpu: tuple[Any, Any] | None = None

    @classmethod
    def of(cls, lists: Any, num_probes: int, device: torch.device) -> "_Index":
        """The index, copied to the device where that is a GPU and faiss was built for GPUs."""
        faiss, num_probes = require_faiss(), min(num_probes, lists.nlist)
        lists.nprobe = num_probes
        num_gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
        if device.type != "cuda" or not num_gpus or num_probes > _GPU_MOST:
            return cls(lists, num_probes)
        resources, number = faiss.StandardGpuResources(), device.index or 0
        lists_there, centroids_there = (faiss.index_cpu_to_gpu(resources, number, part) for part in (lists, lists.quantizer))
        return cls(lists, num_probes, (lists_there, centroids_there))

    def nearest_lists(self, vectors_qD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(scores, numbers) of the lists that each query searches."""
        quantizer = self.lists.quantizer if self.gpu is None else self.gpu[1]
        found: tuple[np.ndarray, np.ndarray] = quantizer.search(vectors_qD, self.num_probes)
        return found

    def search(self, vectors_qD: np.ndarray, count: int, near: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(scores, indices) of the best of each query in the lists near it; on the CPU where a GPU cannot return so many."""
        lists = self.lists if self.gpu is None or count > _GPU_MOST else self.gpu[0]
        found: tuple[np.ndarray, np.ndarray] = lists.search_preassigned(vectors_qD, count, near[1], near[0])
        return found


def recall_of_sample(queries: Shards, gallery: EmbeddingRows, found: Found, execution: Execution = ONE_PROCESS) -> float:
    """Share of the exact top K that was found, over at most SAMPLE evenly spaced queries that are not rows of zeros; nan without any.

    An item counts as found if it scores at least as high as the exact K-th: captions with the same text are interchangeable.
    """
    whole_Q = np.flatnonzero(~found.empty_Q)
    sample_S = whole_Q[np.unique(np.linspace(0, len(whole_Q) - 1, min(SAMPLE, len(whole_Q))).astype(np.int64))]
    if not len(sample_S):
        return float("nan")
    depth = found.indices_QK.shape[1]
    nothing = PositivePairs(np.zeros(len(sample_S) + 1, dtype=np.int64), np.zeros(0, dtype=np.int64))
    exact = stream_search(InMemoryRows(queries.at(sample_S)), gallery, nothing, depth, execution=execution)
    hits_SK = found.scores_QK[sample_S] >= exact.scores_QK[:, -1:] - _ROUNDING
    return float(hits_SK.mean())


def _build(gallery: Shards, processes: Processes) -> Any:
    """The index of this process's own captions, over the shared centroids."""
    faiss = require_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    num_lists = max(1, round(gallery.num_rows**0.5))
    quantizer = faiss.IndexFlatIP(gallery.width)
    quantizer.add(_centroids(faiss, gallery, num_lists, processes))
    index = faiss.IndexIVFFlat(quantizer, gallery.width, num_lists, faiss.METRIC_INNER_PRODUCT)  # keeps the quantizer alive
    index.train(np.zeros((1, gallery.width), dtype=np.float32))  # the centroids are given: nothing is trained
    buffer_BD = np.zeros((TEXT_BLOCK, gallery.width), dtype=np.float32)
    for indices, mapped in gallery.own():
        vectors = np.array(mapped)
        lists = np.empty(len(vectors), dtype=np.int64)
        for start in range(0, len(vectors), TEXT_BLOCK):  # blocks of one shape: the nearest list must not depend on the number of processes
            part = vectors[start : start + TEXT_BLOCK]
            buffer_BD[: len(part)], buffer_BD[len(part) :] = part, 0
            lists[start : start + len(part)] = quantizer.search(buffer_BD, 1)[1][: len(part), 0]
        index.add_core(len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(indices), faiss.swig_ptr(lists))
    return index


def _centroids(faiss: Any, gallery: Shards, num_lists: int, processes: Processes) -> np.ndarray:
    """Centroids by spherical k-means, float32 of shape (num_lists, D): trained by the main process on evenly spaced captions."""
    number = min(gallery.num_rows, TRAINED_ON * num_lists)
    sample_SD = gallery.at(np.linspace(0, gallery.num_rows - 1, number).astype(np.int64))
    centroids = np.empty((0, gallery.width), dtype=np.float32)
    if processes.is_main:
        options = {"niter": 10, "seed": _SEED, "spherical": True, "min_points_per_centroid": 1}
        kmeans = faiss.Kmeans(gallery.width, num_lists, **options)
        kmeans.train(sample_SD)
        centroids = kmeans.centroids
    return np.ascontiguousarray(processes.gather(centroids)[0])


def _own_top_k(index: _Index, vectors_qD: np.ndarray, near: tuple[np.ndarray, np.ndarray], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices, scores) of this process's best K in the lists near each query, equal scores by the lower index.

    FAISS keeps an unspecified one of several equal scores, and captions with the same text are common. So a query is repeated with a larger
    K until the last score is below the K-th.
    """
    indices_qK = np.full((len(vectors_qD), depth), -1, dtype=np.int64)
    scores_qK = np.full((len(vectors_qD), depth), -np.inf, dtype=np.float32)
    rows, num_wanted = np.arange(len(vectors_qD)), depth + 1
    while len(rows):
        scores, indices = index.search(vectors_qD[rows], num_wanted, (near[0][rows], near[1][rows]))
        scores = np.where(indices < 0, np.float32(-np.inf), scores)
        final = (indices[:, -1] < 0) | (scores[:, -1] < scores[:, depth - 1])
        indices_qK[rows[final]], scores_qK[rows[final]] = _in_order(indices[final], scores[final], depth)
        rows, num_wanted = rows[~final], 2 * num_wanted
    return indices_qK, scores_qK


def _in_order(indices_qm: np.ndarray, scores_qm: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices, scores) of the best K of each row, best first, equal scores by the lower index."""
    order = np.lexsort((indices_qm, -scores_qm), axis=1)[:, :depth]
    return np.take_along_axis(indices_qm, order, axis=1), np.take_along_axis(scores_qm, order, axis=1)


def _best_positive(vectors_qD: np.ndarray, gallery: Shards, positives: PositivePairs) -> np.ndarray:
    """Cosine of each query's best positive, float32 of shape (q,); -inf without one."""
    best_q = np.full(len(vectors_qD), -np.inf, dtype=np.float32)
    for start in range(0, len(positives.indices_P), _POSITIVES_AT_ONCE):
        part = slice(start, start + _POSITIVES_AT_ONCE)
        queries_P = positives.query_P[part]
        cosines_P = np.einsum("pd,pd->p", vectors_qD[queries_P], gallery.at(positives.indices_P[part]))
        np.maximum.at(best_q, queries_P, cosines_P)
    return best_q
