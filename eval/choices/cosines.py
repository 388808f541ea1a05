"""The scores a bi-encoder gives the pairs of a choice set.

Shape letters: N pairs, I images, C captions, D width of the embedding.
"""

import numpy as np
from transformers import SiglipModel

from eval.choices.choice_set import ChoiceSet
from eval.encoder.encoder import embed_captions, embed_images
from eval.encoder.inputs import SiglipInputs
from eval.execution import ONE_PROCESS, Execution

_REMEDY = "Every picture of a choice set must decode: mend it, or take its rows out. train's --check-images names them all"


def cosines(model: SiglipModel, inputs: SiglipInputs, choices: ChoiceSet, *, execution: Execution = ONE_PROCESS) -> np.ndarray:
    """Cosine of every pair of `choices.pairs()`, float64 of shape (N,). Scale and bias change no order and are left out.

    Raises:
        UserError: a picture does not decode, or an embedding is not finite.
    """
    images_ID = embed_images(model, inputs, choices, names=choices.image_ids, execution=execution, remedy=_REMEDY)
    captions_CD = embed_captions(model, inputs, choices.captions, execution=execution)
    images_N, captions_N = choices.pairs()
    return np.einsum("nd,nd->n", images_ID[images_N].astype(np.float64), captions_CD[captions_N].astype(np.float64))
