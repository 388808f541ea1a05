"""Starts commands in a few hundredths of a second: a process that has imported everything forks one child per command.

What runs in a child is `python -m MODULE ARGUMENTS` but for the imports: its own process, with real signals, files and exit codes.
A child can be told to be killed on reaching a line of the code that random moments would rarely hit (`Trap`).
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.hosts import Host

ROOT = Path(__file__).parents[1]
PRELOADED = (
    "train.__main__",
    "train.siglip.loop",
    "train.siglip.finish",
    "train.export.__main__",
    "train.mining.__main__",
    "train.data.check_images",
    "train.reranker",
    "train.reranker.loop",
    "train.reranker.finish",
    "train.soup.make",
    "train.wise.curve",
    "eval.__main__",
    "eval.choices.__main__",
    "eval.compare.reports",
    "eval.compare.page",
    "eval.convert_choices",
    "rerank.__main__",
    "rerank.convert.convert",
    "rerank.asked",
    "rerank.answers.collection",
    "rerank.answers.output",
    "peft",
)
SECONDS = 240  # far more than any command takes: reached only by one that hangs


@dataclass(frozen=True)
class Trap:
    """A signal the command sends itself on entering a function.

    Attributes:
        function: "module:attribute", as the caller of it looks it up, e.g. "train.siglip.mining:mine" or "os:rename".
        nth: which call of it, from 1.
        signal: number of the signal.
        after: send it when the call has returned, not before it begins.
        settled: send it when no checkpoint is being written any more.
    """

    function: str
    nth: int = 1
    signal: int = signal.SIGKILL
    after: bool = False
    settled: bool = False


@dataclass
class Child:
    """A running command."""

    nursery: "Nursery"
    pid: int
    log: Path

    def wait(self, seconds: float = SECONDS) -> int:
        """Exit code; -N when signal N ended it. No command prints a traceback, whatever it met: that would be a bug. (Its workers may,
        where it was killed and cannot see to them.)"""
        code = self.wait_for_code(seconds)
        if code != -signal.SIGKILL:
            assert_no_traceback(self.output())
        return code

    def wait_for_code(self, seconds: float = SECONDS) -> int:
        """The same, whatever it printed."""
        return self.nursery.ask({"wait": self.pid, "seconds": seconds}, seconds + 30)

    def kill(self, number: int) -> None:
        """Send a signal; a command that ended already is left in peace (it is a zombie until it is waited for)."""
        os.kill(self.pid, number)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, e.g. a line of metrics.jsonl.

        Raises:
            TimeoutError: it does not come true; with the command's output.
        """
        deadline = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(self.output())
            time.sleep(0.005)

    def stopped(self) -> bool:
        """Whether a stop signal holds it: none of its threads runs (state T, the field after the name in proc(5)'s stat)."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def output(self) -> str:
        """Standard output and error so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def assert_no_traceback(output: str) -> None:
    """What a command printed ends with its message: nothing fell over afterwards."""
    assert "Traceback" not in output, output


class Nursery:
    """The process that forks; one thread each, so that runs can be compared bit for bit."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._num_started = folder, 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(
        self,
        module: str,
        arguments: list[str],
        *,
        env: dict[str, str] | None = None,
        trap: Trap | None = None,
        namespace: str | None = None,
        stdin: Path = Path(os.devnull),
        cwd: Path = ROOT,
    ) -> Child:
        """Start `python -m MODULE ARGUMENTS`; in a network namespace, if one is named; with a file as its standard input; in a folder."""
        self._num_started += 1
        log = self._folder / f"output-{self._num_started}.txt"
        order = {"module": module, "arguments": arguments, "env": env or {}, "trap": trap and asdict(trap), "log": str(log)}
        order |= {"namespace": namespace, "stdin": str(stdin), "cwd": str(cwd)}
        return Child(self, self.ask(order, SECONDS), log)

    def start_ranks(
        self,
        module: str,
        arguments: list[str],
        num: int,
        *,
        traps: dict[int, Trap] | None = None,
        env: dict[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> list[Child]:
        """Start a command on several processes, with the environment that torchrun and accelerate give them."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num)}
        common |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"} | (env or {})
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num)]
        return [
            self.start(module, arguments, env=common | own, trap=(traps or {}).get(rank), cwd=cwd) for rank, own in enumerate(ranks)
        ]

    def start_on_hosts(
        self, module: str, arguments: list[list[str]], hosts: Sequence[Host], *, traps: dict[int, Trap] | None = None
    ) -> list[Child]:
        """Start a command on one process of each host, the first being the main one, with the environment that torchrun gives them."""
        common = {"MASTER_ADDR": hosts[0].address, "MASTER_PORT": "29500", "WORLD_SIZE": str(len(hosts)), "LOCAL_WORLD_SIZE": "1"}
        common |= {"ACCELERATE_USE_CPU": "true", "LOCAL_RANK": "0"}
        return [
            self.start(
                module,
                words,
                env=common | host.variables() | {"RANK": str(rank)},
                trap=(traps or {}).get(rank),
                namespace=host.namespace,
            )
            for rank, (host, words) in enumerate(zip(hosts, arguments, strict=True))
        ]

    def ask(self, order: dict[str, Any], seconds: float) -> int:
        """One order, one number back."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"the nursery does not answer {order}")
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the nursery and what it started.

        By an order: the end of its input would not come as long as a process that was forked from this one meanwhile holds the pipe.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"end": True}) + "\n")
        self._process.stdin.close()
        self._process.wait(60)


def _serve() -> None:
    """Read orders from standard input until it ends."""
    import gc
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    _prepare_pages()
    gc.collect()
    gc.freeze()  # no child looks through what is imported, which would copy its memory
    children: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "end" in order:
            break
        if "wait" in order:
            print(_reap(order["wait"], order["seconds"]), flush=True)
            children.discard(order["wait"])
            continue
        pid = os.fork()
        if pid == 0:
            _become(order)
        children.add(pid)
        print(pid, flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)  # nothing of it needs an orderly end, and what it preloaded could keep it


def _prepare_pages() -> None:
    """Compile the pages' templates and know the pictures' formats, which each child would do anew."""
    from PIL import Image

    from eval.report.render import environment

    Image.init()
    for path in (path for package in ("eval", "rerank", "train") for path in (ROOT / package).rglob("*.j2")):
        environment(path.parent).get_template(path.name)


def _reap(pid: int, seconds: float) -> int:
    """Exit code of a child; one that does not end in time is killed: 999."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return 999
        time.sleep(0.005)


def _become(order: dict[str, Any]) -> None:
    """Replace this process by the command; never returns."""
    import runpy
    import traceback

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stdin = os.open(order["stdin"], os.O_RDONLY)
    for source, target in ((stdin, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that a shell runs in the background ignores it
    if order["namespace"]:
        _enter(order["namespace"])
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE"):  # the library has read them already
        if name in order["env"]:
            setattr(sys.modules["huggingface_hub.constants"], name, order["env"][name])
    if order["trap"]:
        _set(Trap(**order["trap"]))
    sys.argv = [order["module"], *order["arguments"]]
    sys.modules.pop(f"{order['module']}.__main__", None)
    sys.modules.pop(order["module"] if "." in order["module"] else "", None)
    code: Any = 0
    try:
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _enter(namespace: str) -> None:
    """Move this process into a network namespace (os.setns came with Python 3.12)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}", "rb") as file:
        if libc.setns(file.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


def _writers() -> list[Any]:
    """What writes checkpoints in this process."""
    import gc

    from train.engine.checkpoint import Writer

    return [found for found in gc.get_objects() if type(found) is Writer]


def _set(trap: Trap) -> None:
    """Wrap the function."""
    import importlib

    module_name, _, attribute = trap.function.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = attribute.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    inner, calls = getattr(owner, name), 0

    def send() -> None:
        for writer in _writers() if trap.settled else []:
            if writer._pending is not None:
                writer._pending.exception()
        os.kill(os.getpid(), trap.signal)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        due = calls == trap.nth
        if due and not trap.after:
            send()
        result = inner(*arguments, **named)
        if due and trap.after:
            send()
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    _serve()
