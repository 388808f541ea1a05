"""Punctuation between two digits: "1.5 l" and "15 l" are one caption by the rule of normalised captions (docs/captions.md), unless every
tokenizer that reads them keeps punctuation, as SigLIP 2's does; then the mark counts."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from eval.captions import caption_hash, has_marks, normalise
from eval.dataset.retrieval_set import GroupHashes, RetrievalSet


def merges_by_marks(captions: Iterable[str]) -> bool:
    """True if two different captions are one by punctuation between digits alone."""
    texts = list(captions)
    marked = {normalise(text) for text in texts if has_marks(text)}
    if not marked:
        return False
    kept = {(plain, normalise(text, keeps_marks=True)) for text in texts if (plain := normalise(text)) in marked}
    return len(kept) > len({plain for plain, _ in kept})


def keeping_marks(dataset: RetrievalSet) -> RetrievalSet:
    """The data set with punctuation between digits as part of its normalised captions: what is positive, relevant and mined follows."""
    other = copy.copy(dataset)
    other.keeps_marks, other.truth = True, dataset.truth | {"digit_marks": "kept"}
    other.caption_hash_C = np.array([caption_hash(caption, keeps_marks=True) for caption in dataset.captions], dtype=np.int64)
    other.true_hashes = GroupHashes(other.group_I[other.caption_image_C], other.caption_hash_C)
    return other


def as_read_by(inputs: Sequence[Any], datasets: Sequence[RetrievalSet], additional: Iterable[str] = ()) -> list[RetrievalSet]:
    """The data sets of one job by the rule that suits its tokenizers: punctuation between digits counts where each of them keeps it and it
    makes a difference to these captions. A set keeps its place; without a difference it is the very same.

    Args:
        inputs: `eval.encoder.inputs.SiglipInputs` of every checkpoint that reads them.
        additional: captions beside those of the sets that are compared with them too.
    """
    texts = (text for source in (*(dataset.captions for dataset in datasets), additional) for text in source)
    if all(one.keeps_punctuation for one in inputs) and merges_by_marks(texts):
        return [keeping_marks(dataset) for dataset in datasets]
    return list(datasets)
