"""What is written of a soup: soup.json and the model card of its export."""

from collections.abc import Sequence
from typing import Any

from eval.manifest.formats.hub import data_revision
from train.soup.average import Trial
from train.soup.evaluation import SoupStages, stage_name, trial_name


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


def soup_card(record: dict[str, Any]) -> str:
    """The README.md of a soup's export, from what soup.json holds, with the metadata the hub reads."""
    soup = record["soup"]
    lines = [f"- `{row['name']}` (weights {row['weights_sha256'][:16]}){_figures(row)}" for row in record["ingredients"] if row["kept"]]
    left_out = [f"- Left out: `{row['name']}`{_figures(row)}" for row in record["ingredients"] if not row["kept"]]
    measured = ""
    if "data" in record:
        low, high = (100 * bound for bound in soup["delta_ci95"])
        measured = (
            f"On `{record['data']['source']}`, split `{record['data']['split']}`: mean R@1 of both directions {100 * soup['mean_R@1']:.2f}"
            f", {100 * soup['delta']:+.2f} [{low:+.2f}, {high:+.2f}] against the best ingredient, `{soup['against']}`."
        )
        if record["kind"] == "greedy":
            measured += " Its ingredients were chosen on this very split: measure it on another."
    return (
        "---\nlibrary_name: transformers\npipeline_tag: zero-shot-image-classification\n"
        "tags: [siglip, image-text-retrieval, model-soup]\n---\n\n"
        f"# A {record['kind']} soup of {len(lines)} SigLIP checkpoint(s)\n\n"
        "Every weight, logit scale and bias included, is the mean of these checkpoints' (model soups, Wortsman et al. 2022, "
        f"arXiv 2203.05482), in float64, rounded once to float32. It costs as much as one. Weights {soup['weights_sha256'][:16]}.\n\n"
        + "\n".join(lines + left_out)
        + (f"\n\n{measured}\n" if measured else "\n\nIt was not measured when it was made.\n")
    )


def _figures(row: dict[str, Any]) -> str:
    return f": mean R@1 {100 * row['mean_R@1']:.2f}" if "mean_R@1" in row else ""
