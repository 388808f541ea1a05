"""Candidate negatives: the top K captions that the model retrieves for each image, or the top K images for each caption.

The gallery of an image is the pool: every caption of the split, followed by additional captions that have no image. The gallery of a
caption is every image of the split. Embeddings are written to disk as they are made (eval/encoder/embedding_files.py) and searched in
blocks (eval/search/streamed.py), so memory does not grow with the pool. Shape letters: I images embedded, C captions embedded, Q queries,
K depth.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import SiglipModel

from eval.dataset.retrieval_set import PositivePairs
from eval.encoder.embedding_files import Shards
from eval.encoder.encoder import block_of, num_blocks, stream_captions, stream_images
from eval.encoder.inputs import SiglipInputs
from eval.execution import ONE_PROCESS, Execution
from eval.search.streamed import stream_search
from train.data.cached_embeddings import NOTHING_FROZEN, FrozenEmbeddings, FrozenRows
from train.data.caption_pool import CaptionPool, LazyStrings
from train.mining.faiss_index import approximate_search, recall_of_sample
from train.model.frozen_tower import ImageSubset

MinedFor = Literal["images", "captions"]
"""What the queries are: images, for which captions are mined, or the other way round."""


@dataclass(frozen=True)
class Retriever:
    """The model that ranks the candidates, and its embeddings that are cached already; captions' are those of the whole pool."""

    model: SiglipModel
    inputs: SiglipInputs
    frozen: FrozenEmbeddings = NOTHING_FROZEN


@dataclass(frozen=True)
class Candidates:
    """The top K captions of the pool for each image, or images of the split for each caption; the same on every process.

    Attributes:
        queries_Q: int64, the images or captions mined for, in the order given.
        items_QK: int64, captions (indices into the pool) or images, best first. -1, at the end: no candidate, where an approximate search
            found fewer than K, or fewer images than K decode.
        cosines_QK: float32, their cosines; -inf where there is no candidate.
        best_positive_Q: float32, cosine of the query's best positive; -inf where no positive image of a caption decodes.
        readable_Q: bool; False where the image, or every positive image of the caption, does not decode.
        recall: recall of an approximate search against the exact one, measured on a sample; None where the search was exact.
    """

    queries_Q: np.ndarray
    items_QK: np.ndarray
    cosines_QK: np.ndarray
    best_positive_Q: np.ndarray
    readable_Q: np.ndarray
    mined_for: MinedFor = "images"
    recall: float | None = None


def find_candidates(
    retriever: Retriever,
    pool: CaptionPool,
    depth: int,
    queries_Q: np.ndarray | None = None,
    *,
    mined_for: MinedFor = "images",
    folder: Path | None = None,
    num_probes: int | None = None,
    execution: Execution = ONE_PROCESS,
) -> Candidates:
    """Embed queries and gallery, and search the pool for each image or all images for each caption.

    Only the queries and their gallery are embedded. On a CPU the cosines of some queries equal those of a search for all bit for bit, as an
    embedding depends neither on the other rows of its block nor on its place among them.

    Args:
        depth: K, cut to the size of the gallery.
        queries_Q: the images (ascending) or captions to mine for; None: all of the split.
        folder: where embeddings lie meanwhile, each process's own on its own machine's disk; made if need be; None: the temporary folder.
        num_probes: search with FAISS, so many lists for each query, instead of exactly.
        execution: the search runs on its device; progress is told of rows embedded.

    Raises:
        UserError: an embedding is not finite.
        OSError: the embeddings cannot be written.
    """
    dataset, of_images = pool.dataset, mined_for == "images"
    if queries_Q is None:
        queries_Q = np.arange(dataset.num_images if of_images else dataset.num_captions)
    images_I, captions_C = (queries_Q, np.arange(len(pool))) if of_images else (np.arange(dataset.num_images), queries_Q)
    positives = _positives_of(dataset.positives("image_to_text" if of_images else "text_to_image"), queries_Q)
    with _embedded(retriever, pool, images_I, captions_C, folder, execution) as (images, captions):
        queries, gallery = (images, captions) if of_images else (captions, images)
        if num_probes is None:
            found, recall = stream_search(queries, gallery, positives, depth, execution=execution), None
        else:
            found = approximate_search(queries, gallery, positives, depth, num_probes, execution)
            recall = recall_of_sample(queries, gallery, found, execution)
    readable_Q = ~found.empty_Q if of_images else np.isfinite(found.best_positive_Q)
    return Candidates(queries_Q, found.indices_QK, found.scores_QK, found.best_positive_Q, readable_Q, mined_for, recall)


@contextmanager
def _embedded(
    retriever: Retriever, pool: CaptionPool, images_I: np.ndarray, captions_C: np.ndarray, folder: Path | None, execution: Execution
) -> Iterator[tuple[Shards, Shards]]:
    """Shards with the vectors of images of the split and captions of the pool; closed at the end."""
    model, inputs, frozen = retriever.model, retriever.inputs, retriever.frozen
    image_block, text_block = block_of(model, "image"), block_of(model, "text")
    with ExitStack() as opened:
        with execution.processes.jointly():
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            images = opened.enter_context(Shards(folder, len(images_I), image_block, execution.processes))
            captions = opened.enter_context(Shards(folder, len(captions_C), text_block, execution.processes))
        if frozen.images is not None:
            _read_cached(frozen.images, images_I, images, image_block, execution)
        else:
            subset = ImageSubset(pool.dataset, images_I)
            stream_images(model, inputs, subset, images.append, block=image_block, remedy=None, execution=execution)
        images.seal()
        if frozen.captions is not None:
            _read_cached(frozen.captions, captions_C, captions, text_block, execution)
        else:
            texts = LazyStrings(lambda place: pool.text(int(captions_C[place])), len(captions_C))
            stream_captions(model, inputs, texts, captions.append, block=text_block, execution=execution)
        captions.seal()
        yield images, captions


def _read_cached(cached: FrozenRows, indices_N: np.ndarray, shards: Shards, block: int, execution: Execution) -> None:
    """Copy the cached embeddings of a frozen tower to the shards, on the same grid of blocks."""
    blocks = num_blocks(len(indices_N), block)
    with execution.rounds(blocks) as advance:
        for number in execution.processes.share_of(blocks):
            rows = np.array(cached.vectors_ND[indices_N[number * block : (number + 1) * block]])
            shards.append(rows)
            advance(len(rows))


def _positives_of(positives: PositivePairs, queries_Q: np.ndarray) -> PositivePairs:
    """The positives of some queries, in their order."""
    counts = positives.counts[queries_Q]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    places_P = np.repeat(positives.offsets[queries_Q] - offsets[:-1], counts) + np.arange(offsets[-1])
    return PositivePairs(offsets, positives.indices_P[places_P])
