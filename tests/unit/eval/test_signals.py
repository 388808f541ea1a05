"""eval/signals.py: which signals end a command, and what is told of those that do not."""

import subprocess
import sys
from pathlib import Path

import pytest

from eval.signals import StopSignals

ROOT = Path(__file__).parents[3]
STUCK = """
import os, signal, threading, time
from eval import signals
signals._GRACE_SECONDS = 0.3
signal.signal(signal.SIGCHLD, lambda *_: None)
with signals.StopSignals(raises=True):
    try:
        os.kill(os.getpid(), {number})
        time.sleep(1)
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
        time.sleep(30)
"""


@pytest.mark.parametrize(
    ("number", "code", "said", "printed"),
    [
        ("signal.SIGCHLD", 0, "", ""),  # a worker ended
        ("signal.SIGUSR1", 143, "stopped: told to by SIGUSR1\n", "Interruption told to by SIGUSR1\n"),
        ("signal.SIGINT", 130, "stopped: interrupted\n", "Interruption interrupted\n"),
    ],
)
def test_a_command_that_does_not_end_is_ended(number: str, code: int, said: str, printed: str) -> None:
    """Interrupted where it is, and ended after a while where that helps nothing; no other signal does either."""
    script = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)" + STUCK.format(number=number)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (code, said, printed)

MAKING_WORKERS = """
import os, signal, torch.utils.data.dataloader as torch_loader
from eval.encoder.loader import block_loader
from eval import signals
made = torch_loader._MultiProcessingDataLoaderIter.{method}
def interrupted(self, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    made(self, *arguments)
torch_loader._MultiProcessingDataLoaderIter.{method} = interrupted
with signals.StopSignals(raises={raises}) as stop:
    loaded = block_loader([10, 11], num_workers=1)
    try:
        print(signals.next_item(loaded), stop.asked)
        loaded.close()
        print("closed", stop.asked)
    except KeyboardInterrupt as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("method", "raises", "printed"),
    [
        ("__init__", False, "None True\nclosed True\n"),
        ("__init__", True, "Interruption told to by SIGTERM\n"),
        ("_shutdown_workers", False, "10 False\nclosed True\n"),
        ("_shutdown_workers", True, "10 False\nInterruption told to by SIGTERM\n"),
    ],
)
def test_a_signal_while_workers_are_made_or_ended_waits_until_they_are(method: str, raises: bool, printed: str) -> None:
    """Raised inside, it would leave a loader half made, whose end is then printed with a traceback."""
    script = MAKING_WORKERS.format(method=method, raises=raises)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", printed)


def test_a_worker_that_its_parent_leaves_is_silent_and_any_other_error_is_printed() -> None:
    code = (
        "import sys\nfrom eval.signals import leave_signals_to_parent\nleave_signals_to_parent()\n"
        "for error in (ConnectionResetError('left'), BrokenPipeError('left'), EOFError('left'), ValueError('wrong')):\n"
        "    sys.excepthook(type(error), error, None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "ValueError: wrong\n"


def test_a_run_can_be_asked_to_stop_without_a_signal() -> None:
    signals = StopSignals()
    assert not signals.asked
    signals.ask()
    assert signals.asked and signals.exit_code == 143
