"""Candidate negatives: the top K captions that the model retrieves for each image, or the top K images for each caption.

The gallery of an image is the pool: every caption of the split, followed by additional captions that have no image. The gallery of a
caption is every image of the split. Embeddings are written to disk as they are made (eval/encoder/embedding_files.py) and searched in
blocks (eval/search/streamed.py), so memory does not grow with the pool. Shape letters: I images mined for, Q captions mined for, K depth.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from eval.dataset.retrieval_set import PositivePairs, RetrievalSet
from eval.encoder.embedding_files import Shards
from eval.encoder.encoder import IMAGE_BLOCK, TEXT_BLOCK, ImageSource, num_blocks, stream_captions, stream_images
from eval.execution import ONE_PROCESS, Execution
from eval.processes import Processes
from eval.search.streamed import stream_search
from train.data.cached_embeddings import FrozenRows
from train.data.caption_pool import CaptionPool, LazyStrings
from train.mining.ensemble import ConcatenatedShards, Retriever, ensemble_weights
from train.mining.faiss_index import Approximate, approximate_search, recall_of_sample
from train.model.frozen_tower import ImageSubset


@dataclass(frozen=True)
class Candidates:
    """The top K captions of the pool for each image; the same on every process.

    Attributes:
        images_I: int64, the images mined for, ascending.
        captions_IK: int64, indices into the pool, best first: below num_captions a caption of the split, else an additional one. -1: no
            candidate. An exact search fills every place (K is cut to the pool); an approximate one may find fewer and ends in -1.
        cosines_IK: float32, their cosines; -inf where there is no candidate.
        best_positive_I: float32, cosine of the image's best positive caption.
        decodable_I: bool; False where the image does not decode.
        recall: recall of an approximate search against the exact one, measured on a sample; None where the search was exact.
    """

    images_I: np.ndarray
    captions_IK: np.ndarray
    cosines_IK: np.ndarray
    best_positive_I: np.ndarray
    decodable_I: np.ndarray
    recall: float | None = None
    mined_for: ClassVar[str] = "images"


@dataclass(frozen=True)
class ImageCandidates:
    """The top K images of the split for each caption; the same on every process.

    Attributes:
        captions_Q: int64, the captions mined for, in the order given.
        images_QK: int64, best first; images that do not decode are left out. -1: no candidate, where fewer than K decode.
        cosines_QK: float32, their cosines; -inf where there is no candidate.
        best_positive_Q: float32, cosine of the caption's best positive image; -inf where none of them decodes.
    """

    captions_Q: np.ndarray
    images_QK: np.ndarray
    cosines_QK: np.ndarray
    best_positive_Q: np.ndarray
    recall: ClassVar[float | None] = None
    mined_for: ClassVar[str] = "captions"

    @property
    def readable_Q(self) -> np.ndarray:
        """Whether a positive image of the caption decodes, bool."""
        return np.isfinite(self.best_positive_Q)


def find_candidates(
    retriever: Retriever,
    pool: CaptionPool,
    depth: int,
    *,
    folder: Path | None = None,
    images_I: np.ndarray | None = None,
    approximate: Approximate | None = None,
    execution: Execution = ONE_PROCESS,
) -> Candidates:
    """Embed the images and the pool, and search the pool for each image.

    Only `images_I` are embedded. On a CPU their cosines equal those of a search for all images bit for bit, as an embedding depends
    neither on the other rows of its block nor on its place among them.

    Args:
        depth: K, cut to the size of the pool.
        folder: where embeddings lie meanwhile, each process's own on its own machine's disk; made if need be; None: the temporary folder.
        images_I: the images to mine for, ascending; None: all.
        approximate: search with FAISS instead of exactly.
        execution: the search runs on its device; progress is told of rows embedded.

    Raises:
        UserError: an embedding is not finite.
        OSError: the embeddings cannot be written.
    """
    dataset = pool.dataset
    images_I = np.arange(dataset.num_images) if images_I is None else np.asarray(images_I, dtype=np.int64)
    texts = LazyStrings(pool.text, len(pool))
    positives = _positives_of(dataset.positives("image_to_text"), images_I)
    subset, captions_N = ImageSubset(dataset, images_I), np.arange(len(texts))
    with _embedded(retriever, subset, images_I, texts, captions_N, folder, execution) as (images, captions):
        if approximate is None:
            found, recall = stream_search(images, captions, positives, depth, execution=execution), None
        else:
            found = approximate_search(images, captions, positives, depth, approximate, execution.processes)
            recall = recall_of_sample(images, captions, found, execution)
    return Candidates(images_I, found.indices_QK, found.scores_QK, found.best_positive_Q, ~found.empty_Q, recall)


def find_image_candidates(
    retriever: Retriever,
    dataset: RetrievalSet,
    depth: int,
    captions_Q: np.ndarray,
    *,
    folder: Path | None = None,
    execution: Execution = ONE_PROCESS,
) -> ImageCandidates:
    """Embed the captions and all images, and search the images for each caption, exactly.

    Args:
        depth: K, cut to the number of images.
        captions_Q: int64, the captions to mine for, in any order: one of each image, say, or all.
        folder, execution: as :func:`find_candidates` has them.

    Raises:
        UserError: an embedding is not finite.
        OSError: the embeddings cannot be written.
    """
    captions_Q, images_I = np.asarray(captions_Q, dtype=np.int64), np.arange(dataset.num_images)
    positives = _positives_of(dataset.positives("text_to_image"), captions_Q)
    texts = LazyStrings(lambda place: dataset.captions[int(captions_Q[place])], len(captions_Q))
    with _embedded(retriever, dataset, images_I, texts, captions_Q, folder, execution) as (images, captions):
        found = stream_search(captions, images, positives, depth, execution=execution)
    return ImageCandidates(captions_Q, found.indices_QK, found.scores_QK, found.best_positive_Q)


@contextmanager
def _embedded(
    retriever: Retriever,
    images: ImageSource,
    images_I: np.ndarray,
    texts: Sequence[str],
    captions_N: np.ndarray,
    folder: Path | None,
    execution: Execution,
) -> Iterator[tuple[Shards, Shards]]:
    """Shards with the vectors of images and of captions, of these indices in the split and in the pool; closed at the end."""
    opened: list[Shards] = []
    try:
        with execution.processes.jointly():
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            for num_rows, block in ((len(images_I), IMAGE_BLOCK), (len(captions_N), TEXT_BLOCK)):
                opened.append(Shards(folder, num_rows, block, execution.processes))
        model, inputs, frozen, members = retriever.model, retriever.inputs, retriever.frozen, retriever.members
        sink = _sink(retriever, opened[0], [member.images for member in members], images_I, IMAGE_BLOCK, execution.processes)
        if frozen.images is not None:
            _read_cached(frozen.images, images_I, sink, IMAGE_BLOCK, execution)
        else:
            stream_images(model, inputs, images, sink.append, block=IMAGE_BLOCK, remedy=None, execution=execution)
        sink.seal()
        sink = _sink(retriever, opened[1], [member.captions for member in members], captions_N, TEXT_BLOCK, execution.processes)
        if frozen.captions is not None:
            _read_cached(frozen.captions, captions_N, sink, TEXT_BLOCK, execution)
        else:
            stream_captions(model, inputs, texts, sink.append, block=TEXT_BLOCK, execution=execution)
        sink.seal()
        yield opened[0], opened[1]
    finally:
        for shards in opened:
            shards.close()


def _sink(
    retriever: Retriever, shards: Shards, cached: list[FrozenRows], indices_N: np.ndarray, block: int, processes: Processes
) -> Shards | ConcatenatedShards:
    """What takes the model's vectors: the shards themselves, or, with members, whose embeddings are cached, theirs next to them."""
    if not cached:
        return shards
    return ConcatenatedShards(shards, ensemble_weights(retriever.model, retriever.members)[0], cached, indices_N, block, processes)


def _read_cached(cached: FrozenRows, indices_N: np.ndarray, shards: Shards | ConcatenatedShards, block: int, execution: Execution) -> None:
    """Copy the cached embeddings of a frozen tower to the shards, on the same grid of blocks."""
    for number in execution.processes.share_of(num_blocks(len(indices_N), block)):
        rows = np.array(cached.vectors_ND[indices_N[number * block : (number + 1) * block]])
        shards.append(rows)
        execution.on_progress(len(rows))


def _positives_of(positives: PositivePairs, queries_Q: np.ndarray) -> PositivePairs:
    """The positives of some queries, in their order."""
    counts = positives.counts[queries_Q]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    places_P = np.repeat(positives.offsets[queries_Q] - offsets[:-1], counts) + np.arange(offsets[-1])
    return PositivePairs(offsets, positives.indices_P[places_P])
