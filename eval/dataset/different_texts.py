"""The gallery in which each text is once: for class names or product titles, where few texts stand under many images.

Shape letters: C captions, T different texts, P positive pairs.
"""

import copy
from typing import Literal

import numpy as np

from eval.dataset.retrieval_set import RetrievalSet, StringColumn

Gallery = Literal["every", "different"]
"""every: each caption is ranked, and asks, as often as it is there; different: each normalised text once."""
LARGE_SHARE = 0.1
"""Share of captions that repeat a text, above which a report has figures of both galleries."""


def with_different_texts(dataset: RetrievalSet) -> RetrievalSet:
    """The data set with the first caption of each normalised text alone, relevant to every image that a repeat of it is relevant to.

    As a query it belongs, in the bootstrap over images, to the image it is first found under.
    """
    _, first_T, text_C = np.unique(dataset.caption_hash_C, return_index=True, return_inverse=True)
    kept_T = np.sort(first_T)
    place_C = np.searchsorted(kept_T, first_T[text_C])
    images_P, captions_P = dataset.positive_pairs()
    images_P, captions_P = np.unique(np.stack([images_P, place_C[captions_P]]), axis=1)
    other = copy.copy(dataset.with_positive_pairs(images_P, captions_P, dataset.truth | {"gallery": "different"}))
    other.every, other.kept_captions = dataset, kept_T
    other.captions = StringColumn([dataset.captions[caption] for caption in kept_T.tolist()])
    other.columns = {name: [values[caption] for caption in kept_T.tolist()] for name, values in dataset.columns.items()}
    other.texts = {name: [values[caption] for caption in kept_T.tolist()] for name, values in dataset.texts.items()}
    other.caption_hash_C, other.caption_image_C = dataset.caption_hash_C[kept_T], dataset.caption_image_C[kept_T]
    other._caption_place_C = dataset.caption_place_C[kept_T]
    counts_I = np.bincount(other.caption_image_C, minlength=dataset.num_images)
    other.caption_offsets = np.concatenate([[0], np.cumsum(counts_I)])  # an image whose texts are all found earlier has none
    return other


def other_gallery(dataset: RetrievalSet) -> RetrievalSet | None:
    """The data set with the other gallery, where more than LARGE_SHARE of all captions repeat a text; else None."""
    every = dataset.every or dataset
    num_repeated = every.num_captions - len(np.unique(every.caption_hash_C))
    if num_repeated <= LARGE_SHARE * every.num_captions:
        return None
    return every if dataset.every is not None else with_different_texts(dataset)
