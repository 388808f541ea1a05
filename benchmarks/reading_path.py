"""Which files a reader meets from launch.sh to the end of the first optimizer step.

    python benchmarks/reading_path.py [CONFIG.yaml [key.path=value ...]]

Counted: launch.sh, what it sources and the Python it runs before the trainer; then each file of eval, rerank and train in which a function
(not only the module's own lines) ran between the start of `python -m train` and the end of the first optimizer step, in one process.
Pictures are decoded in that process too, so that the loader's workers hide nothing.
"""

import inspect
import re
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OURS = ("eval", "rerank", "train")
DEFAULT = ("configs/demo.yaml",)


class _FirstStep(Exception):
    """The first optimizer step is over."""


def shell_files() -> list[str]:
    """launch.sh and the shell files it sources."""
    sourced = re.findall(r"^source (\S+)", (ROOT / "launch.sh").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return ["launch.sh", *sourced]


def python_files(arguments: list[str]) -> dict[str, int]:
    """Python files of ours, in the order in which their first function runs, and how many of their functions ran."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from train import __main__ as command

    functions: dict[str, set[Any]] = {}

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(str(ROOT)):
            name = str(Path(code.co_filename).relative_to(ROOT))
            if name.split("/")[0] in OURS and code not in functions.get(name, ()) and not _in_import(frame):
                functions.setdefault(name, set()).add(code)

    def stop(*_: object) -> None:
        raise _FirstStep

    register_optimizer_step_post_hook(stop)
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(profile)
        try:
            code = command.run([*arguments, f"runs_folder={folder}", "data.num_workers=0", "train.max_steps=1"])
        except _FirstStep:
            code = 0
        finally:
            sys.setprofile(None)
    if code:
        sys.exit(f"the run ended before its first step, with exit code {code}")
    return {name: len(codes) for name, codes in functions.items()}


def _in_import(frame: FrameType | None) -> bool:
    """Whether a function runs because a module is being imported."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals["__name__"] != "__main__":
            return True
        frame = frame.f_back
    return False


def main() -> None:
    """The command."""
    sys.path.insert(0, str(ROOT))
    found = dict.fromkeys(shell_files(), 0) | python_files(sys.argv[1:] or list(DEFAULT))
    total = 0
    for name, count in found.items():
        lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        total += lines
        print(f"{lines:6} {name}" + (f"  ({count} functions)" if count else ""))
    print(f"{len(found)} files, {total:,} lines")


if __name__ == "__main__":
    main()
