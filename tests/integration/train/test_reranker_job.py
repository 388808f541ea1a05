"""`python -m train.reranker` from a configuration to a report: what it learns, writes and prints; the same command again."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.signals import StopSignals
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from tests.faults.runs import lines
from tests.shared_files import modes
from tests.small_job import SmallWorld, load
from tests.small_reranker_job import RerankerWorld
from train.__main__ import run as run_any
from train.reranker.__main__ import run


@pytest.fixture(scope="module")
def finished(reranker_world: RerankerWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some steps, with its configuration next to it."""
    folder = tmp_path_factory.mktemp("reranker")
    config = reranker_world.write_config(folder, train__max_steps=40, train__learning_rate=3e-3, train__eval_every_steps=20)
    assert run([str(config)]) == 0
    return config


def events(config: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in lines(config.parent / "runs" / "job") if line["event"] == event]


def test_every_file_of_the_run_has_the_mode_of_a_new_one(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    assert modes(finished.parent / "runs") == modes(tmp_path)


def test_it_learns_more_than_the_ratio(finished: Path) -> None:
    steps = events(finished, "step")
    assert [line["step"] for line in steps] == list(range(1, 41))
    last = steps[-8:]
    assert sum(line["loss"] for line in last) < 0.93 * sum(line["constant_loss"] for line in last)
    assert all(line["gap"] > 0.1 for line in last)
    assert all(line["num_true"] == 8 and line["num_hard_caption"] + line["num_hard_image"] + line["shortfall"] == 24 for line in steps)


def test_it_measures_val_at_step_0_and_keeps_the_best(finished: Path) -> None:
    found = events(finished, "eval")
    assert [line["step"] for line in found] == [0, 20, 40]
    best = max(found, key=lambda line: (line["mean_R@1"], -line["step"]))
    state = json.loads((finished.parent / "runs" / "job" / "checkpoints" / "step-40" / "state.json").read_text())
    assert (state["best_step"], state["best_score"]) == (best["step"], best["mean_R@1"])
    assert len({line["miner_mean_R@1"] for line in found}) == 1
    assert all(line["score_std"] > 0.01 for line in found)


def test_the_report_compares_miner_untuned_and_tuned(finished: Path) -> None:
    report = json.loads((finished.parent / "runs" / "job" / "eval" / "test" / "report.json").read_text())
    assert list(report["stages"]) == ["miner", "miner+blip", "miner+blip-tuned"]
    pairs = {(row["stage"], row["against"]) for row in report["comparisons"]}
    assert pairs == {("miner+blip", "miner"), ("miner+blip-tuned", "miner"), ("miner+blip-tuned", "miner+blip")}


def test_the_same_command_again_prints_the_figures(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished.parent / "runs" / "job" / "metrics.jsonl").read_bytes()
    assert run_any([str(finished)]) == 0  # python -m train knows such a file too
    said = capsys.readouterr().out
    assert "is finished" in said and "miner+blip-tuned" in said and "export   " in said
    assert (finished.parent / "runs" / "job" / "metrics.jsonl").read_bytes() == before


def test_another_configuration_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(finished), "train.learning_rate=0.5"]) == 2
    assert "train.learning_rate: 0.003 -> 0.5" in capsys.readouterr().err


def test_a_constant_answer_is_named_once_with_its_figure(
    reranker_world: RerankerWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head whose output is the share of true pairs for any input, and a learning rate at which it stays so."""
    blip = tmp_path / "constant"
    blip.mkdir()
    for path in reranker_world.blip.iterdir():
        (blip / path.name).write_bytes(path.read_bytes())
    weights = load_file(blip / "model.safetensors")
    weights["itm_head.weight"] = torch.zeros_like(weights["itm_head.weight"])
    weights["itm_head.bias"] = torch.tensor([2 / 3, 1 / 3]).log()
    save_file(weights, blip / "model.safetensors", metadata={"format": "pt"})
    config = reranker_world.write_config(
        tmp_path,
        model={"base": str(blip), "what": "head"},
        negatives__images_per_caption=0,
        train__learning_rate=1e-9,
        data__test_split=None,
    )
    monkeypatch.setattr("train.reranker.collapse.OVER_STEPS", 4)
    loop = _loop(config)
    loop.run()
    found = events(config, "constant_answer")
    by_loss, by_scores = ([line for line in found if line["seen_in"] == place] for place in ("loss", "scores"))
    assert [line["step"] for line in by_loss] == [4]
    assert by_loss[0]["loss"] == pytest.approx(0.6365, abs=1e-4) == by_loss[0]["constant_loss"]
    assert [line["step"] for line in by_scores] == [0, 3, 6]
    said = capsys.readouterr()
    assert "a cross-encoder that answers the same to every pair gets 0.6365 at 1 : 2 true to false" in said.out + said.err


def test_matches_of_the_untuned_cross_encoder_are_not_mined(reranker_world: RerankerWorld, tmp_path: Path) -> None:
    """By its own probabilities, computed again; the positives of the qrels among the rest are counted."""
    dataset = load(reranker_world.manifest)
    qrels = tmp_path / "truth.qrels"
    qrels.write_text("".join(f"{dataset.image_ids[image]} 0 {dataset.caption_ids[image + 5]} 1\n" for image in range(40)))
    config = reranker_world.write_config(tmp_path, negatives__drop_matches_at=0.3, data__truth=str(qrels), negatives__images_per_caption=0)
    loop = _loop(config)
    loop.metrics.open_at(0)
    loop.setup()
    (report,) = events(config, "mining")
    table = loop._tables.captions
    scorer = load_scorer(str(reranker_world.blip), device="cpu", settings=ScorerSettings(score_kind="margin"))
    margins = [
        float(scorer.score(dataset.load_image(int(image)), [dataset.captions[int(caption)]])[0])
        for image, caption in zip(table.image_N, table.captions_N, strict=True)
    ]
    assert len(margins) > 20 and max(margins) < math.log(0.3 / 0.7) + 1e-5
    assert report["filtered_out"]["match"] > 0 and report["num_judged"] > len(margins)
    known = {(image, image + 5) for image in range(40)}
    assert report["num_false_negatives"] == len(known & set(zip(table.image_N.tolist(), table.captions_N.tolist(), strict=True)))


def _loop(config: Path) -> Any:
    """The loop of a run, whose final report would refuse such a cross-encoder."""
    from train.config.load import load_run_config
    from train.config.reranker import RerankerConfig
    from train.reranker.__main__ import reranker_tuning

    tuning, read = reranker_tuning(), load_run_config(RerankerConfig, config)
    read.run_folder.mkdir(parents=True)
    accelerator, processes = tuning.start(read)
    return tuning.loop(tuning.prepare(read, tuning.load(read), accelerator, processes), StopSignals())


def test_pictures_are_checked_when_asked(reranker_world: RerankerWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(reranker_world.write_config(tmp_path)), "--check-images"]) == 0
    assert "68 pictures checked: 0 do not decode" in capsys.readouterr().out


def test_true_pairs_alone_are_nothing_to_learn_from(
    reranker_world: RerankerWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = reranker_world.write_config(tmp_path, data__val_split=None, data__test_split=None, train__max_steps=2)
    assert run([str(path), "negatives.margin=1000"]) == 2
    assert "no hard negatives were mined" in capsys.readouterr().err and not events(path, "step")
    assert run([str(path), "negatives.margin=1000", "negatives.fill_with_easy=true", "name=easy"]) == 0
    steps = [line for line in lines(tmp_path / "runs" / "easy") if line["event"] == "step"]
    assert [(line["num_true"], line["num_easy"] > 0) for line in steps] == [(8, True)] * 2


def test_a_file_of_another_kind_is_named(small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(small_world.write_config(tmp_path))]) == 2
    said = capsys.readouterr().err
    assert "expected the key 'miner'" in said and "take python -m train" in said
