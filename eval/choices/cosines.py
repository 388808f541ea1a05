"""The scores a bi-encoder gives the pairs of a choice set.

Shape letters: N pairs, I images, C captions, D width of the embedding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import SiglipModel

from eval.choices.choice_set import ChoiceSet
from eval.encoder.encoder import embed_captions, embed_images
from eval.encoder.inputs import SiglipInputs
from eval.processes import Processes


def cosines(
    model: SiglipModel,
    inputs: SiglipInputs,
    choices: ChoiceSet,
    *,
    processes: Processes = Processes(),
    num_workers: int = 0,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> np.ndarray:
    """Cosine of every pair of `choices.pairs()`, float64 of shape (N,). Scale and bias change no order and are left out.

    Raises:
        UserError: a picture does not decode, or an embedding is not finite.
    """
    images_ID = embed_images(
        model, inputs, choices, num_workers=num_workers, names=choices.image_ids, processes=processes, on_progress=on_progress
    )
    captions_CD = embed_captions(model, inputs, choices.captions, processes=processes, on_progress=on_progress)
    images_N, captions_N = choices.pairs()
    return np.einsum("nd,nd->n", images_ID[images_N].astype(np.float64), captions_CD[captions_N].astype(np.float64))
