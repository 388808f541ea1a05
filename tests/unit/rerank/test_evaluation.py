"""rerank/evaluation.py: the same plan given as options and as configuration gives the same report, and each can say what the other can."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel

from eval.__main__ import make_parser, parse
from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import SettingError
from rerank.asked import read_plan
from rerank.calibration import Reranker
from rerank.combine.spec import Combining
from rerank.evaluation import EvaluationPlan, Report, evaluate_plan
from rerank.reorder.plan import Plan, Tuning
from tests.small_job import SmallWorld, load
from train.config.job import JobConfig
from train.siglip.stages import evaluation_plan

KEYS = {
    "--model": "model.base",
    "--data": "data.source",
    "--split": "data.test_split",
    "--split-file": ("data.split.val", "data.split.test", "data.split.seed"),
    "--skip-missing": "data.skip_missing",
    "--skip-broken": "data.skip_broken",
    "--image-root": "data.image_root",
    "--column": "data.columns",
    "--output": "runs_folder",
    "--rerank": "rerank.model",
    "--top-k": "rerank.top_k",
    "--pair-scores": "rerank.pair_scores",
    "--no-pair-scores": "rerank.pair_scores",
    "--score": "rerank.score",
    "--seconds": "rerank.seconds",
    "--skip-margin": "rerank.skip_margin",
    "--choose-on": "data.val_split",
    "--calibrate-on": ("evaluation.calibration", "data.val_split"),
    "--choose": ("evaluation.choose", "rerank.fusion", "rerank.adaptive"),
    "--max-loss": "rerank.adaptive_max_loss",
    "--also": "evaluation.models",
    "--ensemble": "evaluation.ensemble.members",
    "--combine": "evaluation.ensemble.combine",
    "--expand": "evaluation.expand",
    "--pooling": "evaluation.pooling",
    "--compare": "evaluation.comparisons",
    "--protocol": "evaluation.protocol",
    "--near-duplicates": "evaluation.near_duplicates",
    "--gallery": "evaluation.gallery",
    "--qrels": "evaluation.qrels",
    "--nnn": "evaluation.nnn",
    "--trec": "evaluation.trec",
    "--trec-depth": "evaluation.trec_depth",
    "--mteb": "evaluation.mteb",
    "--slice-by": "evaluation.slice_by",
    "--strip-punctuation": "model.strip_punctuation",
    "--precision": "evaluation.precision",
    "--rerank-precision": "rerank.precision",
    "--num-workers": "data.num_workers",
}


def leaves(model: type[BaseModel], prefix: str = "") -> set[str]:
    """The keys of a configuration that hold values, with dots."""
    found = set()
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(kind, type)]
        sections = [kind for kind in kinds if issubclass(kind, BaseModel)]
        found |= leaves(sections[0], f"{prefix}{name}.") if sections else {f"{prefix}{name}"}
    return found


def test_every_option_has_its_key_and_every_key_its_option() -> None:
    options = {action.option_strings[-1] for action in make_parser()._actions} - {"--help"}
    assert options == set(KEYS)
    mapped = {key for keys in KEYS.values() for key in ((keys,) if isinstance(keys, str) else keys)}
    known = leaves(JobConfig)
    assert mapped <= known
    assert {key for key in known if key.startswith(("rerank.", "evaluation."))} <= mapped


class Toy:
    """A cross-encoder by a formula of picture and text."""

    name, fingerprint, reads = "toy", "toy-1", None

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        seed = int(np.asarray(image).astype(np.int64).sum())
        return np.array([np.random.default_rng([seed, *text.encode()]).normal() for text in captions], dtype=np.float32)


CASES: dict[str, tuple[list[str], dict[str, Any], dict[str, Any]]] = {
    "everything chosen": (
        ["--choose-on", "val", "--combine", "logits,reciprocal-rank", "--max-loss", "0.05"],
        {"fusion": True, "adaptive": True, "adaptive_max_loss": 0.05},
        {"ensemble": {"combine": ["logits", "reciprocal-rank"]}},
    ),
    "pooling chosen, weights equal": (["--choose-on", "val", "--choose", "expansion"], {}, {"choose": ["expansion"]}),
    "nothing chosen": (["--pooling", "mean:2:0.5"], {}, {"choose": [], "pooling": ["mean:2:0.5"]}),
    "a margin and a time budget": (
        ["--skip-margin", "0.02", "--seconds", "3600"],
        {"skip_margin": 0.02, "seconds": 3600},
        {"choose": []},
    ),
}


def content(report: Report | None, rename: dict[str, str]) -> dict[str, Any]:
    """A record without seconds, and without what compares with the base, which the command does not measure; names as the command's."""
    assert report is not None
    text = json.dumps(report.record)
    for old, new in rename.items():
        text = text.replace(f'"{old}', f'"{new}')
    record = json.loads(text, object_pairs_hook=lambda pairs: {key: value for key, value in pairs if "second" not in key})
    for one in record.get("ensemble", ()):
        del one["cost"]  # seconds and what they add up to
    stages = {name: stage for name, stage in record["stages"].items() if not name.startswith("base")}
    for stage in stages.values():
        stage.pop("cost")  # pairs that the base shares are counted as shared
    kept = {key: record[key] for key in ("fusion", "adaptive", "ensemble", "expansion", "calibration") if key in record}
    return {"stages": stages} | json.loads(json.dumps(kept).replace('"in_comparisons": true', '"in_comparisons": false'))


@pytest.mark.parametrize("case", CASES)
def test_options_and_configuration_give_the_same_report(small_world: SmallWorld, tmp_path: Path, case: str) -> None:
    words, rerank, evaluation = CASES[case]
    (tmp_path / "words.txt").write_text("red: crimson\nblue: azure, navy\n", encoding="utf-8")
    base, expand = str(small_world.base), f"synonyms:{tmp_path / 'words.txt'}"
    common = ["--model", base, "--ensemble", base, "--expand", expand, "--rerank", "toy", "--top-k", "4", "--output", "o", "--data", "d"]
    asked = read_plan(parse([*common, "--split", "test", *words]))
    ensemble = {"members": {"model-2": base}} | evaluation.get("ensemble", {})
    record = small_world.record(
        tmp_path, rerank={"model": "toy", "top_k": 4} | rerank, evaluation=evaluation | {"expand": [expand], "ensemble": ensemble}
    )
    job = evaluation_plan(JobConfig.model_validate(record), base, base)
    assert asked.chooses == job.chooses == ("--choose-on" in words)
    dataset, val = load(small_world.manifest, "test"), load(small_world.manifest, "val")
    calibrated = None if "--skip-margin" in words else val  # what is chosen there is not retrieved and scored again
    found = [_content(plan, dataset, val, calibrated, rename) for plan, rename in ((asked, {}), (job, {"tuned": "model"}))]
    assert ("calibration" in found[0]) == (calibrated is not None)
    only_of_command = set(found[0]["stages"]) - set(found[1]["stages"])
    assert all(name.endswith(("+sum", "+fused", "+adaptive")) for name in only_of_command), "the job tunes the reranking of tuned alone"
    for name in only_of_command:
        del found[0]["stages"][name]
    for key in {"fusion", "adaptive"} & set(found[0]):
        found[0][key] = [one for one in found[0][key] if one["stage"] == "model+toy"]
    for key in ("seconds", "skip_margin", "top_k"):
        assert getattr(asked.reranking, key) == getattr(job.reranking, key)
    assert len(found[1]["stages"]) >= 8 and json.dumps(found[0], sort_keys=True) == json.dumps(found[1], sort_keys=True)


def _content(
    plan: EvaluationPlan, dataset: RetrievalSet, val: RetrievalSet, calibrated: RetrievalSet | None, rename: dict[str, str]
) -> dict[str, Any]:
    tune_on, reranker = val if plan.chooses else None, Reranker(Toy())  # type: ignore[arg-type]  # reads nothing
    return content(evaluate_plan(plan, dataset, tune_on=tune_on, calibrate_on=calibrated, reranker=reranker), rename)


@pytest.mark.parametrize(
    ("values", "setting", "message"),
    [
        ({"checkpoints": {"a/b": "x"}}, "checkpoints", "a name of its own, of letters, digits"),
        ({"checkpoints": {"ensemble": "x", "model": "y"}, "combining": Combining(members=("ensemble",))}, "checkpoints", "found"),
        ({"combining": Combining(members=("model-2",))}, "members", r"\['model-2'\] are no checkpoints of this evaluation"),
        ({"comparisons": (("model", "base"),)}, "comparisons", r"no stage is called \['base'\]"),
    ],
)
def test_a_plan_checks_itself(values: dict[str, Any], setting: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        EvaluationPlan(**{"checkpoints": {"model": "x"}} | values).pairs(None)
    assert refused.value.setting == setting


def test_names_and_pairs_are_those_of_every_step() -> None:
    plan = EvaluationPlan(
        checkpoints={"model": "x", "model-2": "y"},
        combining=Combining(members=("model-2",), expansions=("crops",)),
        reranking=Plan(top_k=8, tuning=Tuning(fusion=True, stages=("model",))),
    )
    firsts = ["model", "model-2", "ensemble", "model+crops", "ensemble+crops"]
    assert plan.names(None) == firsts
    assert plan.names("toy") == [*firsts, *(f"{name}+toy" for name in firsts), "model+toy+sum", "model+toy+fused"]
    combined = [("model-2", "model"), ("ensemble", "model"), ("ensemble", "model-2")]
    combined += [("model+crops", "model"), ("ensemble+crops", "ensemble")]
    assert plan.pairs("toy") == [*combined, *((f"{name}+toy", name) for name in firsts), ("model+toy+fused", "model+toy")]


def test_what_makes_stages_deeper_changes_neither_queries_nor_the_runs_that_are_asked_for(small_world: SmallWorld) -> None:
    """Calibration looks at 32 answers and a TREC run at as many as asked: queries.parquet has ten of each query all the same."""
    dataset = load(small_world.manifest, "train")
    plan = EvaluationPlan(checkpoints={"model": str(small_world.base)})
    plain = evaluate_plan(plan, dataset)
    deeper = evaluate_plan(replace(plan, trec_depth=12), dataset, calibrate_on=load(small_world.manifest, "val"))
    assert plain is not None and deeper is not None and dataset.num_images > 12
    assert deeper.figures.queries.equals(plain.figures.queries)
    assert {ranking.top_indices_QK.shape[1] for stage in deeper.stages for ranking in stage.rankings.values()} == {12}
