"""What is written of a soup: soup.json and the model card of its export."""

import os
from collections.abc import Sequence
from typing import Any

from eval.encoder.inputs import SiglipInputs
from eval.manifest.formats.hub import data_revision
from train.engine.card import Base, data_words, metadata, shown_name
from train.siglip.card import PIPELINE, TAGS, limits, usage
from train.soup.average import Trial
from train.soup.evaluation import SoupStages, stage_name, trial_name
from train.soup.ingredients import Ingredient


def make_record(
    stages: SoupStages,
    alone: Sequence[float],
    members: tuple[int, ...],
    trials: Sequence[Trial],
    *,
    is_greedy: bool,
    stage: str,
    sha256: str,
) -> dict[str, Any]:
    """What soup.json holds; what is not measured is left out.

    Args:
        alone: score of each ingredient; empty: none was measured.
        stage: the soup's in the per-query rows.
        sha256: of the soup's weights.
    """
    names, dataset = [ingredient.name for ingredient in stages.ingredients], stages.dataset
    rows: list[dict[str, Any]] = [
        {"name": name, "weights_sha256": stages.sha256[index], "kept": index in members} for index, name in enumerate(names)
    ]
    soup: dict[str, Any] = {"members": [names[index] for index in members], "weights_sha256": sha256}
    record: dict[str, Any] = {"kind": "greedy" if is_greedy else "uniform", "ingredients": rows, "soup": soup}
    if dataset is not None:
        best = max(range(len(alone)), key=lambda index: alone[index])
        for index, row in enumerate(rows):
            row |= {"stage": stage_name(index)} | stages.recall(stage_name(index), stage_name(best))
        soup |= {"stage": stage, "against": names[best]} | stages.recall(stage, stage_name(best))
        revision = {} if (commit := data_revision(dataset.source)) is None else {"revision": commit}
        counts = {"num_images": dataset.num_images, "num_captions": dataset.num_captions}
        record["data"] = {"source": dataset.source, "split": dataset.split, **counts, "sha256": dataset.sha256()} | revision
    if is_greedy:
        record["order"] = [names[index] for index in (members[0], *(trial.ingredient for trial in trials))]
        record["trials"] = [_trial_record(trial, names) for trial in trials]
    return record


def _trial_record(trial: Trial, names: Sequence[str]) -> dict[str, Any]:
    why = "it does not lower mean R@1" if trial.kept else "it lowers mean R@1"
    return {
        "ingredient": names[trial.ingredient],
        "stage": trial_name(trial.ingredient),
        "members_before": [names[index] for index in trial.members],
        "before": trial.before,
        "mean_R@1": trial.score,
        "kept": trial.kept,
        "why": why,
    }


def soup_card(record: dict[str, Any], ingredients: Sequence[Ingredient], inputs: SiglipInputs) -> str:
    """The README.md of a soup's export, from what soup.json holds, with the metadata the hub reads.

    Args:
        ingredients: as in the record.
        inputs: how the soup reads captions and pictures.
    """
    soup = record["soup"]
    rows, kept = record["ingredients"], [one for one, row in zip(ingredients, record["ingredients"], strict=True) if row["kept"]]
    lines = [f"- `{_shown(row['name'])}` (weights {row['weights_sha256'][:16]}){_figures(row)}\n" for row in rows if row["kept"]]
    lines += [f"- Left out: `{_shown(row['name'])}`{_figures(row)}\n" for row in rows if not row["kept"]]
    base = Base.of_all(dict.fromkeys(one.name if one.run is None else one.run[0].base for one in kept))
    measured = "It was not measured when it was made."
    if "data" in record:
        data, (low, high) = record["data"], (100 * bound for bound in soup["delta_ci95"])
        measured = (
            f"On {data_words(data['source'], data['sha256'])}, split `{data['split']}`: mean R@1 of both directions "
            f"{100 * soup['mean_R@1']:.2f}, {100 * soup['delta']:+.2f} [{low:+.2f}, {high:+.2f}] against the best ingredient, "
            f"`{_shown(soup['against'])}`."
        )
        if record["kind"] == "greedy":
            measured += " Its ingredients were chosen on this very split: measure it on another."
    return (
        metadata("soup", base, pipeline=PIPELINE, tags=(*TAGS, "model-soup"))
        + f"# A {record['kind']} soup of {len(kept)} SigLIP checkpoint(s)\n\n"
        + usage(inputs)
        + "## How it was made\n\nEvery weight, logit scale and bias included, is the mean of these checkpoints' (model soups, Wortsman et "
        + "al. 2022, arXiv 2203.05482), in float64, rounded once to float32. It costs as much as one. "
        + f"Weights {soup['weights_sha256'][:16]}.\n\n"
        + f"{''.join(lines)}{base.line()}\n## Results\n\n{measured}\n\n{limits(inputs)}"
    )


def _shown(name: str) -> str:
    """An ingredient as the card names it: a run's checkpoint RUN@STEP, a folder by its name, a model of the hub by its id."""
    folder, at, step = name.rpartition("@")
    return f"{shown_name(folder)}@{step}" if at and os.path.isdir(folder) else shown_name(name)


def _figures(row: dict[str, Any]) -> str:
    return f": mean R@1 {100 * row['mean_R@1']:.2f}" if "mean_R@1" in row else ""
