"""Probes of a cross-encoder before use: do its scores depend on the image, on the caption, and on the two together?

A checkpoint can be complete and finite and yet rank at random: its head or its cross-attention is zero, or its code lets the
captions of a batch attend to each other. Three calls of `score` on two synthetic images and three captions show it, for any kind.

What counts as a difference. The scores of a trained cross-encoder may be close together on such images, and their scale is that of its
head (weights of 1e-5 are as good as weights of 1), so no fixed threshold separates signal from noise. Float noise is measured instead:
the same pair scored in another batch, with other padding, differs by the order of summation. A difference counts when it is more than
four times that, and more than four units in the last place of the largest score (in case the measured noise happens to be 0). In float32
that is a relative 1e-6 or so. A model that ignores one side computes the same sums in the same order, and its scores differ by exactly 0
or by the rounding of one addition.

Shape letters: I images, C captions.
"""

import numpy as np
from PIL import Image, ImageDraw

from eval.errors import SettingError
from rerank.scorers.scorer import PairScorer, Precision
from rerank.scorers.supported import RERANKER

# Of different words and different lengths, so that they differ even for a vocabulary with none of the words.
CAPTIONS = (
    "a red circle",
    "two dogs run on the grass below a blue sky",
    "a green square left of a blue circle",
)
# How much the score of a pair may change in another batch, relative to the largest score where that is over 1. Float noise of base-size
# towers (BLIP, ViLT, BridgeTower, random weights) was up to 3e-6 in float32; bfloat16 rounds 2^15 times as coarsely where it rounds, which
# is in some of the steps.
MOST_MOVED: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 5e-2}
_TIMES_NOISE = 4.0
_ALONE = 0  # the shortest caption, which is scored again by itself, without padding


def check_scorer(scorer: PairScorer, model: str, precision: Precision = "float32") -> None:
    """Refuse a scorer that cannot rank: three calls of `score`, two images and three captions.

    Args:
        model: folder or hub id, for the message.
        precision: of the scorer.

    Raises:
        UserError: its scores are not finite, depend on their batch, are constant, or ignore the image, the caption, or their
            combination.
    """
    fault = fault_of(*probe(scorer), precision)
    if fault is not None:
        raise SettingError(
            RERANKER,
            f"{model!r} ({scorer.name}) cannot rerank: {fault}. Found by scoring {len(CAPTIONS)} captions of two "
            "drawn pictures (rerank/scorers/probes.py). Take a checkpoint that was trained to match images and captions.",
        )


def probe(scorer: PairScorer) -> tuple[np.ndarray, float]:
    """Scores of each synthetic image with each caption, float64 of shape (I, C), and the first image's with the shortest caption alone."""
    pictures = [drawn_disc(), drawn_stripes()]
    scores_IC = np.stack([np.asarray(scorer.score(picture, CAPTIONS), dtype=np.float64) for picture in pictures])
    alone = np.asarray(scorer.score(pictures[0], [CAPTIONS[_ALONE]]), dtype=np.float64)
    if scores_IC.shape != (len(pictures), len(CAPTIONS)) or alone.shape != (1,):
        raise ValueError(f"Scorer {scorer.name}: expected one score per caption; found shapes {scores_IC.shape[1:]} and {alone.shape}.")
    return scores_IC, float(alone[0])


def fault_of(scores_IC: np.ndarray, score_alone: float, precision: Precision) -> str | None:
    """Why a scorer with these scores cannot rank; None if it can."""
    if not (np.isfinite(scores_IC).all() and np.isfinite(score_alone)):
        return "its scores are not finite (NaN or infinity)"
    largest = float(np.abs(scores_IC).max())
    moved = abs(score_alone - float(scores_IC[0, _ALONE]))
    if moved > MOST_MOVED[precision] * max(1.0, largest):
        return (
            f"the same picture and caption score {score_alone:.6g} alone and {scores_IC[0, _ALONE]:.6g} in a batch with other captions; a "
            "score must not depend on its batch (padding that is attended to, batch statistics, dropout or a state kept between calls)"
        )
    noise = _TIMES_NOISE * max(moved, float(np.spacing(np.float32(largest))))
    by_picture, by_caption = _spread(scores_IC, axis=0), _spread(scores_IC, axis=1)
    if max(by_picture, by_caption) <= noise:
        return f"its score is constant ({scores_IC[0, 0]:.6g}), whatever the picture and the caption, as with a matching head of zeros"
    if by_picture <= noise:
        return "it ignores the picture: a caption scores the same with every picture, as a text model's or with cross-attention of zeros"
    if by_caption <= noise:
        return "it ignores the caption: a picture scores the same with every caption"
    if _spread(scores_IC - scores_IC[:, :1], axis=0) <= noise:
        return (
            "it reads picture and caption apart: its score is one number for the picture plus one for the caption, so every picture "
            "has the same best caption, as with cross-attention of zeros"
        )
    return None


def _spread(scores_IC: np.ndarray, *, axis: int) -> float:
    """The largest difference between scores along an axis."""
    return float(np.ptp(scores_IC, axis=axis).max())


def drawn_disc() -> Image.Image:
    """A red disc on white, 72 x 72 pixels."""
    picture = Image.new("RGB", (72, 72), "white")
    ImageDraw.Draw(picture).ellipse((10, 10, 52, 52), fill=(220, 30, 30))
    return picture


def drawn_stripes() -> Image.Image:
    """Black and yellow stripes with a dark blue corner; of the same size as the disc, so that a model that reads only sizes is detected."""
    picture = Image.new("RGB", (72, 72), (240, 200, 20))
    draw = ImageDraw.Draw(picture)
    for top in range(0, 72, 16):
        draw.rectangle((0, top, 71, top + 7), fill="black")
    draw.rectangle((40, 40, 71, 71), fill=(10, 20, 110))
    return picture
