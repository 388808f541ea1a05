"""The first stage: a SigLIP checkpoint embeds a split and searches it in both directions."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from transformers import SiglipModel

from eval.dataset.retrieval_set import RetrievalSet
from eval.embed.cache import cached_vectors, image_key, text_key
from eval.encoder.checkpoint import hash_weights
from eval.encoder.encoder import device_of, embed_captions, embed_images
from eval.encoder.inputs import SiglipInputs
from eval.execution import ONE_PROCESS, Execution
from eval.processes import Processes
from eval.progress import bar
from eval.search.exact import search_both
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage

DEFAULT_DEPTH = 32


@dataclass(frozen=True)
class Embedded:
    """The embeddings of a split by one model or an ensemble; the same on every process.

    Attributes:
        images_ID, captions_CD: float32 unit vectors.
        scale, bias: of the sigmoid loss: logit = scale x cosine + bias.
        image_seconds, caption_seconds: wall clock of embedding, where it was done: what is read from the cache has that of then.
        device: where to search.
        inputs: how the model reads its inputs.
    """

    images_ID: np.ndarray
    captions_CD: np.ndarray
    scale: float
    bias: float
    image_seconds: float
    caption_seconds: float
    device: torch.device
    inputs: Mapping[str, Any] = field(default_factory=dict)


def retrieve(
    name: str,
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: RetrievalSet,
    *,
    depth: int = DEFAULT_DEPTH,
    execution: Execution = ONE_PROCESS,
    cached: bool = False,
) -> Stage:
    """Embed and search a split in both directions; the same on every process.

    Args:
        depth: K of each query (at least 10, for the report).
        cached: weights that others will ask for too: embeddings are read from this machine's cache, or put there.
        execution: where to search is where the model is, whatever its device; progress is told of images + captions in all.

    Raises:
        UserError: an image does not decode, or an embedding is not finite.
    """
    embedded = embed(model, inputs, dataset, execution=execution, cached=cached)
    return find(name, embedded, dataset, depth=depth, processes=execution.processes)


def embed(
    model: SiglipModel, inputs: SiglipInputs, dataset: RetrievalSet, *, execution: Execution = ONE_PROCESS, cached: bool = False
) -> Embedded:
    """Both sides of a split as unit vectors; arguments and errors as of `retrieve`."""

    def images() -> np.ndarray:
        return embed_images(model, inputs, dataset, names=dataset.image_ids, execution=execution)

    def captions() -> np.ndarray:
        return embed_captions(model, inputs, dataset.captions, execution=execution)

    if cached:
        hash_of = cache(hash_weights)  # the weights stay meanwhile
        of_images = partial(image_key, model, inputs, dataset, execution, hash_of)
        of_captions = partial(text_key, model, inputs, dataset.captions, execution, hash_of)
        images_ID, image_seconds = cached_vectors(of_images, images, execution=execution)
        captions_CD, caption_seconds = cached_vectors(of_captions, captions, execution=execution)
    else:
        started = time.perf_counter()
        images_ID = images()
        image_seconds = time.perf_counter() - started
        captions_CD = captions()
        caption_seconds = time.perf_counter() - started - image_seconds
    scale, bias = float(model.logit_scale.detach().float().exp()), float(model.logit_bias.detach().float())
    precision = {} if execution.precision == "fp32" else {"precision": execution.precision}
    device, asked = device_of(model), inputs.contract | precision
    return Embedded(images_ID, captions_CD, scale, bias, image_seconds, caption_seconds, device, asked)


def find(name: str, embedded: Embedded, dataset: RetrievalSet, *, depth: int = DEFAULT_DEPTH, processes: Processes = Processes()) -> Stage:
    """Search what is embedded, in both directions; arguments and errors as of `retrieve`."""
    started = time.perf_counter()
    to_text, to_image = (dataset.positives(direction) for direction in DIRECTIONS)
    sides = embedded.images_ID, embedded.captions_CD, to_text, to_image
    rankings = search_both(*sides, max(depth, 10), execution=Execution(processes=processes, device=embedded.device))
    search_seconds = time.perf_counter() - started
    cost = {
        "seconds": embedded.image_seconds + embedded.caption_seconds + search_seconds,
        "image_seconds": embedded.image_seconds,
        "caption_seconds": embedded.caption_seconds,
        "search_seconds": search_seconds,
        "pairs_scored": 0,
    }
    return Stage(name, rankings, cost, inputs=embedded.inputs)


def progress_bar(text: str, dataset: RetrievalSet, processes: Processes) -> Any:
    """A bar over this process's share of a split's images and captions, shown by the main process; its `update` is an on_progress."""
    total = (dataset.num_images + dataset.num_captions) // processes.world_size
    return bar(total, text, "row", show=processes.is_main, leave=False)
