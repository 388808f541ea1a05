"""Further views embedded: what rerank/expansion.py found, as the vectors that rerank/blend.py searches with.

Shape letters: N items of a side (captions, or images), X further views, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import SiglipModel

from eval.encoder import embed_captions, embed_images
from eval.inputs import SiglipInputs
from eval.processes import Processes
from rerank.expansions.further_texts import FurtherTexts
from rerank.expansions.image_views import ImageViews
from rerank.views import Views


def expanded_captions(
    model: SiglipModel,
    inputs: SiglipInputs,
    expansions: FurtherTexts,
    vectors_ND: np.ndarray,
    *,
    processes: Processes = Processes(),
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> Views:
    """A side with further texts as views: captions with expansions, or images with additional captions.

    Args:
        vectors_ND: of the items themselves, float32 unit vectors.

    Raises:
        UserError: an embedding is not finite.
    """
    texts = list(dict.fromkeys(expansions.texts))  # one expansion of many captions is embedded once
    if not texts:
        return Views.plain(vectors_ND)
    place = {text: number for number, text in enumerate(texts)}
    vectors_TD = embed_captions(model, inputs, texts, processes=processes, on_progress=on_progress)
    return Views(vectors_ND, vectors_TD[[place[text] for text in expansions.texts]], expansions.offsets)


def expanded_images(
    model: SiglipModel,
    inputs: SiglipInputs,
    views: ImageViews,
    vectors_ND: np.ndarray,
    *,
    processes: Processes = Processes(),
    num_workers: int = 0,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> Views:
    """Images with crops or flips as views.

    Args:
        vectors_ND: of the images themselves, float32 unit vectors.

    Raises:
        UserError: a picture cannot be decoded, or an embedding is not finite.
    """
    shared: Any = {"processes": processes, "num_workers": num_workers, "on_progress": on_progress}
    return Views(vectors_ND, embed_images(model, inputs, views, names=views.names, **shared), views.offsets)


def joined(parts: Sequence[Views]) -> Views:
    """Several expansions of one side as one: of each item the views of the first, then those of the second, and so on.

    Raises:
        ValueError: they are of different items.
    """
    first = parts[0]
    if any(not np.array_equal(part.vectors_ND, first.vectors_ND) for part in parts[1:]):
        raise ValueError("these views are of different items")
    item_X = np.concatenate([np.repeat(np.arange(len(part.vectors_ND)), np.diff(part.offsets)) for part in parts])
    further_XD = np.concatenate([part.further_XD for part in parts])
    order = np.argsort(item_X, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(item_X, minlength=len(first.vectors_ND)))]).astype(np.int64)
    return Views(first.vectors_ND, further_XD[order], offsets)
