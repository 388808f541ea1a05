"""launch.sh with one process: python takes the shell's place, so codes and signals are its own."""

import signal
import sys
from pathlib import Path

import pytest

from tests.integration.launch.house import House, is_running


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 143])
def test_exit_code(house: House, code: int) -> None:
    assert house.start("configs/demo.yaml", f"exit={code}").end()[0] == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_the_trainer(house: House, number: signal.Signals) -> None:
    launch = house.start("configs/demo.yaml", "wait=yes")
    (trainer,) = launch.wait_for_trainers(1)
    assert trainer["pid"] == launch.process.pid, "python should have taken the shell's place"
    launch.send(number)
    assert launch.end()[0] == (130 if number == signal.SIGINT else 143)
    assert launch.note(number.name) and not is_running(trainer["pid"])


def test_the_default_is_the_demo_in_the_active_environment(house: House, tmp_path: Path) -> None:
    launch = house.start(cwd=tmp_path)
    code, _, stderr = launch.end()
    start = launch.note("start")
    assert code == 0 and start["argv"] == [str(house.folder / "configs" / "demo.yaml")]
    assert start["cwd"] == str(house.folder)
    assert Path(start["python"]).parent == Path(sys.executable).parent and not (house.folder / ".venv").exists()
    assert [line for line in stderr.splitlines() if "using" in line] == [f"launch.sh: using the active environment, {start['python']}"]
    assert start["OMP_NUM_THREADS"] is None and start["TRAIN_EXIT_FILE"] is None


def test_arguments_pass_unharmed(house: House) -> None:
    words = ["data.columns.caption=two words", 'name=it\'s "quoted" $HOME *', "empty="]
    launch = house.start("configs/demo.yaml", *words)
    assert launch.end()[0] == 0
    assert launch.note("start")["argv"][1:] == words


def test_a_configuration_is_found_from_the_callers_folder_first(house: House, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    (elsewhere / "configs").mkdir(parents=True)
    for name in ("my own.yaml", "configs/demo.yaml"):
        (elsewhere / name).touch()
        launch = house.start(name, cwd=elsewhere)
        assert launch.end()[0] == 0
        assert launch.note("start")["argv"] == [str(elsewhere / name)]


@pytest.mark.parametrize("arguments", [["configs/nowhere.yaml"], ["tets"], ["train.max_steps=3"], ["--frobnicate"]])
def test_a_wrong_first_word_is_refused_before_anything_is_set_up(house: House, arguments: list[str]) -> None:
    launch = house.start(*arguments)
    code, stdout, stderr = launch.end()
    assert code == 2 and stdout == ""
    assert arguments[0] in stderr.splitlines()[-1] and "using" not in stderr
    assert launch.note("start") is None


def test_help(house: House) -> None:
    for option in ("-h", "--help"):
        code, stdout, stderr = house.start(option).end()
        assert (code, stderr) == (0, "") and "./launch.sh test" in stdout and "LAUNCH_ARGS" in stdout
