"""eval/signals.py: which signals end a command, and what is told of those that do not."""

import subprocess
import sys
from pathlib import Path

import pytest

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
