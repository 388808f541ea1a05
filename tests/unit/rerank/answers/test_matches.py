"""`--min-precision`: what is below the threshold is left out, a query without any has no match, and what does not fit is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from eval.encoder.checkpoint import hash_weights, load_siglip
from eval.errors import UserError
from eval.processes import Processes
from rerank.__main__ import parse, run
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from tests.browser import needs_browser, opened
from tests.small_job import SmallWorld


@pytest.fixture(scope="module")
def arguments(small_world: SmallWorld, tiny_blip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.mktemp("scores")
    models = ["--model", str(small_world.base), "--rerank", str(tiny_blip), "--top-k", "4", "--num-workers", "0", "--pages", "9"]
    return [*models, "--images", str(small_world.manifest), "--split", "val", "--pair-scores", str(cache)]


@pytest.fixture(scope="module")
def everything(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows without a threshold."""
    path = tmp_path_factory.mktemp("everything") / "a.parquet"
    run_here([*arguments, "--output", str(path)])
    return pq.read_table(path).to_pylist()


def run_here(arguments: list[str]) -> None:
    run(parse(arguments), Processes(), torch.device("cpu"))


def calibration(small_world: SmallWorld, tiny_blip: Path, scores: dict[str, float | None], points: list[list[float]]) -> dict[str, Any]:
    """A calibration with one threshold of the reranked stage in each direction."""
    weights = hash_weights(load_siglip(small_world.base)[0])
    directions = {
        direction: {"score": "match_logit", "points": points, "thresholds": [{"precision": 0.9, "score": score}]}
        for direction, score in scores.items()
    }
    stages = {"tuned+blip": {"reranker": load_scorer(str(tiny_blip), device="cpu").fingerprint, "top_k": 4} | directions}
    return {"version": 1, "model": weights, "fitted_on": {"split": "val"}, "stages": stages}


@pytest.fixture
def calibrated(small_world: SmallWorld, tiny_blip: Path, everything: list[dict[str, Any]], tmp_path: Path) -> tuple[Path, float]:
    """(file, threshold): the middle of the scores, so that some queries have matches and some have none."""
    scores = sorted(row["rerank_score"] for row in everything)
    threshold = scores[int(0.9 * len(scores))]
    points = [[scores[0], 0.1], [scores[-1], 0.9]]
    record = calibration(small_world, tiny_blip, dict.fromkeys(("image_to_text", "text_to_image"), threshold), points)
    (tmp_path / "calibration.json").write_text(json.dumps(record))
    return tmp_path / "calibration.json", threshold


def test_what_is_below_the_threshold_is_left_out_and_a_query_without_any_is_said(
    arguments: list[str],
    everything: list[dict[str, Any]],
    calibrated: tuple[Path, float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, threshold = calibrated
    for suffix in (".parquet", ".jsonl", ".csv"):
        asked = ["--min-precision", "0.9", "--calibration", str(path), "--output", str(tmp_path / f"a{suffix}")]
        run_here([*arguments, *asked])
    said = capsys.readouterr().out
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    by_hand: list[dict[str, Any]] = []
    low, high = min(row["rerank_score"] for row in everything), max(row["rerank_score"] for row in everything)
    queries = list(dict.fromkeys((row["direction"], row["query_id"]) for row in everything))
    none = 0
    for direction, query in queries:
        own = [row for row in everything if (row["direction"], row["query_id"]) == (direction, query)]
        kept = [row for row in own if row["rerank_score"] >= threshold]
        none += not kept
        nothing = {name: own[0][name] if name in ("direction", "query_id", "query") else None for name in own[0]}
        by_hand += [row | {"probability": 0.1 + 0.8 * (row["rerank_score"] - low) / (high - low)} for row in kept]
        by_hand += [] if kept else [nothing | {"probability": None}]
    assert 0 < none < len(queries) and len(rows) == len(by_hand)
    for row, expected in zip(rows, by_hand, strict=True):
        assert row.pop("probability") == pytest.approx(expected.pop("probability"), abs=1e-6) and row == expected
    numbers = [int(number) for number in re.findall(r"no match for (\d+) of", said)]
    assert sum(numbers) == 3 * none and f"({len(rows)} rows)" in said
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["candidate_id"] for line in lines] == [row["candidate_id"] for row in rows]
    assert sum(line["rank"] is None for line in lines) == none
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").count("\n") == len(rows) + 1
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "No match" in page and "do not reach" not in page and "does not reach a precision of 90%" in page


@needs_browser
def test_the_page_opens(arguments: list[str], calibrated: tuple[Path, float], tmp_path: Path) -> None:
    run_here([*arguments, "--min-precision", "0.9", "--calibration", str(calibrated[0]), "--output", str(tmp_path / "a.csv")])
    done = opened(tmp_path / "a.html", tmp_path)
    assert "No match" in done.stdout and "Error" not in done.stderr


def test_a_calibration_of_margins_is_for_answers_ranked_by_margins(
    arguments: list[str], small_world: SmallWorld, tiny_blip: Path, tmp_path: Path
) -> None:
    """As `eval --score margin --calibrate-on` makes it."""
    record = calibration(small_world, tiny_blip, dict.fromkeys(("image_to_text", "text_to_image"), 0.0), [[-9.0, 0.1], [9.0, 0.9]])
    (stage,) = record["stages"].values()
    stage["reranker"] = load_scorer(str(tiny_blip), device="cpu", settings=ScorerSettings(score_kind="margin")).fingerprint
    (tmp_path / "c.json").write_text(json.dumps(record))
    asked = [*arguments, "--calibration", str(tmp_path / "c.json"), "--output", str(tmp_path / "a.parquet")]
    run_here([*asked, "--score", "margin"])
    assert pq.read_metadata(tmp_path / "a.parquet").num_rows
    with pytest.raises(UserError, match="none is of this cross-encoder, with these settings"):
        run_here(asked)
    with pytest.raises(SystemExit):
        parse(["--model", "m", "--images", "i", "--captions", "c", "--output", "o.csv", "--score", "margin"])


def test_a_calibration_alone_leaves_nothing_out(
    arguments: list[str], everything: list[dict[str, Any]], calibrated: tuple[Path, float], tmp_path: Path
) -> None:
    run_here([*arguments, "--calibration", str(calibrated[0]), "--output", str(tmp_path / "a.parquet")])
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert all(0.1 <= row.pop("probability") <= 0.9 + 1e-6 for row in rows) and rows == everything


@pytest.mark.parametrize(
    ("change", "asked", "message"),
    [
        ({}, ["--min-precision", "0.85"], r"--min-precision: expected one of the precisions that were calibrated, 0.9; found 0.85"),
        ({"scores": {"image_to_text": 1.0, "text_to_image": None}}, [], "text to image, reaches precision 0.9"),
        ({"model": "0" * 64}, [], "the calibration of another model"),
        ({"reranker": "0" * 64}, [], "none is of this cross-encoder, with these settings"),
        ({"version": 2}, [], "expected a calibration of version 1"),
        ({"points": [[0.0]]}, [], "expected a calibration of version 1"),
        ({"stages": 3}, [], "could not be read as a calibration"),
        ({"missing": True}, [], "no such file.*--calibrate-on"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(
    arguments: list[str], small_world: SmallWorld, tiny_blip: Path, tmp_path: Path, change: dict[str, Any], asked: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    scores = change.pop("scores", dict.fromkeys(("image_to_text", "text_to_image"), 0.0))
    record = calibration(small_world, tiny_blip, scores, change.pop("points", [[0.0, 0.5], [1.0, 0.5]]))
    if "reranker" in change:
        record["stages"]["tuned+blip"]["reranker"] = change.pop("reranker")
    if not change.pop("missing", False):
        (tmp_path / "c.json").write_text(json.dumps(record | change))
    words = [*arguments, "--min-precision", "0.9", *asked, "--calibration", str(tmp_path / "c.json"), "--output", str(tmp_path / "a.csv")]
    with pytest.raises(UserError, match=message):
        run_here(words)
    assert "pictures   " not in capsys.readouterr().out and not (tmp_path / "a.csv").exists()


def test_a_model_without_a_calibration_is_told_how_one_is_made(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no calibration.json. python -m eval .* --calibrate-on SPLIT .*then --calibration FILE"):
        run_here([*arguments, "--min-precision", "0.9", "--output", str(tmp_path / "a.csv")])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--min-precision", "90"], "--min-precision is a share from 0 to 1"),
        (["--min-precision", "0.9", "--skip-margin", "0.1"], "--skip-margin leaves answers without a score"),
    ],
)
def test_what_the_words_alone_show_to_be_wrong(
    arguments: list[str], tmp_path: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([*arguments, "--output", str(tmp_path / "a.csv"), *extra])
    assert message in capsys.readouterr().err


def test_matches_are_the_first_of_each_list() -> None:
    """Two queries: scores 3, 1 and 0.5, 0.25 against a threshold of 1."""
    from eval.report.calibration import StageCalibration
    from rerank.answers.answers import Answers
    from rerank.answers.matches import Matches

    record = {"points": [[0.0, 0.0], [2.0, 1.0]], "thresholds": [{"precision": 0.9, "score": 1.0}]}
    stage = StageCalibration("tuned", 2, {"image_to_text": record, "text_to_image": record})
    cosines = np.array([[3.0, 1.0], [0.5, 0.25]], dtype=np.float32)
    answers = Answers("text_to_image", np.zeros((2, 2), dtype=np.int64), cosines, np.ones((2, 2), dtype=np.int32), None)
    found = Matches("", stage, 0.9).of(answers)
    assert found.probabilities_QK is not None and found.probabilities_QK.tolist() == [[1.0, 0.5], [0.25, 0.125]]
    assert found.shown_Q.tolist() == [2, 0] and Matches("", stage, None).of(answers).shown_Q.tolist() == [2, 2]
