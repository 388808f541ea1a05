"""A scoring of some thousand pairs, killed at random, ends like an undisturbed one; only what was in flight is scored twice."""

import json
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from rerank.scoring.score_cache import DIGEST
from tests.faults.scorings import lists, straight
from tests.nursery import ROOT, Child, Nursery, Trap
from tests.small_job import SmallWorld

MODULE = "tests.faults.scorings"


def fresh_random() -> random.Random:
    """Other moments at each run of the tests; the seed is shown where one fails."""
    seed = time.time_ns()
    print(f"seed {seed}")
    return random.Random(seed)


def lines(path: Path) -> list[int]:
    """The images a process began, in order."""
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def kill_somewhere(ranks: list[Child], logs: list[Path], num_begun: int, rng: random.Random) -> None:
    """SIGKILL every process at a moment of its own once so many images have been begun by all."""
    ranks[0].wait_until(lambda: sum(len(lines(log)) for log in logs) >= num_begun)
    for child in rng.sample(ranks, len(ranks)):
        time.sleep(rng.random() * 0.004)
        child.kill(signal.SIGKILL)
    assert all(child.wait() != 0 for child in ranks), [child.output() for child in ranks]


def check_result(folder: Path, rank: int) -> None:
    expected, found = straight(), np.load(folder / f"{rank}.npz")
    assert expected.lists.num_pairs > 4000
    assert np.array_equal(found["keys_N"], expected.lists.keys_N) and np.array_equal(found["scores_N"], expected.scores_N)


def check_begun(begun: list[list[int]]) -> None:
    """Of the images that a process began, in run after run, only the last of a killed run is begun by any later one.

    Args:
        begun: of each run (of each of its processes), what it began.
    """
    done = [image for one in begun for image in one[:-1]]
    assert len(set(done)) == len(done)
    assert {image for one in begun for image in one} == set(range(lists().num_images))


def test_ten_kills_of_one_process(nursery: Nursery, tmp_path: Path) -> None:
    rng, begun = fresh_random(), []
    share = lists().num_images // 11
    for number in range(10):
        log = tmp_path / f"log-{number}"
        child = nursery.start(MODULE, [str(tmp_path / "cache"), str(log), str(tmp_path)])
        kill_somewhere([child], [log], rng.randint(1, share), rng)
        begun.append(lines(log))
    log = tmp_path / "log-last"
    child = nursery.start(MODULE, [str(tmp_path / "cache"), str(log), str(tmp_path)])
    assert child.wait() == 0, child.output()
    assert 0 < len(lines(log)) < lists().num_images
    check_begun([*begun, [*lines(log), *lines(log)[-1:]]])
    check_result(tmp_path, 0)


def test_a_job_told_to_stop_while_it_reranks_leaves_after_the_image_and_goes_on_from_there(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path
) -> None:
    rerank = {"model": str(ROOT / "demo" / "models" / "blip-itm"), "top_k": 3}
    config = str(small_world.write_config(tmp_path, train__max_steps=2, mining=None, rerank=rerank))
    child = nursery.start("train", [config], trap=Trap("rerank.scoring.pair_scores:_score_image", 3, signal.SIGTERM))
    assert child.wait() == 143, child.output()
    (path,) = (tmp_path / "runs" / "pair-scores").rglob("*.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        lengths = [len(captions) // DIGEST.itemsize for (captions,) in connection.execute("SELECT captions FROM lists")]
    assert len(lengths) == 3
    child = nursery.start("train", [config])
    assert child.wait() == 0, child.output()
    stages = json.loads((tmp_path / "runs" / "job" / "eval" / "test" / "report.json").read_text())["stages"]
    costs = [stages[name]["cost"] for name in ("base+blip", "tuned+blip")]
    assert 0 < max(cost["pairs_kept"] for cost in costs) <= sum(lengths) <= sum(cost["pairs_kept"] for cost in costs)
    assert all(cost["pairs_kept"] + cost["pairs_scored"] == cost["pairs_needed"] for cost in costs)


@pytest.mark.parametrize("disks", ["one disk", "a disk each"])
def test_kills_of_two_processes(nursery: Nursery, tmp_path: Path, disks: str) -> None:
    """On a disk they share, and on machines that know only what they scored themselves."""
    cache = str(tmp_path / ("cache" if disks == "one disk" else "cache-{rank}"))
    rng, begun = fresh_random(), []
    for number in range(4):
        logs = [tmp_path / f"log-{number}-{rank}" for rank in range(2)]
        ranks = nursery.start_ranks(MODULE, [cache, str(tmp_path / f"log-{number}-{{rank}}"), str(tmp_path)], 2)
        if number < 3:
            kill_somewhere(ranks, logs, rng.randint(1, lists().num_images // 5), rng)
            begun += [lines(log) for log in logs]
        else:
            assert [child.wait() for child in ranks] == [0, 0], ranks[0].output()
            begun += [[*lines(log), *lines(log)[-1:]] for log in logs]
    check_begun(begun)
    for rank in range(2):
        check_result(tmp_path, rank)


def test_a_score_cache_that_cannot_be_made_ends_a_job_before_its_first_step(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path
) -> None:
    rerank = {"model": str(ROOT / "demo" / "models" / "blip-itm"), "top_k": 2, "pair_scores": "/proc/no"}
    child = nursery.start("train", [str(small_world.write_config(tmp_path, rerank=rerank))])
    assert child.wait() == 4 and "could not make the score cache /proc/no" in child.output()
    assert not list(tmp_path.rglob("step-*"))
