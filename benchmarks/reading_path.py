"""Which files a reader meets from launch.sh to the end of the first optimizer step.

    python benchmarks/reading_path.py [CONFIG.yaml [key.path=value ...]]      by default the demo's training alone

Three counts, each of which contains the one before. Every file of ours is counted in which a function ran, not only the lines of a module;
images are decoded in the trainer's own process, so that no worker of the loader hides what it runs.

    step    launch.sh and the shell files of which it runs a line; the calls that lead to the step, from `python -m train` down; what runs
            in the step: batch, both towers, loss, gradients, update
    run     and what is set up before it: the environment's check, configuration, data, model, optimizer, the first checkpoint
    import  and every module of ours that was imported on the way, whether or not anything of it ran
"""

import inspect
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).resolve().parents[1]
OURS = ("eval", "rerank", "train")
TRAINING_ALONE = (
    "configs/demo.yaml", "mining=null", "rerank=null", "watch=[]", "choices=null", "data.val_split=null", "data.test_split=null",
    "data.truth=null", "train.batch_size=8",
)  # fmt: skip


class FirstStep(Exception):
    """The first optimizer step is over."""


def launch_files(folder: Path) -> tuple[list[str], list[str]]:
    """Shell files of which a line runs under `./launch.sh`, one process on the CPU, and the Python files that it runs before the trainer.

    Args:
        folder: where an environment is faked whose Python only notes what it is asked to run.
    """
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$1" >>{folder}/asked\necho "$0"\n', encoding="utf-8")
    python.chmod(0o755)
    environment = os.environ | {"VIRTUAL_ENV": str(folder), "ACCELERATE_USE_CPU": "true"}
    environment.pop("LAUNCH_ARGS", None)
    script = "PS4='+$BASH_SOURCE+ '; set -x; source ./launch.sh"
    traced = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stderr
    sources = re.findall(r"^\++([^+ ]*\.sh)\+ ", traced, flags=re.MULTILINE)
    asked = (folder / "asked").read_text(encoding="utf-8").splitlines()
    python_files = [str(Path(path).relative_to(ROOT)) for path in asked if path.endswith(".py")]
    return list(dict.fromkeys(path.removeprefix("./") for path in sources)), python_files


def python_files(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Files of ours: met in the step, met in the run, imported; each in the order in which it is met."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from train import __main__ as command

    step: list[str] = []
    run: list[str] = []
    known: set[tuple[CodeType, bool]] = set()
    is_in_step = False

    def met(frame: FrameType, _event: str, _: object) -> None:
        nonlocal is_in_step
        code = frame.f_code
        if (code, is_in_step) in known or not code.co_flags & inspect.CO_OPTIMIZED:
            return
        known.add((code, is_in_step))
        if (name := _name(code)) is None or _in_import(frame):
            return
        run.append(name)
        if name == "train/engine/loop.py" and code.co_name == "_step":
            is_in_step = True
            step.extend(_callers(frame))
        if is_in_step:
            step.append(name)

    def stop(*_: object) -> None:
        sys.settrace(None)
        raise FirstStep

    hook = register_optimizer_step_post_hook(stop)
    with tempfile.TemporaryDirectory() as folder:
        sys.settrace(met)  # without a local function: calls of Python functions alone
        try:
            code = command.run([*arguments, f"runs_folder={folder}", "data.num_workers=0", "train.max_steps=1"])
        except FirstStep:
            code = 0
        finally:
            sys.settrace(None)
            hook.remove()
    if code or not step:
        sys.exit(f"the run ended before its first step, with exit code {code}")
    imported = [str(Path(module.__file__).relative_to(ROOT)) for name, module in sys.modules.items() if _is_ours(name) and module.__file__]
    return list(dict.fromkeys(step)), list(dict.fromkeys(run)), imported


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in OURS


def _name(code: CodeType) -> str | None:
    """The path of a function's file below our folder; None: it is not ours."""
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT):
        return None
    name = str(path.relative_to(ROOT))
    return name if name.endswith(".py") and name.split("/")[0] in OURS else None


def _callers(frame: FrameType | None) -> list[str]:
    """The files of the functions that led here, the first caller first."""
    found: list[str] = []
    while frame is not None:
        if (name := _name(frame.f_code)) is not None:
            found.append(name)
        frame = frame.f_back
    return found[::-1]


def _in_import(frame: FrameType | None) -> bool:
    """Whether a function runs because a module of ours is being imported."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and _is_ours(frame.f_globals["__name__"]):
            return True
        frame = frame.f_back
    return False


def num_lines(names: list[str]) -> int:
    """Lines of all files together."""
    return sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in names)


def main() -> None:
    """The command."""
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        shell, before = launch_files(Path(folder))
    step, run, imported = python_files(sys.argv[1:] or list(TRAINING_ALONE))
    counts = {"step": [*shell, *step]}
    counts["run"] = [*counts["step"], *before, *(name for name in run if name not in step)]
    counts["import"] = [*counts["run"], *(name for name in imported if name not in counts["run"])]
    for name in counts["run"]:
        print(f"{num_lines([name]):6}  {'step' if name in counts['step'] else 'run '}  {name}")
    for what, names in counts.items():
        print(f"{what:8}{len(names):4} files, {num_lines(names):6,} lines")


if __name__ == "__main__":
    main()
