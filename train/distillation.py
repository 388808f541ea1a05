"""What a cross-encoder says of the pairs of a table, to be learnt from: its logits of what was mined, and of the images' own captions.

The table keeps logits as they come: strength and temperature are the loss's (train/soft_labels.py), so they are no part of its name.
Shape letters: N rows of the table, P pairs of an image and a caption of its own.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from eval.dataset import RetrievalSet
from rerank.scorer import PairScorer
from train.denoising import Matcher, sigmoid
from train.mining_config import DistilConfig
from train.negatives import Negatives


def distillation_rules(config: DistilConfig, scorer: PairScorer) -> list[Any]:
    """What of a distillation decides what stands in the table, for its name."""
    return [scorer.fingerprint, config.form]


def with_matcher_logits(negatives: Negatives, matcher: Matcher, dataset: RetrievalSet, config: DistilConfig) -> Negatives:
    """The table with the cross-encoder's logit of every row; in the form `lists`, of the own captions of every image that has one, too.

    A pair that denoising asked about is not scored again.

    Raises:
        UserError: a score is not finite.
    """
    images_N, captions_N = negatives.image_N, negatives.captions_N
    own_2P = own_pairs(dataset, np.unique(images_N)) if config.form == "lists" else np.empty((2, 0), dtype=np.int64)
    logits = matcher.logits(np.concatenate([images_N, own_2P[0]]), np.concatenate([captions_N, own_2P[1]]))
    logits_N, logits_P = logits[: len(images_N)], logits[len(images_N) :]
    own_C: np.ndarray | None = None
    if config.form == "lists":
        own_C = np.full(dataset.num_captions, np.nan, dtype=np.float32)
        own_C[own_2P[1]] = logits_P
    return replace(negatives, match_N=sigmoid(logits_N), matcher_logits_N=logits_N, own_matcher_logits_C=own_C)


def own_pairs(dataset: RetrievalSet, images: np.ndarray) -> np.ndarray:
    """(image, caption) of every caption that stands under one of these images, int64 of shape (2, P), by image."""
    counts = np.diff(dataset.caption_offsets)[images]
    starts = np.repeat(dataset.caption_offsets[images] - (np.cumsum(counts) - counts), counts)
    return np.stack([np.repeat(images, counts), starts + np.arange(int(counts.sum()))]).astype(np.int64)
