"""The stage NAME+nnn: chosen on val, never with the queries that are measured, and reranked as any first stage."""

import json
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from eval.__main__ import parse, run
from eval.encoder.checkpoint import load_inputs, load_siglip
from eval.errors import SettingError
from eval.manifest.manifest import read_manifest
from eval.metrics.metrics import recall_at_k
from eval.processes import Processes
from eval.search.nnn import gallery_means, rank_corrected
from eval.search.ranking import DIRECTIONS
from eval.search.retrieve import embed, find
from rerank.asked import read_datasets
from rerank.evaluation import EvaluationPlan, Report, Reranker, evaluate_plan
from rerank.nnn import ALPHAS, NUMBERS
from rerank.reorder.plan import Plan
from tests.small_job import SmallWorld, load
from tests.unit.rerank.test_evaluation import Toy
from train.config.job import JobConfig
from train.siglip.stages import evaluation_plan


def plan_of(world: SmallWorld, **changes: object) -> EvaluationPlan:
    return EvaluationPlan(**{"checkpoints": {"model": str(world.base)}, "nnn": True} | changes)  # type: ignore[arg-type]


def test_the_stage_is_the_best_point_on_the_other_split_and_has_its_interval(small_world: SmallWorld) -> None:
    """The splits change places, for with random weights nothing gains on the few pictures of val."""
    train, val, test = (load(small_world.manifest, split) for split in ("val", "train", "test"))
    report = cast(Report, evaluate_plan(plan_of(small_world), test, tune_on=val, bank=train))
    model, inputs = load_siglip(small_world.base)
    bank, on_val, on_test = (embed(model, inputs, one) for one in (train, val, test))
    section = report.record["nnn"]
    assert (section["stage"], section["against"], section["bank"]["split"], section["chosen_on"]["split"]) == (
        "model+nnn",
        "model",
        "val",
        "train",
    )
    assert any(one["alpha"] for one in section["directions"].values()), "else this test shows nothing"
    plain_on_val = find("model", on_val, val).rankings
    for direction in DIRECTIONS:
        found = section["directions"][direction]
        assert len(found["curve"]) == 1 + len(NUMBERS) * len(ALPHAS)
        best: list[tuple[float, float, int]] = []  # R@1, alpha, k
        for point in found["curve"]:
            ranking = plain_on_val[direction]
            if point["alpha"]:
                correction = point["alpha"] * gallery_means(on_val, bank, direction, [point["k"]])[0]
                ranking = rank_corrected(on_val, val, {direction: correction}, 10)[direction]
            assert point["R@1"] == recall_at_k(ranking.best_ranks(), 1).mean()
            best.append((-point["R@1"], point["alpha"], point["k"]))
        assert (found["alpha"], found["k"]) == min(best)[1:]
        expected = find("model", on_test, test).rankings[direction]
        if found["alpha"]:
            correction = found["alpha"] * gallery_means(on_test, bank, direction, [found["k"]])[0]
            expected = rank_corrected(on_test, test, {direction: correction}, 10)[direction]
        rows = [row for row in report.figures.queries.to_pylist() if (row["stage"], row["direction"]) == ("model+nnn", direction)]
        assert [row["rank"] for row in rows] == expected.best_ranks().tolist()
    compared = {(row["stage"], row["against"]) for row in report.figures.comparisons}
    assert compared == {("model+nnn", "model")}
    assert section["directions"]["text_to_image"]["bank_size"] == train.num_captions


def test_where_nothing_gains_it_is_off_and_is_the_plain_ranking(small_world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank.nnn.ALPHAS", (1e-30,))  # too small to change a rank
    train, val, test = (load(small_world.manifest, split) for split in ("train", "val", "test"))
    report = cast(Report, evaluate_plan(plan_of(small_world), test, tune_on=val, bank=train))
    assert [one["alpha"] for one in report.record["nnn"]["directions"].values()] == [0, 0]
    rows = report.figures.queries.drop_columns(["stage"]).to_pylist()
    half = len(rows) // 2
    assert rows[:half] == rows[half:]
    assert "image to text off; text to image off, chosen on val" in report.sections[1].notes[0]


def test_it_is_reranked_as_any_first_stage(small_world: SmallWorld) -> None:
    train, val, test = (load(small_world.manifest, split) for split in ("train", "val", "test"))
    plan = plan_of(small_world, reranking=Plan(top_k=4))
    report = cast(Report, evaluate_plan(plan, test, tune_on=val, bank=train, reranker=Reranker(Toy())))  # type: ignore[arg-type]
    assert list(report.figures.stages) == plan.names("toy") == ["model", "model+nnn", "model+toy", "model+nnn+toy"]
    assert ("model+nnn+toy", "model+nnn") in plan.pairs("toy") and ("model+nnn", "model") in plan.pairs("toy")


def test_the_bank_is_never_the_queries_that_are_ranked(small_world: SmallWorld) -> None:
    train, val, test = (load(small_world.manifest, split) for split in ("train", "val", "test"))
    for bank, tune_on in ((test, val), (val, val), (None, val), (train, None)):
        with pytest.raises(SettingError) as refused:
            evaluate_plan(plan_of(small_world), test, tune_on=tune_on, bank=bank)
        assert refused.value.setting == "nnn"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--nnn", "train"], "--nnn needs --choose-on"),
        (["--nnn", "test", "--choose-on", "val"], "neither measured nor chosen on"),
        (["--nnn", "val", "--choose-on", "val"], "neither measured nor chosen on"),
        (["--trec-depth", "5"], "--trec-depth is for the runs of --trec"),
    ],
)
def test_the_command_refuses_it(capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--model", "m", "--data", "d", "--split", "test", "--output", "o", *more])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_command_writes_it_with_deep_runs_and_mtebs_files(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", str(small_world.base), "--data", str(small_world.manifest), "--split", "test", "--output", str(tmp_path)]
    run(parse([*asked, "--num-workers", "0", "--choose-on", "val", "--nnn", "train", "--trec", "--mteb"]), Processes(), torch.device("cpu"))
    said = capsys.readouterr().out
    (tmp_path / "trec" / "my own.run").touch()
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(record["stages"]) == ["model", "model+nnn"]
    num_captions = record["data"]["num_captions"]
    assert f"TREC runs: depth image to text {num_captions} of {num_captions}, text to image 14 of 14" in said
    lines = (tmp_path / "trec" / "model+nnn.image_to_text.run").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 14 * num_captions
    assert "Nearest-neighbour normalisation (model+nnn):" in said and "bank: 82 captions and 40 images of train." in said
    found = json.loads((tmp_path / "mteb" / "model" / "PairsI2TRetrieval.json").read_text(encoding="utf-8"))
    (scores,) = found["scores"]["test"]
    assert scores["hit_rate_at_1"] == record["stages"]["model"]["image_to_text"]["R@1"] and scores["languages"] == ["eng-Latn"]
    assert {len(row) for row in pq.read_table(tmp_path / "queries.parquet", columns=["top_ids"])["top_ids"].to_pylist()} == {10}
    assert np.isfinite([row["ci95"] for row in record["comparisons"]]).all()
    run(parse([*asked, "--num-workers", "0"]), Processes(), torch.device("cpu"))
    assert [path.name for path in (*tmp_path.glob("trec/*"), *tmp_path.glob("mteb/*/*"))] == ["my own.run"], "of the report before"


def test_the_bank_is_read_whatever_the_ground_truth_of_what_is_measured(small_world: SmallWorld, tmp_path: Path) -> None:
    """`gallery: different` and a protocol are of the splits that are measured."""
    rows = [json.loads(line) for line in small_world.manifest.read_text(encoding="utf-8").splitlines()]
    one = [row for row in rows if row["split"] == "train"][:1]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*one, *(r for r in rows if r["split"] != "train")]))
    words = ["--model", str(small_world.base), "--data", str(tmp_path / "pairs.jsonl"), "--split", "test", "--num-workers", "0"]
    asked = parse([*words, "--choose-on", "val", "--nnn", "train", "--top-k", "12", "--rerank", "m", "--output", str(tmp_path / "o")])
    root, splits = str(small_world.manifest.parent), ["test", "val", "train"]
    manifest = read_manifest(str(tmp_path / "pairs.jsonl"), image_root=root, require_splits=splits)
    found = read_datasets(asked, manifest, [load_inputs(str(small_world.base))])
    assert [None if one is None else one.split for one in found] == ["test", "val", None]


def test_a_job_asks_for_it_by_its_configuration(small_world: SmallWorld, tmp_path: Path) -> None:
    asked = {"nnn": True, "trec": True, "trec_depth": 20}
    config = JobConfig.model_validate(small_world.record(tmp_path, evaluation=asked))
    plan = evaluation_plan(config, "base", "export")
    assert (plan.nnn, plan.trec_depth, plan.chooses, config.evaluation.chooses) == (True, 20, True, True)
    assert plan.first_stages == ["base", "tuned", "tuned+nnn"] and plan.pairs(None) == [("tuned", "base"), ("tuned+nnn", "tuned")]
    with pytest.raises(ValidationError, match="trec_depth does nothing without trec"):
        JobConfig.model_validate(small_world.record(tmp_path, evaluation={"trec_depth": 20}))
