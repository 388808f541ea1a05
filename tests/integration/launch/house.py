"""A copy of the top level with a stand-in for train/, so that launch.sh runs for real and the trainer does as it is told."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[3]
TOP_LEVEL = ("launch.sh", "train/launch", "train/config/yaml_text.py", "pyproject.toml", "constraints.txt", "configs/accelerate")
# Generous: only a launch that hangs reaches it. No test asserts a time.
HANG_SECONDS = 240.0
OURS = (
    "LAUNCH_ARGS",
    "TRAIN_EXIT_FILE",
    "OMP_NUM_THREADS",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "PYTHONPATH",
)
PYTHON = str(Path(sys.prefix) / "bin" / "python") if sys.prefix != sys.base_prefix else sys.executable

TRAINER = '''
"""A trainer that notes who it is and does as its key=value arguments say: exit=N, exit.RANK=N, wait=yes, reduce=yes."""
import json, os, signal, sys, time
from pathlib import Path

rank = os.environ.get("RANK", "0")
notes = Path(os.environ["NOTES"])
options = dict(word.split("=", 1) for word in sys.argv[2:] if "=" in word)


def note(name, value):
    path = notes / f"{rank}.{name}"
    path.with_suffix(".part").write_text(json.dumps(value))
    path.with_suffix(".part").rename(path)


def end(code):
    if "TRAIN_EXIT_FILE" in os.environ:
        Path(f"{os.environ['TRAIN_EXIT_FILE']}.{rank}").write_text(str(code))
    os._exit(code)


def stop(number, frame):
    note(signal.Signals(number).name, True)
    end(128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM))


for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, stop)
variables = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "ACCELERATE_USE_CPU", "WORLD_SIZE", "TRAIN_EXIT_FILE")}
note("start", {"pid": os.getpid(), "ppid": os.getppid(), "argv": sys.argv[1:], "cwd": os.getcwd(), "python": sys.executable, **variables})
if "reduce" in options:
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator()
    total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0]))
    note("world", {"size": accelerator.num_processes, "sum": total.item(), "device": accelerator.device.type})
    accelerator.end_training()
while options.get("wait", "no") == rank or options.get("wait") == "yes":
    time.sleep(0.05)
code = options.get(f"exit.{rank}", options.get("exit", "0"))
if code == "crash":
    os._exit(9)
end(int(code))
'''


def clean_environment() -> dict[str, str]:
    """This process's environment without what would steer a launch."""
    prefixes = ("SLURM_", "ACCELERATE_")
    return {name: value for name, value in os.environ.items() if name not in OURS and not name.startswith(prefixes)}


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Return once the condition holds; raises TimeoutError if it never does."""
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """True if a process of this id exists and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children_running(pid: int, word: str) -> list[int]:
    """Ids of a process's children that have this word in their command line."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in child.cmdline():
                found.append(child.pid)
    return found


# A suite that a shell runs in the background ignores SIGINT, and a shell script cannot trap what it was born ignoring.
HEED_EVERY_SIGNAL = ("env", "--default-signal=INT,QUIT,HUP")


class Launch:
    """One running launch.sh."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: dict[str, str], notes: Path) -> None:
        self.notes = notes
        self.process = subprocess.Popen(
            [*HEED_EVERY_SIGNAL, *command],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def note(self, name: str, rank: int = 0) -> dict | bool | None:
        """What a trainer noted under this name, None if it has not."""
        path = self.notes / f"{rank}.{name}"
        return json.loads(path.read_text()) if path.exists() else None

    def wait_for_trainers(self, num_trainers: int) -> list[dict]:
        """What each trainer reports about itself, once all have started."""
        wait_for(lambda: all(self.note("start", rank) for rank in range(num_trainers)), "the trainers did not start")
        return [self.note("start", rank) for rank in range(num_trainers)]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to launch.sh itself, and to nothing else."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once it has ended."""
        stdout, stderr = self.process.communicate(timeout=HANG_SECONDS)
        return self.process.returncode, stdout, stderr


class House:
    """A folder that holds launch.sh and a stand-in trainer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_launches = 0
        for name in TOP_LEVEL:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name)
            else:
                shutil.copy(ROOT / name, folder / name)
        (folder / "train").mkdir(exist_ok=True)
        (folder / "train" / "__init__.py").touch()
        (folder / "train" / "__main__.py").write_text(TRAINER)
        (folder / "configs" / "demo.yaml").write_text("name: demo\n")

    def start(self, *arguments: str, cwd: Path | None = None, **variables: str) -> Launch:
        """Start launch.sh with these arguments; by default the environment the tests run in is the active one."""
        notes = self.folder / f"notes-{self.num_launches}"
        notes.mkdir(exist_ok=True)
        self.num_launches += 1
        environment = clean_environment() | {"VIRTUAL_ENV": sys.prefix, "NOTES": str(notes)}
        if sys.prefix == sys.base_prefix:
            del environment["VIRTUAL_ENV"]
            environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        # What a variable is set to "" for is absent.
        environment = {name: value for name, value in (environment | variables).items() if value != ""}
        return Launch([str(self.folder / "launch.sh"), *arguments], cwd or self.folder, environment, notes)
