"""What the model itself ranks highest for each image that is to be mined for: the material the rules of mining choose from.

The pool is every caption of the split and, behind them, further captions that have no image. Shape letters: I images mined for, K depth,
D width, P true pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import SiglipModel

from eval.dataset import PositivePairs, RetrievalSet
from eval.encoder import embed_captions, embed_images
from eval.inputs import SiglipInputs
from eval.processes import Processes
from eval.search import search


@dataclass(frozen=True)
class Candidates:
    """The head of each image's own retrieval over the pool; the same on every process.

    Attributes:
        images_I: int64, the images mined for, ascending.
        captions_IK: int64, indices into the pool, best first: below num_captions a caption of the split, beyond it one of the further.
        cosines_IK: float32, their cosines.
        best_positive_I: float32, cosine of the image's best true caption.
        decodable_I: bool; False where the image's picture does not decode.
    """

    images_I: np.ndarray
    captions_IK: np.ndarray
    cosines_IK: np.ndarray
    best_positive_I: np.ndarray
    decodable_I: np.ndarray


def find_candidates(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: RetrievalSet,
    depth: int,
    *,
    folder: Path | None = None,
    further: Sequence[str] = (),
    images_I: np.ndarray | None = None,
    processes: Processes = Processes(),
    num_workers: int = 0,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> Candidates:
    """Embed and search.

    Args:
        depth: K, cut to the size of the pool.
        folder: where embeddings may lie meanwhile.
        further: captions without images, behind those of the split in the pool.
        images_I: the images to mine for, ascending; None: all.
        on_progress: called with the number of rows embedded.
    """
    images_I = np.arange(dataset.num_images) if images_I is None else images_I
    images_ID = embed_images(
        model, inputs, dataset, processes=processes, num_workers=num_workers, allow_undecodable=True, on_progress=on_progress
    )
    images_ID = images_ID[images_I]
    captions_CD = embed_captions(model, inputs, [*dataset.captions, *further], processes=processes, on_progress=on_progress)
    positives = _of_images(dataset.positives("image_to_text"), images_I)
    device = next(model.parameters()).device
    ranking = search("image_to_text", images_ID, captions_CD, positives, depth, device=device, processes=processes)
    best_I = best_positive_cosines(images_ID, captions_CD, positives.offsets, positives.indices_P)
    decodable_I = np.any(images_ID != 0, axis=1)
    return Candidates(images_I, ranking.top_indices_QK, ranking.top_scores_QK, best_I, decodable_I)


def _of_images(positives: PositivePairs, images_I: np.ndarray) -> PositivePairs:
    """The positives of some images alone."""
    of_I = [positives.of(image) for image in images_I.tolist()]
    return PositivePairs(np.concatenate([[0], np.cumsum([len(of) for of in of_I])]).astype(np.int64), np.concatenate(of_I))


def best_positive_cosines(images_ID: np.ndarray, captions_CD: np.ndarray, offsets: np.ndarray, indices_P: np.ndarray) -> np.ndarray:
    """Cosine of each image's best true caption, float32 of shape (I,)."""
    image_P = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    cosines_P = np.empty(len(indices_P), dtype=np.float32)
    for start in range(0, len(indices_P), 65536):  # bounds the memory of the two gathered sides
        part = slice(start, start + 65536)
        cosines_P[part] = np.einsum("pd,pd->p", images_ID[image_P[part]], captions_CD[indices_P[part]])
    return np.maximum.reduceat(cosines_P, offsets[:-1])
