"""One loaded checkpoint, or vectors of any model, measured on one split: search, check, and keep the per-query numbers.

Shape letters: I images, C captions, D width.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import SiglipModel

from eval.dataset.retrieval_set import PositivePairs, RetrievalSet
from eval.encoder.inputs import SiglipInputs
from eval.errors import UserError
from eval.execution import ONE_PROCESS, Execution
from eval.metrics.evaluate import query_table
from eval.metrics.metrics import average_precision_at_r, r_precision
from eval.metrics.significance import resample_weights
from eval.metrics.stage_metrics import StageMetrics
from eval.search.exact import search_both
from eval.search.ranking import DIRECTIONS, Direction
from eval.search.retrieve import retrieve


def measure_checkpoint(
    stage: str, model: SiglipModel, inputs: SiglipInputs, dataset: RetrievalSet, *, execution: Execution = ONE_PROCESS, cached: bool = False
) -> pa.Table:
    """The rows of queries.parquet without the retrieved items, of both directions; the same on every process; `cached` as of `retrieve`.

    Raises:
        UserError: a picture does not decode, or something is not finite.
    """
    found = retrieve(stage, model, inputs, dataset, execution=execution, cached=cached)
    return query_table(dataset, [found]).drop_columns(["top_ids", "top_scores"])


def measure_embeddings(
    images_ID: np.ndarray, captions_CD: np.ndarray, image_ids: Sequence[Hashable], caption_image_ids: Sequence[Hashable]
) -> dict[Direction, dict[str, Any]]:
    """The retrieval metrics of any model's vectors, by direction: R@1, R@5, R@10, ranks, MRR, mAP@R, R-Precision; each with its 95%
    interval (bootstrap over images) under "ci95".

    A caption is relevant to its own image, and every image to its captions. Vectors are brought to length 1, so that scores are cosines;
    equal scores are in the order given.

    Args:
        images_ID, captions_CD: vectors of the same width, of any length above 0.
        image_ids: of each image, each once.
        caption_image_ids: of each caption, the id of its image.

    Raises:
        UserError: shapes or ids do not fit together, or an image has no caption.
        NotFinite: a vector is not finite.

    >>> images = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> captions = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    >>> found = measure_embeddings(images, captions, ["cat", "dog"], ["cat", "dog", "dog"])
    >>> found["image_to_text"]["R@1"], round(found["text_to_image"]["R@1"], 3)
    (1.0, 0.667)
    """
    images, captions = np.asarray(images_ID), np.asarray(captions_CD)
    number = {name: place for place, name in enumerate(image_ids)}
    faults = [
        f"{noun}: expected a vector for each of {len(ids)} ids, an array of shape ({len(ids)}, width); found shape {vectors.shape}"
        for noun, vectors, ids in (("images", images, image_ids), ("captions", captions, caption_image_ids))
        if vectors.ndim != 2 or len(vectors) != len(ids)
    ]
    if not faults and images.shape[1] != captions.shape[1]:
        faults.append(f"expected vectors of one width, found {images.shape[1]} of images and {captions.shape[1]} of captions")
    if len(number) < len(image_ids):
        faults.append(f"image_ids: expected each once, found {len(number)} different ones of {len(image_ids)}")
    if unknown := [name for name in caption_image_ids if name not in number]:
        faults.append(f"caption_image_ids: {len(unknown)} are no image's id, e.g. {unknown[:3]}")
    if without := sorted(map(str, set(number) - set(caption_image_ids))):
        faults.append(f"{len(without)} images have no caption, e.g. {without[:3]}: leave them out, or give them one")
    if faults:
        raise UserError("; ".join(faults))
    image_C = np.array([number[name] for name in caption_image_ids], dtype=np.int64)
    counts_I = np.bincount(image_C, minlength=len(number))
    to_text = PositivePairs(np.concatenate([[0], np.cumsum(counts_I)]), np.argsort(image_C, kind="stable"))
    to_image = PositivePairs(np.arange(len(image_C) + 1), image_C)
    rankings = search_both(_unit(images), _unit(captions), to_text, to_image, 1)
    weights_SI = resample_weights(len(number))
    found: dict[Direction, dict[str, Any]] = {}
    for direction, image_Q in zip(DIRECTIONS, (np.arange(len(number)), image_C), strict=True):
        ranking = rankings[direction]
        ranked = ranking.positive_offsets, ranking.positive_ranks_P
        precisions = average_precision_at_r(*ranked), r_precision(*ranked)
        found[direction] = StageMetrics.of_queries(ranking.best_ranks(), precisions, image_Q, len(number)).figures(weights_SI)
    return found


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float32; those that are not finite stay so, for the search to refuse."""
    wide_ND = vectors_ND.astype(np.float64)
    lengths_N1 = np.linalg.norm(wide_ND, axis=1, keepdims=True)
    if zeros := int((lengths_N1 == 0).sum()):
        raise UserError(f"{zeros} of {len(vectors_ND)} vectors are all zeros, and have no direction: leave them out")
    with np.errstate(invalid="ignore"):
        return np.ascontiguousarray(wide_ND / lengths_N1, dtype=np.float32)
