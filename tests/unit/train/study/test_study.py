"""train/study/: systems, statistics over seeds, comparisons and the page, on results made by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from eval.errors import UserError
from tests.small_job import SmallWorld
from train.config.job import JobConfig
from train.study import study as studies
from train.study.comparison import compare_systems
from train.study.page import answer, page
from train.study.runs import Planned, Result, usual_places
from train.study.statistics import OverSeeds, t_probability, t_quantile, verdicts
from train.study.systems import PRESETS, System, check_systems, parse_systems

NUM_IMAGES = 40


def made(system: str, seed: int, hits: np.ndarray, *, num_mined: int = 0, seconds: float = 1.0) -> Result:
    """The result of a run whose query of image i has its relevant item first where `hits[i]`, else second; in both directions alike."""
    names = ("stage", "direction", "query_id", "image_id", "rank", "ap_at_r", "r_precision")
    rows: dict[str, list[Any]] = {name: [] for name in names}
    for direction in ("image_to_text", "text_to_image"):
        for image, hit in enumerate(hits.tolist()):
            values = ("tuned", direction, f"q{image}", f"i{image}", 1 if hit else 2, float(hit), float(hit))
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
    stage = {d: {"R@1": float(hits.mean()), "R@5": 1.0} for d in ("image_to_text", "text_to_image")}
    lines = [{"event": "step", "step": step, "seconds": seconds, "num_mined": num_mined} for step in (1, 2, 3, 4)]
    lines += [{"event": "eval", "step": step, "best": step == 2} for step in (0, 2, 4)]
    report = {"stages": {"tuned": stage}, "data": {"split": "test", "num_images": NUM_IMAGES, "num_captions": NUM_IMAGES}}
    planned = Planned(system=system, seed=seed, overrides=(), folder=Path("none"))
    return Result(planned=planned, batch_size=8, queries=pa.table(rows), lines=lines, report=report)


def hits_of(num_right: int, seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(NUM_IMAGES)
    found = np.zeros(NUM_IMAGES, dtype=bool)
    found[order[:num_right]] = True
    return found


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 8, 30])
def test_students_t_is_the_integral_of_its_density(degrees: int) -> None:
    constant = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    for t in (0.0, 0.3, 1.7, 4.0):
        x = np.linspace(0, t, 20_001)
        integral = np.trapezoid(constant * (1 + x**2 / degrees) ** (-(degrees + 1) / 2), x)
        assert t_probability(t, degrees) == pytest.approx(0.5 + integral, abs=1e-8)
    assert t_probability(t_quantile(0.975, degrees), degrees) == pytest.approx(0.975, abs=1e-12)


def test_the_interval_over_seeds_is_students() -> None:
    """Two seeds, by hand: mean 2, standard error 1, and 12.706 of them."""
    found = OverSeeds.of([1.0, 3.0])
    assert found.mean == 2.0 and found.ci95 == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)
    assert found.p_value == pytest.approx(2 * (1 - (0.5 + math.atan(2) / math.pi)))
    assert OverSeeds.of([0.3]) == OverSeeds(0.3, None, None)
    assert OverSeeds.of([0.0, 0.0]).p_value == 1.0 and OverSeeds.of([0.1, 0.1]).p_value == 0.0


def test_a_verdict_needs_the_seeds_the_images_and_the_correction() -> None:
    sure = OverSeeds(0.02, (0.01, 0.03), 0.001)
    near = OverSeeds(0.02, (0.001, 0.04), 0.04)
    assert verdicts([sure], [(0.01, 0.03)]) == ["better"] and verdicts([near], [(0.01, 0.03)]) == ["better"]
    assert verdicts([sure, near], [(0.01, 0.03)] * 2) == ["better", "better"]  # 0.04 is the larger of two
    assert verdicts([near, near], [(0.01, 0.03)] * 2) == ["no evidence", "no evidence"]
    assert verdicts([sure], [(-0.01, 0.03)]) == ["no evidence"]
    assert verdicts([OverSeeds(0.5, None, None)], [(0.4, 0.6)]) == ["no evidence"]
    assert verdicts([OverSeeds(-0.02, (-0.03, -0.01), 0.001)], [(-0.03, -0.01)]) == ["worse"]


def test_systems_are_compared_within_a_seed() -> None:
    """B finds 8 of 40 more than A in every seed, though the seeds differ by far more; C is A."""
    a = [made("a", seed, hits_of(10 + 8 * seed, 1)) for seed in range(3)]
    b = [made("b", seed, hits_of(18 + 8 * seed, 1)) for seed in range(3)]
    c = [made("c", seed, hits_of(10 + 8 * seed, 1)) for seed in range(3)]
    better, equal = compare_systems({"a": a, "b": b, "c": c}, [("b", "a"), ("c", "a")])
    for which in ("image_to_text", "text_to_image", "both"):
        assert better[which]["by_seed"] == pytest.approx([0.2, 0.2, 0.2]) and better[which]["delta"] == pytest.approx(0.2)
        low, high = better[which]["ci95_images"]
        assert 0 < low < 0.2 < high
        assert equal[which]["by_seed"] == [0, 0, 0]
    assert (better["verdict"], equal["verdict"]) == ("better", "no evidence")


def test_a_system_is_a_name_and_its_changes() -> None:
    assert System.parse("mined=mining={weight: 0.1, pool_top_k: 8},train.betas=[0.9, 0.99],seed=3") == System(
        "mined", ("mining={weight: 0.1, pool_top_k: 8}", "train.betas=[0.9, 0.99]", "seed=3")
    )
    for wrong in ("plain", "=mining=null", "mined=weight", "mined="):
        with pytest.raises(UserError, match="expected NAME=key.path=value"):
            System.parse(wrong)


def test_every_fault_of_every_system_is_named_before_any_run(small_world: SmallWorld, tmp_path: Path) -> None:
    config = str(small_world.write_config(tmp_path))
    with pytest.raises(UserError, match="(?s)system 'a': .*minning.*mining.*system 'b': .*max_step"):
        check_systems({"a": ["minning.weight=1"], "b": ["train.max_step=4"], "c": ["mining=null"]}, config, [])
    with pytest.raises(UserError, match="compares two systems or more"):
        check_systems({"a": ["mining=null"]}, config, [])
    with pytest.raises(UserError, match="a name of its own"):
        parse_systems(["a=mining=null", "a=seed=3"])
    with pytest.raises(UserError, match="nothing to measure on"):
        check_systems({"a": ["mining=null"], "b": ["data.val_split=null", "data.test_split=null"]}, config, [])
    plain, two = check_systems({"a": ["mining=null"], "b": ["train.captions_per_image=2"]}, config, ["seed=4"])
    assert isinstance(plain, JobConfig) and isinstance(two, JobConfig)
    assert (plain.mining, plain.seed) == (None, 4) and (two.train.captions_per_image, two.seed) == (2, 4)


def test_without_a_system_plain_tuning_the_presets_of_mining_and_two_captions_are_tried(small_world: SmallWorld, tmp_path: Path) -> None:
    configs = check_systems(PRESETS, str(small_world.write_config(tmp_path)), [])
    assert list(PRESETS) == ["plain", "gentle", "standard", "hard", "two-captions"]
    tried = [
        (config.mining and (config.mining.negatives_per_image, config.mining.weight), config.train.captions_per_image)
        for config in configs
        if isinstance(config, JobConfig)
    ]
    assert tried == [(None, 1), ((2, 0.1), 1), ((4, 0.3), 1), ((8, 1.0), 1), (None, 2)]


def protocol(config: str, **changes: Any) -> dict[str, Any]:
    systems = {"plain": ["mining=null"], "mined": ["mining.weight=0.3"], "two": ["mining=null", "train.captions_per_image=2"]}
    base = {"command": "a command", "config": config, "overrides": [], "systems": systems, "seeds": [5, 6]}
    return base | {"equal_compute": True, "screening": None, "measured": "mean R@1"} | changes


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, small_world: SmallWorld) -> list[Planned]:
    """The runs asked for; each at once leaves the result of `made`: better by the number of its steps, mined captions included."""
    asked: list[Planned] = []

    def read(planned: Planned, config: Any) -> Result:
        found = made(planned.system, planned.seed, hits_of(config.train.max_steps + 3 * (config.mining is not None), planned.seed))
        lines = [{"event": "step", "step": s, "seconds": 1.0, "num_mined": 8 * (config.mining is not None)} for s in range(1, 10)]
        return replace(found, lines=lines)

    monkeypatch.setattr(studies, "carry_out", lambda config, planned, **_: asked.extend(planned))
    monkeypatch.setattr(studies.Result, "read", read)
    monkeypatch.setattr(studies.TowerCost, "of", lambda folder: studies.TowerCost(1000, 500))
    return asked


def test_a_study_runs_every_system_with_every_seed_and_the_control_at_equal_compute(
    pretended: list[Planned], small_world: SmallWorld, tmp_path: Path
) -> None:
    """Two captions take (1000 + 2 x 500) / (1000 + 500) = 1.33 times the compute, and so does a mined one: one control for both."""
    config = str(small_world.write_config(tmp_path))
    studies.Study.begin(tmp_path / "study", protocol(config), at_once=1, threads=1).carry_out()
    assert [(one.system, one.seed) for one in pretended[:6]] == [(name, seed) for seed in (5, 6) for name in ("plain", "mined", "two")]
    control = {one.system: one.overrides for one in pretended[6:]}
    assert list(control) == ["plain, 1.33 x steps"] and "train.max_steps=12" in control["plain, 1.33 x steps"]
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    assert record["protocol"] == protocol(config)
    pairs = [(row["system"], row["against"]) for row in record["comparisons"]]
    assert pairs == [("mined", "plain"), ("two", "plain"), ("mined", "plain, 1.33 x steps"), ("two", "plain, 1.33 x steps")]
    text = (tmp_path / "study" / "study.md").read_text()
    assert text == page(record) and len(answer(record)) == 4
    assert "| mined | `mining.weight=0.3` |" in text
    mined = next(line for line in text.splitlines() if line.startswith("| mined | ") and "1.33" in line)
    assert mined.split(" | ")[8] == "1.00"  # 8 captions for the 8 images of a step


def test_screening_uses_other_seeds_and_fewer_steps_and_lets_the_best_go_on(
    pretended: list[Planned], small_world: SmallWorld, tmp_path: Path
) -> None:
    config = str(small_world.write_config(tmp_path))
    screening = {"seeds": [7], "share": 0.34, "survivors": 1}
    studies.Study.begin(tmp_path / "study", protocol(config, screening=screening, equal_compute=False), at_once=1, threads=1).carry_out()
    first = [(one.system, one.seed) for one in pretended[:3]]
    assert first == [("plain-screen", 7), ("mined-screen", 7), ("two-screen", 7)]
    assert all("train.max_steps=3" in one.overrides and "train.eval_every_steps=1" in one.overrides for one in pretended[:3])
    assert {one.system for one in pretended[3:]} == {"plain", "mined"}
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [row["survives"] for row in record["screening"]] == [True, True, False]


def test_the_protocol_stands_before_the_figures(pretended: list[Planned], small_world: SmallWorld, tmp_path: Path) -> None:
    config = str(small_world.write_config(tmp_path))
    studies.Study.begin(tmp_path / "study", protocol(config), at_once=1, threads=1)
    assert json.loads((tmp_path / "study" / "study.json").read_text()) == {"protocol": protocol(config)} and not pretended
    with pytest.raises(UserError, match="seeds changed since it was begun"):
        studies.Study.begin(tmp_path / "study", protocol(config, seeds=[5]), at_once=1, threads=1)
    studies.Study.begin(tmp_path / "study", protocol(config, command="another spelling"), at_once=2, threads=1)


def test_the_cost_of_a_tower_is_counted(small_world: SmallWorld) -> None:
    """A larger batch of the same model takes as many operations a row; matrix products of the tiny tower, at least its patches."""
    cost = studies.TowerCost.of(str(small_world.base))
    assert cost.image > 0 and cost.text > 0 and isinstance(cost.image, int)
    patches, width, patch = 4, 32, 8 * 8 * 3
    assert cost.image > 2 * patches * width * patch
    assert torch.is_grad_enabled()


def test_sizes_that_are_left_out_are_scaled_as_they_follow_from_the_data(
    pretended: list[Planned], small_world: SmallWorld, tmp_path: Path
) -> None:
    """40 images in batches of 8, 2 epochs: 10 steps, evaluated every step; 1.33 times as many is 13."""
    config = str(small_world.write_config(tmp_path, train__max_steps=None, train__epochs=2, train__eval_every_steps=None))
    studies.Study.begin(tmp_path / "study", protocol(config), at_once=1, threads=1).carry_out()
    control = next(one.overrides for one in pretended if one.system == "plain, 1.33 x steps")
    assert "train.max_steps=13" in control and "train.eval_every_steps=1" in control


def test_runs_go_side_by_side_one_on_each_gpu_or_two_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert usual_places() == 3
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for cores, places in ((64, 2), (1, 1), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert usual_places() == places
