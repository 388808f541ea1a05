"""launch.sh with two processes, through the real `accelerate launch` on the CPU: codes, signals, and nobody left behind."""

import os
import shutil
import signal

import psutil
import pytest

from tests.integration.launch.house import House, children_running, is_running, wait_for

TWO = "--config_file configs/accelerate/cpu-2.yaml"


def test_exit_codes_of_jobs_that_run_at_once(house: House) -> None:
    """All at once, so that a port that two jobs shared would show, too."""
    asked = {"exit=0": 0, "exit=2": 2, "exit=3": 3, "exit.1=4 wait=0": 4, "exit.0=5 wait=1": 5, "exit=crash": 1}
    launches = {words: house.start("configs/demo.yaml", *words.split(), LAUNCH_ARGS=TWO) for words in asked}
    ends = {words: launch.end() for words, launch in launches.items()}
    assert {words: end[0] for words, end in ends.items()} == asked, "\n".join(end[2] for end in ends.values())
    for launch in launches.values():
        # A rank whose peer failed at once may have been stopped before it began, and left no note.
        notes = [note for rank in (0, 1) if (note := launch.note("start", rank)) is not None]
        assert notes
        assert not any(is_running(note["pid"]) for note in notes)


def test_two_processes_are_joined(house: House) -> None:
    launch = house.start("configs/demo.yaml", "reduce=yes", "name=two words", LAUNCH_ARGS=TWO)
    code, _, stderr = launch.end()
    assert code == 0, stderr
    for rank in (0, 1):
        assert launch.note("world", rank) == {"size": 2, "sum": 3.0, "device": "cpu"}
        start = launch.note("start", rank)
        assert start["argv"] == [str(house.folder / "configs" / "demo.yaml"), "reduce=yes", "name=two words"]
        assert int(start["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_both_trainers(house: House, number: signal.Signals) -> None:
    launch = house.start("configs/demo.yaml", "wait=yes", LAUNCH_ARGS=TWO)
    trainers = launch.wait_for_trainers(2)
    launch.send(number)
    code, _, stderr = launch.end()
    assert code == (130 if number == signal.SIGINT else 143), stderr
    assert launch.note(number.name, 0) and launch.note(number.name, 1)
    assert not any(is_running(pid) for trainer in trainers for pid in (trainer["pid"], trainer["ppid"]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_trainers_exist_ends_the_launcher(house: House, number: signal.Signals) -> None:
    launch = house.start("configs/demo.yaml", "wait=yes", LAUNCH_ARGS=TWO)
    wait_for(lambda: children_running(launch.process.pid, "accelerate.commands.launch"), "accelerate did not start")
    (launcher,) = children_running(launch.process.pid, "accelerate.commands.launch")
    launch.send(number)
    assert launch.end()[0] == 143
    assert not is_running(launcher)


def test_trainers_whose_launcher_is_killed_are_stopped(house: House) -> None:
    launch = house.start("configs/demo.yaml", "wait=yes", LAUNCH_ARGS=TWO)
    trainers = launch.wait_for_trainers(2)
    psutil.Process(trainers[0]["ppid"]).kill()
    code, _, stderr = launch.end()
    assert code == 143 and "the launcher is gone" in stderr
    assert launch.note("SIGTERM", 0) and launch.note("SIGTERM", 1)
    assert not any(is_running(trainer["pid"]) for trainer in trainers)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_trainers_whose_launch_is_killed_are_stopped(house: House) -> None:
    launch = house.start("configs/demo.yaml", "wait=yes", LAUNCH_ARGS=TWO)
    trainers = launch.wait_for_trainers(2)
    launch.send(signal.SIGKILL)
    launch.end()
    wait_for(lambda: not any(is_running(trainer["pid"]) for trainer in trainers), "trainers were left behind")
    assert launch.note("SIGTERM", 0) and launch.note("SIGTERM", 1)


def test_one_process_through_accelerate(house: House) -> None:
    launch = house.start("configs/demo.yaml", "wait=yes", LAUNCH_ARGS="--num_processes 1 --mixed_precision no")
    (trainer,) = launch.wait_for_trainers(1)
    launch.send(signal.SIGTERM)
    assert launch.end()[0] == 143
    assert launch.note("SIGTERM") and not is_running(trainer["pid"])
