"""Additional views as vectors: the texts and pictures of rerank/expansions, embedded for rerank/combine/combine.py.

Shape letters: N items of a side (captions, or images), X additional views, T different texts, D width.
"""

import numpy as np
from transformers import SiglipModel

from eval.encoder.encoder import embed_captions, embed_images
from eval.encoder.inputs import SiglipInputs
from eval.execution import ONE_PROCESS, Execution
from rerank.combine.views import Views
from rerank.expansions.additional_texts import AdditionalTexts
from rerank.expansions.image_views import ImageViews


def expanded_captions(
    model: SiglipModel,
    inputs: SiglipInputs,
    expansions: AdditionalTexts,
    vectors_ND: np.ndarray,
    *,
    execution: Execution = ONE_PROCESS,
) -> Views:
    """A side with additional texts as views: captions with expansions, or images with additional captions.

    Args:
        vectors_ND: of the items themselves, float32 unit vectors.

    Raises:
        UserError: an embedding is not finite.
    """
    texts = list(dict.fromkeys(expansions.texts))  # one expansion of many captions is embedded once
    if not texts:
        return Views.plain(vectors_ND)
    place = {text: number for number, text in enumerate(texts)}
    vectors_TD = embed_captions(model, inputs, texts, execution=execution)
    return Views(vectors_ND, vectors_TD[[place[text] for text in expansions.texts]], expansions.offsets)


def expanded_images(
    model: SiglipModel,
    inputs: SiglipInputs,
    views: ImageViews,
    vectors_ND: np.ndarray,
    *,
    execution: Execution = ONE_PROCESS,
) -> Views:
    """Images with crops or flips as views.

    Args:
        vectors_ND: of the images themselves, float32 unit vectors.

    Raises:
        UserError: a picture cannot be decoded, or an embedding is not finite.
    """
    return Views(vectors_ND, embed_images(model, inputs, views, names=views.names, execution=execution), views.offsets)
