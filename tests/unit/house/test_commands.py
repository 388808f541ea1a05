"""Every command ends the same way: one line and an exit code for what a person can mend, and no traceback."""

import errno
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from safetensors import SafetensorError

from eval.errors import UserError
from train.engine.checkpoint import NoReadableCheckpoint
from train.engine.loop import ProcessesLost, Stopped
from train.optim.update import NotFinite

ROOT = Path(__file__).parents[3]
REPORTS, RUN = ["A", "B"], ["RUN", "--output", "OUT"]
MODEL = ["--model", "M", "--data", "D", "--output", "OUT"]
SOURCE = ["--source", "S", "--images", "I", "--output", "OUT"]
PAIRS = ["--model", "M", "--images", "I", "--captions", "C", "--output", "OUT.parquet"]
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "eval.__main__": ("run", MODEL),
    "eval.choices.__main__": ("run", MODEL),
    "eval.compare.__main__": ("run", REPORTS),
    "eval.convert_choices": ("run", ["--layout", "aro", *SOURCE]),
    "eval.embed.__main__": ("run", MODEL),
    "rerank.__main__": ("run", PAIRS),
    "rerank.convert.__main__": ("run", ["SOURCE", "--output", "OUT"]),
    "rerank.explore.__main__": ("run", ["MODEL", "--images", "FOLDER"]),
    "train.__main__": ("carry_out_as_asked", ["configs/demo.yaml"]),
    "train.reranker.__main__": ("carry_out_as_asked", ["configs/reranker-demo.yaml"]),
    "train.mining.__main__": ("run", ["configs/demo.yaml"]),
    "train.mining.triplets": ("run", ["RUN", "--output", "OUT.jsonl"]),
    "train.config.__main__": ("run", []),
    "train.export.__main__": ("run", RUN),
    "train.init.__main__": ("run", ["pairs.csv"]),
    "train.launch.environment": ("run", []),
    "train.launch.runs": ("run", []),
    "train.soup.__main__": ("run", ["A", "B", "--output", "OUT"]),
    "train.study.__main__": ("_run", ["configs/demo.yaml"]),
    "train.wise.__main__": ("run", RUN),
}
"""Module -> (the function that does its work, the least it can be called with)."""
NO_COMMANDS = {"train.launch.configuration", "train.launch.requirements"}
"""Modules that launch.sh calls."""
FULL_DISK = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
ENDS = {
    "a mistake": (UserError("--data: not there"), 2, "error: --data: not there\n"),
    "no checkpoint": (NoReadableCheckpoint("none is whole"), 3, "error: none is whole\n"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "runs/a/report.json"), 4, "runs/a/report.json"),
    "a full disk of safetensors": (FULL_DISK, 4, "No space left on device"),
    "not finite": (NotFinite("step 3: loss nan"), 5, "error: step 3: loss nan\n"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "stopped: interrupted\n"),
    "SIGTERM": (Stopped(143, 7), 143, "stopped: after step 7; the same command goes on from there\n"),
}


def entry(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """The command as its `__main__` part calls it."""
    command = import_module(module)
    monkeypatch.setattr("sys.argv", [module, *words])
    if module in ("train.__main__", "train.reranker.__main__"):
        return lambda: command.run(words)
    return command.main if module == "eval.__main__" else lambda: command.main(words)


def code_of(command: Callable[[], object]) -> object:
    """What it returns or exits with."""
    try:
        return command()
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("module", COMMANDS)
def test_every_end_has_its_code_and_one_line(
    module: str, end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, code, said = ENDS[end]
    work, words = COMMANDS[module]

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(import_module(module), work, fail)
    monkeypatch.chdir(ROOT)  # which the paths of a configuration are relative to
    assert code_of(entry(module, words, monkeypatch)) == code
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and "Traceback" not in printed.out + printed.err


def test_every_module_that_can_be_run_is_a_command_above() -> None:
    runnable = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in ("eval", "rerank", "train")
        for path in (ROOT / room).rglob("*.py")
        if re.search(r'^if __name__ == "__main__":', path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert runnable == COMMANDS.keys() | NO_COMMANDS


def test_what_nobody_foresaw_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file of safetensors is no full disk, and a fault of ours is no mistake of the person's."""
    from eval.command import run_command

    for error in (SafetensorError("Error while deserializing header: invalid UTF-8 in header"), ZeroDivisionError()):

        def fail(error: Exception = error) -> int:
            raise error

        with pytest.raises(type(error)):
            run_command(fail)


def test_what_one_process_alone_meets_it_says_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from eval.command import run_command

    def end(error: Exception) -> tuple[int, str]:
        def fail() -> int:
            raise error

        return run_command(fail), capsys.readouterr().err

    monkeypatch.setenv("RANK", "1")
    code, said = end(UserError("no such file"))
    assert code == 2 and said.startswith("error on process 1, machine ") and said.endswith(": no such file\n")
    assert end(NotFinite("loss nan")) == (5, "") and end(KeyboardInterrupt()) == (130, "")  # type: ignore[arg-type]
    shared = UserError("on every process")
    shared.is_shared = True
    assert end(shared) == (2, "")
    code, said = end(ProcessesLost(1, "timed out"))
    assert code == 1 and "Traceback" not in said and "lost the other processes (timed out)" in said
