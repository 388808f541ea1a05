"""The first stage: a SigLIP checkpoint embeds a split and searches it in both directions."""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import SiglipModel

from eval.dataset import RetrievalSet
from eval.encoder import embed_captions, embed_images
from eval.evaluator import Stage
from eval.inputs import SiglipInputs
from eval.processes import Processes
from eval.progress import bar
from eval.ranking import DIRECTIONS
from eval.search import search_both

DEFAULT_DEPTH = 32


def retrieve(
    name: str,
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: RetrievalSet,
    *,
    depth: int = DEFAULT_DEPTH,
    processes: Processes = Processes(),
    num_workers: int = 0,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> Stage:
    """Embed and search a split in both directions; the same on every process.

    Args:
        name: the stage's name in the report.
        depth: how many of the best to keep for each query (at least 10 are kept, for the report).
        on_progress: called with each number of rows embedded on this process; images + captions in all.

    Raises:
        UserError: a picture does not decode, or something is not finite.
    """
    started = time.perf_counter()
    shared: Any = {"processes": processes, "on_progress": on_progress}
    images_ID = embed_images(model, inputs, dataset, num_workers=num_workers, names=dataset.image_ids, **shared)
    image_seconds = time.perf_counter() - started
    started = time.perf_counter()
    captions_CD = embed_captions(model, inputs, dataset.captions, **shared)
    caption_seconds = time.perf_counter() - started
    device = next(model.parameters()).device
    started = time.perf_counter()
    to_text, to_image = (dataset.positives(direction) for direction in DIRECTIONS)
    rankings = search_both(images_ID, captions_CD, to_text, to_image, max(depth, 10), device=device, processes=processes)
    search_seconds = time.perf_counter() - started
    cost = {
        "seconds": image_seconds + caption_seconds + search_seconds,
        "image_seconds": image_seconds,
        "caption_seconds": caption_seconds,
        "search_seconds": search_seconds,
        "pairs_scored": 0,
    }
    return Stage(name, rankings, cost, inputs=inputs.contract)


def progress_bar(text: str, dataset: RetrievalSet, processes: Processes) -> Any:
    """A bar over this process's share of a split's images and captions, shown by the main process; its `update` is an on_progress."""
    total = (dataset.num_images + dataset.num_captions) // processes.world_size
    return bar(total, text, "row", show=processes.is_main, leave=False)


def use_exact_float32() -> None:
    """Turn TF32 off, so that float32 means float32 on a GPU too (cuDNN uses TF32 by default)."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
