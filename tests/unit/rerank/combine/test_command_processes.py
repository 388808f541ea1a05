"""`python -m eval` under a launcher: two and three processes write what one writes, and what one meets ends all."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from eval.errors import UserError
from eval.process_group import joined_processes, launched_device
from eval.processes import Processes
from tests.nursery import Nursery, Trap
from tests.small_job import TINY, SmallWorld, load
from train.model.random_init import write_scratch

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def arguments(small_world: SmallWorld, tiny_blip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two checkpoints, each alone and reranked; pictures of the train split fill two blocks, its captions one."""
    other = tmp_path_factory.mktemp("other") / "base"
    write_scratch(other, TINY, load(small_world.manifest), seed=2)
    models = ["--model", str(small_world.base), "--also", f"other={other}", "--rerank", str(tiny_blip), "--top-k", "6"]
    return [*models, "--data", str(small_world.manifest), "--split", "train", "--num-workers", "0", "--slice-by", "split"]


@pytest.fixture(scope="module")
def alone(arguments: list[str], nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes."""
    folder = tmp_path_factory.mktemp("alone") / "report"
    child = nursery.start("eval", [*arguments, "--output", str(folder)], env={"ACCELERATE_USE_CPU": "true"})
    assert child.wait() == 0, child.output()
    return folder


def without_cost(folder: Path) -> dict:
    record = json.loads((folder / "report.json").read_text())
    for stage in record["stages"].values():
        stage["cost"] = {key: value for key, value in stage["cost"].items() if "seconds" not in key}
    return record


@pytest.mark.parametrize("num", [2, 3])
def test_several_processes_write_what_one_writes(nursery: Nursery, arguments: list[str], alone: Path, tmp_path: Path, num: int) -> None:
    ranks = nursery.start_ranks("eval", [*arguments, "--output", str(tmp_path / "report")], num)
    assert [child.wait() for child in ranks] == [0] * num, ranks[0].output()
    table, expected = (pq.read_table(folder / "queries.parquet") for folder in (tmp_path / "report", alone))
    assert expected.num_rows == 4 * (40 + 82) and set(expected["stage"].to_pylist()) == {"model", "other", "model+blip", "other+blip"}
    assert table.equals(expected)
    assert without_cost(tmp_path / "report") == without_cost(alone)
    assert "report.html" in ranks[0].output()
    assert all(child.output() == "" for child in ranks[1:])


def test_another_run_of_two_scores_nothing_that_one_has_scored(nursery: Nursery, arguments: list[str], alone: Path, tmp_path: Path) -> None:
    kept = ["--pair-scores", str(alone / "pair-scores")]
    ranks = nursery.start_ranks("eval", [*arguments, *kept, "--output", str(tmp_path / "report")], 2)
    assert [child.wait() for child in ranks] == [0, 0], ranks[0].output()
    assert pq.read_table(tmp_path / "report" / "queries.parquet").equals(pq.read_table(alone / "queries.parquet"))
    for name in ("model+blip", "other+blip"):
        before, after = (
            json.loads((folder / "report.json").read_text())["stages"][name]["cost"] for folder in (alone, tmp_path / "report")
        )
        assert before["pairs_kept"] == after["pairs_scored"] == after["images_encoded"] == 0
        assert before["pairs_scored"] == after["pairs_kept"] == before["pairs_needed"] > 0
    assert not (tmp_path / "report" / "pair-scores").exists()


@pytest.mark.slow
def test_a_real_torchrun_does(small_world: SmallWorld, alone: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "eval"]
    asked = ["--model", small_world.base, "--data", small_world.manifest, "--split", "train", "--output", tmp_path / "report"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, *map(str, asked)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report.html") == 1
    expected = pq.read_table(alone / "queries.parquet")
    assert pq.read_table(tmp_path / "report" / "queries.parquet").equals(expected.filter(pc.equal(expected["stage"], "model")))


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ([], 2, "train-039.png: cannot be decoded: no picture of a known format"),  # of the second process's block
        (["--output", "FILE/under"], 4, "could not write"),  # by the main process alone
        (["--split", "tset"], 2, "no row has split 'tset'"),
    ],
)
def test_what_one_process_meets_ends_all_with_one_message(
    nursery: Nursery, arguments: list[str], small_world: SmallWorld, tmp_path: Path, change: list[str], code: int, message: str
) -> None:
    data = shutil.copytree(small_world.manifest.parent, tmp_path / "data")
    (data / "pictures" / "train-039.png").write_bytes(b"no picture")
    (tmp_path / "file").write_text("a file where a folder is wanted")
    asked = [*arguments, "--data", str(data / "pairs.jsonl"), *(word.replace("FILE", str(tmp_path / "file")) for word in change)]
    if "--output" not in change:
        asked += ["--output", str(tmp_path / "report")]
    ranks = nursery.start_ranks("eval", asked, 2)
    assert [child.wait() for child in ranks] == [code, code], ranks[0].output()
    assert message in ranks[0].output() and "Traceback" not in ranks[0].output()
    assert ranks[1].output() == ""
    assert not (tmp_path / "report" / "report.json").exists()


def test_a_picture_that_only_the_reranker_finds_broken_ends_all(
    nursery: Nursery, arguments: list[str], small_world: SmallWorld, tmp_path: Path
) -> None:
    """The second process loses a picture between embedding and reranking: the first must not wait for its scores for ever."""
    data = shutil.copytree(small_world.manifest.parent, tmp_path / "data")
    asked = [*arguments, "--data", str(data / "pairs.jsonl"), "--output", str(tmp_path / "report")]
    ranks = nursery.start_ranks("eval", asked, 2, traps={1: Trap("rerank.reorder.stages:check_top_k", 2, signal.SIGSTOP)})
    ranks[1].wait_until(lambda: is_stopped(ranks[1].pid))
    (data / "pictures" / "train-001.png").write_bytes(b"no picture")
    ranks[1].kill(signal.SIGCONT)
    assert [child.wait() for child in ranks] == [2, 2], ranks[0].output()
    assert "train-001.png: cannot be decoded" in ranks[0].output() and ranks[1].output() == ""


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_what_a_launcher_says_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two', expected a number"), joined_processes():
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but the processes did not come together .*torchrun"), joined_processes():
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined_processes() as (processes, _):
        assert processes == Processes() and not torch.distributed.is_initialized()


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert launched_device() == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"2 processes were started here, for 1 GPU\(s\); start one per GPU"):
        launched_device()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert launched_device() == torch.device("cpu")
