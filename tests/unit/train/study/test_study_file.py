"""STUDY.yaml: its keys are the options of the command, which come before them; what is unknown or wrong is named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from eval.errors import UserError
from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld
from train.study.__main__ import make_parser, protocol_of
from train.study.config import read_study
from train.study.page import answer, page
from train.study.runs import Planned, Result
from train.study.systems import load_system

ROOT = Path(__file__).parents[4]
STUDIES = sorted((ROOT / "benchmarks" / "studies").glob("*.yaml"))


def protocol(*words: str) -> dict[str, Any]:
    return protocol_of(read_study(make_parser().parse_intermixed_args(list(words))), "WORDS")


def write(folder: Path, **keys: Any) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(keys, sort_keys=False), encoding="utf-8")
    return str(path)


def test_a_file_and_the_same_options_have_one_protocol(small_world: SmallWorld, tmp_path: Path) -> None:
    config = str(small_world.write_config(tmp_path))
    file = write(
        tmp_path,
        config=config,
        overrides={"rerank": None, "train.max_steps": 4},
        systems={"plain": {"mining": None}, "two": ["mining=null", "train.captions_per_image=2"], "as-it-is": None},
        seeds=3,
        first_seed=5,
        screen_seeds=2,
        screen_share=0.5,
        survivors=1,
        equal_compute=False,
    )
    words = [config, "rerank=null", "train.max_steps=4", "--seeds", "3", "--first-seed", "5", "--screen-seeds", "2", "--survivors", "1"]
    words += ["--no-equal-compute", "--system", "plain=mining=null", "--system", "two=mining=null,train.captions_per_image=2"]
    found, asked = protocol(file), protocol(*words)
    assert found["systems"].pop("as-it-is") == [] and found == asked
    assert (found["seeds"], found["screening"]) == ([5, 6, 7], {"seeds": [8, 9], "share": 0.5, "survivors": 1})


def test_options_come_before_the_keys_of_the_file(small_world: SmallWorld, tmp_path: Path) -> None:
    small_world.write_config(tmp_path)
    systems = {"a": {"mining": None}, "b": {"train.captions_per_image": 2}}
    file = write(tmp_path, config="job.yaml", overrides=["seed=1"], systems=systems, seeds=3)  # next to the file
    assert Path(protocol(file)["config"]) == tmp_path / "job.yaml"
    changed = protocol(file, "train.max_steps=4", "--seeds", "2", "--system", "c=seed=3", "--system", "d=seed=4")
    assert changed["overrides"] == ["seed=1", "train.max_steps=4"]
    assert (changed["seeds"], changed["systems"]) == ([0, 1], {"c": ["seed=3"], "d": ["seed=4"]})


def test_without_a_file_or_systems_the_presets_are_tried(small_world: SmallWorld, tmp_path: Path) -> None:
    found = protocol(str(small_world.write_config(tmp_path)))
    assert list(found["systems"]) == ["plain", "gentle", "standard", "hard", "two-captions"] and found["seeds"] == list(range(8))
    assert found["equal_compute"] is True and found["screening"] is None


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"system": {}}, "system: unknown key; did you mean systems?"),
        ({"equal-compute": True}, "equal-compute: unknown key; did you mean equal_compute?"),
        ({"seeds": True}, "seeds: Input should be a valid integer; found True"),
        ({"seeds": 0}, "seeds: Input should be greater than or equal to 1; found 0"),
        ({"screen_share": 1.5}, "screen_share: Input should be less than or equal to 1; found 1.5"),
        ({"overrides": "seed=1"}, "overrides: Input should be a valid list; found 'seed=1'"),
        ({"systems": ["a"]}, "systems: Input should be a valid dictionary"),
        ({"config": None}, "config: Input should be a valid string"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(keys: dict[str, Any], expected: str, tmp_path: Path) -> None:
    file = write(tmp_path, **({"config": "job.yaml", "systems": {"a": {}, "b": {}}} | keys))
    with pytest.raises(UserError) as refused:
        protocol(file)
    assert f"{file}: 1 fault(s) in the study" in str(refused.value) and expected in str(refused.value)


def test_a_cross_encoders_study_reads_its_own_stage_and_counts_no_compute(reranker_world: RerankerWorld, tmp_path: Path) -> None:
    """One of two queries of a direction right; 2 hard captions and 1 hard image of each of 8 images in a step."""
    config = str(reranker_world.write_config(tmp_path))
    found = protocol(config, "--system", "all=model.what=all", "--system", "head=model.what=head")
    assert found["equal_compute"] is False
    folder = tmp_path / "runs" / "all-0"
    (folder / "eval" / "test").mkdir(parents=True)
    rows = [{"stage": stage, "rank": 1} for stage in ("miner", "miner+blip", "miner+blip-tuned")]
    pq.write_table(pa.Table.from_pylist(rows), folder / "eval" / "test" / "queries.parquet")
    stage = {"image_to_text": {"R@1": 0.5, "R@5": 1.0}, "text_to_image": {"R@1": 0.75, "R@5": 1.0}}
    report = {"stages": {"miner": {}, "miner+blip-tuned": stage}}
    (folder / "eval" / "test" / "report.json").write_text(json.dumps(report))
    step = {"event": "step", "step": 1, "seconds": 2.0, "num_true": 8, "num_hard_caption": 16, "num_hard_image": 8, "num_easy": 0}
    (folder / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    result = Result.read(Planned(system="all", seed=0, overrides=(), folder=folder), load_system(config, []))
    assert result.recall_at(1) == {"image_to_text": 0.5, "text_to_image": 0.75, "both": 0.625}
    assert result.queries["stage"].to_pylist() == ["miner+blip-tuned"] and result.mined_per_image == 3.0
    assert (result.near_miss(), result.retention(), result.seconds) == (None, {}, 2.0)


def test_a_page_shows_what_is_there_of_each_system() -> None:
    """Two systems, one without retention and choice sets, and none with counted compute."""
    recalls = {"mean_R@1": 0.4, "R@1_image_to_text": 0.5, "R@1_text_to_image": 0.3, "mean_R@5": 0.7, "R@5_image_to_text": 0.8}
    row = recalls | {"R@5_text_to_image": 0.6, "near_miss": 0.9, "mined_per_image": 0.0, "num_steps": [4], "chosen_steps": [2]}
    row |= {"seconds": 3.0, "flops": None}
    systems = [row | {"system": "a", "retention": {"past": -0.02}}, row | {"system": "b", "retention": {}, "near_miss": None}]
    way = {"delta": 0.1, "ci95_seeds": None, "ci95_images": (0.05, 0.15), "p_value": None, "by_seed": [0.1]}
    compared = {"system": "b", "against": "a", "verdict": "no evidence", "image_to_text": way, "text_to_image": way, "both": way}
    asked = {"systems": {"a": [], "b": ["seed=3"]}, "seeds": [0], "screening": None, "command": "C"}
    data = {"split": "test", "num_images": 10, "num_captions": 20}
    record = {"protocol": asked, "data": data, "systems": systems, "comparisons": [compared]}
    text = page(record)
    assert "| a | 40.0 | 50.0 | 30.0 | 70.0 | 80.0 | 60.0 | 90.0 | 0.00 | 4 (2) | 3 |  |" in text
    assert "| a | -2.0 |\n| b |  |" in text
    assert answer(record)[1] == "b   40.0  +10.0 [+5.0, +15.0]: no evidence"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_a_shipped_study_is_one_that_can_begin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = protocol(str(path))
    assert found["config"] == "configs/demo.yaml" and len(found["systems"]) > 1
    assert f"./launch.sh study {path.relative_to(ROOT).as_posix()}" in path.read_text(encoding="utf-8")
