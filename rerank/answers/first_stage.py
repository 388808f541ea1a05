"""The first stage without ground truth: SigLIP embeds images and captions, and the top K of each query are found.

Embeddings are on disk, those of each process in a file of its own (eval/encoder/embedding_files.py), and the search streams tiles of them
(eval/search/streamed.py), so that memory holds the answers and not the scores. The search is given no positives.

Shape letters: I pictures, Q queries, K answers of each.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
from transformers import SiglipModel

from eval.dataset.retrieval_set import PositivePairs
from eval.encoder.embedding_files import EmbeddingRows, Shards
from eval.encoder.encoder import block_of, stream_captions, stream_images
from eval.encoder.inputs import SiglipInputs
from eval.errors import UserError, WriteError
from eval.execution import ONE_PROCESS, Execution
from eval.processes import Processes
from eval.search.ranking import Direction, Ranking
from eval.search.streamed import stream_search
from rerank.answers.collection import Collection

_REMEDY = "Mend it or take it away, or give --skip-broken to leave out every picture that does not decode"


@dataclass(frozen=True)
class FirstAnswers:
    """The result of the first stage; the same on every process.

    Attributes:
        collection: without the images that do not decode.
        rankings: of each direction; scores are cosines, and no query has a positive.
        scale, bias: of SigLIP's loss; logit = scale * cosine + bias.
        broken: ids of the pictures that were left out because they do not decode.
        embedding_seconds, search_seconds: wall clock.
    """

    collection: Collection
    rankings: dict[Direction, Ranking]
    scale: float
    bias: float
    broken: list[str]
    embedding_seconds: float
    search_seconds: float

    def logits(self, cosines: np.ndarray) -> np.ndarray:
        """SigLIP's logits of cosines, float32 of the same shape: above 0 the pair matches."""
        return np.float32(self.scale) * cosines.astype(np.float32) + np.float32(self.bias)


def find_first(
    model: SiglipModel,
    inputs: SiglipInputs,
    collection: Collection,
    directions: Sequence[Direction],
    top_k: int,
    *,
    skip_broken: bool = False,
    execution: Execution = ONE_PROCESS,
) -> FirstAnswers:
    """Embed and search; call on every process.

    Args:
        top_k: K; cut to the number of captions, or of pictures.
        skip_broken: leave out pictures that do not decode, instead of refusing them.
        execution: its device is the model's; progress is told of pictures + captions in all.

    Raises:
        UserError: a picture does not decode, none does, or an embedding is not finite.
        WriteError: the embeddings cannot be written to the system's temporary folder.
    """
    started, processes = time.perf_counter(), execution.processes
    with _shards(collection, model, processes) as (images, captions):
        remedy = None if skip_broken else _REMEDY
        stream_images(model, inputs, collection, images.append, names=collection.image_ids, remedy=remedy, execution=execution)
        images.seal()
        stream_captions(model, inputs, collection.captions, captions.append, execution=execution)
        captions.seal()
        broken = _blank_rows(images, processes)
        decodable = without_broken(collection, broken)
        vectors: dict[str, EmbeddingRows] = {"images": _DecodableRows(images, broken) if len(broken) else images, "captions": captions}
        embedded = time.perf_counter()
        rankings = {one: _search(one, vectors, top_k, execution) for one in directions}
    seconds = embedded - started, time.perf_counter() - embedded
    scale, bias = float(model.logit_scale.detach().float().exp()), float(model.logit_bias.detach().float())
    return FirstAnswers(decodable, rankings, scale, bias, [collection.image_ids[image] for image in broken.tolist()], *seconds)


@contextmanager
def _shards(collection: Collection, model: SiglipModel, processes: Processes) -> Iterator[tuple[Shards, Shards]]:
    """Open shards for images and captions, and close them at the end."""
    try:
        with ExitStack() as opened:
            with processes.jointly():
                images = opened.enter_context(Shards(None, collection.num_images, block_of(model, "image"), processes))
                captions = opened.enter_context(Shards(None, collection.num_captions, block_of(model, "text"), processes))
            yield images, captions
    except OSError as error:
        place = tempfile.gettempdir()
        raise WriteError(
            f"could not write the embeddings to {place}: {error}. Make room there, or name another folder in TMPDIR"
        ) from error


def _blank_rows(images: Shards, processes: Processes) -> np.ndarray:
    """Indices of the images that do not decode, whose rows are zeros: int64, ascending, the same on every process."""
    own = [indices[~vectors.any(axis=1)] for indices, vectors in images.own()]
    return np.sort(np.concatenate(processes.gather(np.concatenate([np.empty(0, dtype=np.int64), *own]))))


def without_broken(collection: Collection, broken: np.ndarray) -> Collection:
    """The collection without pictures that do not decode, by index.

    Raises:
        UserError: none is left.
    """
    if not len(broken):
        return collection
    if len(broken) == collection.num_images:
        raise UserError(f"--images {collection.pictures.source}: not one of its {len(broken)} pictures decodes; give other pictures")
    return collection.without_images(broken)


class _DecodableRows:
    """The embeddings without those of broken images, as `eval.encoder.embedding_files.EmbeddingRows`."""

    def __init__(self, shards: Shards, broken: np.ndarray) -> None:
        self._shards, self._rows = shards, np.setdiff1d(np.arange(shards.num_rows), broken)
        self.num_rows, self.width = len(self._rows), shards.width

    def rows(self, start: int, stop: int) -> np.ndarray:
        """As `eval.encoder.embedding_files.EmbeddingRows` says."""
        return self._shards.at(self._rows[start:stop])


def _search(direction: Direction, vectors: dict[str, EmbeddingRows], top_k: int, execution: Execution) -> Ranking:
    """The top K of every query, as a ranking without positives."""
    sides = ("images", "captions") if direction == "image_to_text" else ("captions", "images")
    queries, gallery = vectors[sides[0]], vectors[sides[1]]
    no_positives = np.empty(0, dtype=np.int64)
    offsets = np.zeros(queries.num_rows + 1, dtype=np.int64)
    found = stream_search(queries, gallery, PositivePairs(offsets, no_positives), top_k, execution=execution)
    return Ranking(direction, found.indices_QK, found.scores_QK, offsets, no_positives, no_positives)
