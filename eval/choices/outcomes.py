"""Which choices are correct, example by example. Equal scores are wrong, so a model that gives everything the same score gets 0.

Shape letters: C captions of an example.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from eval.choices.choice_set import ChoiceExample, ChoiceKind, ChoiceSet

METRICS: dict[ChoiceKind, tuple[str, ...]] = {"choice": ("accuracy",), "pair": ("text_score", "image_score", "group_score")}


def accuracy(scores_C: np.ndarray) -> bool:
    """Whether the true caption, the first, scores strictly above every false one."""
    return bool(scores_C[0] > scores_C[1:].max())


def pair_scores(scores_22: np.ndarray) -> tuple[bool, bool, bool]:
    """(text, image, group score) of two images (rows) and two captions (columns), of which the diagonal is true.

    Text: each image prefers its own caption. Image: each caption prefers its own image. Group: both (Thrush et al. 2022, section 4.2).
    """
    own_2, other_2 = np.diag(scores_22), scores_22[[0, 1], [1, 0]]
    text, image = bool((own_2 > other_2).all()), bool((own_2 > other_2[::-1]).all())
    return text, image, text and image


def outcomes(example: ChoiceExample, scores: np.ndarray) -> dict[str, bool]:
    """The example's metrics, from its scores of shape (images, captions)."""
    found = (accuracy(scores[0]),) if example.kind == "choice" else pair_scores(scores)
    return dict(zip(METRICS[example.kind], found, strict=True))


def chances(example: ChoiceExample) -> dict[str, float]:
    """The expectation of random scores: 1 / captions; for a pair 1/4, 1/4 and, of the 24 orders of four scores, the 4 correct ones."""
    found = (1 / len(example.captions),) if example.kind == "choice" else (1 / 4, 1 / 4, 1 / 6)
    return dict(zip(METRICS[example.kind], found, strict=True))


def outcome_table(choices: ChoiceSet, stages: Mapping[str, np.ndarray]) -> pa.Table:
    """The rows of choices.parquet: one a stage (name -> scores of `choices.pairs()`) and example, with its metrics and those by chance.

    The metrics of the other kind are null. `unit` is what is resampled: the example's (first) image, for examples of one image are not
    independent.

    Raises:
        ValueError: a stage has another number of scores, or one that is not finite.
    """
    rows = []
    for stage, scores_N in stages.items():
        if not np.isfinite(scores_N).all():
            raise ValueError(f"stage {stage!r} has scores that are not finite")
        for example, scores in zip(choices.examples, choices.scores_by_example(scores_N), strict=True):
            rows.append(
                {
                    "stage": stage,
                    "id": example.id,
                    "kind": example.kind,
                    "category": example.category,
                    "unit": choices.images[example.images[0]].key,
                    "images": [choices.images[image].id for image in example.images],
                    "captions": [choices.captions[caption] for caption in example.captions],
                    "scores": scores.ravel().tolist(),
                    **outcomes(example, scores),
                    **{f"{metric}_chance": chance for metric, chance in chances(example).items()},
                }
            )
    text, metrics = pa.string(), [metric for names in METRICS.values() for metric in names]
    columns = [("stage", text), ("id", text), ("kind", text), ("category", text), ("unit", text)]
    columns += [("images", pa.list_(text)), ("captions", pa.list_(text)), ("scores", pa.list_(pa.float64()))]
    columns += [(metric, pa.bool_()) for metric in metrics] + [(f"{metric}_chance", pa.float64()) for metric in metrics]
    return pa.Table.from_pylist(rows, schema=pa.schema(columns))
