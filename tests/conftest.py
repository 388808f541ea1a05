"""For every test: nothing is fetched from the hub and nothing is sent to a tracker, in this process and in those it starts.

And what the tests of train/ share: a tiny world to train in, and a nursery of commands.
"""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a suite started by nohup tests SIGHUP all the same
os.environ["EMBEDDING_CACHE_GIB"] = "0"  # what one test embeds is no other's
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers, and what is forked, have the suite's own cache of assets
    os.environ["HF_ASSETS_CACHE"] = tempfile.mkdtemp(prefix="assets-")
    _suite, _assets = os.getpid(), os.environ["HF_ASSETS_CACHE"]
    atexit.register(lambda: os.getpid() == _suite and shutil.rmtree(_assets, ignore_errors=True))
os.environ["WANDB_MODE"] = "disabled"
# Some virtual machines announce AMX and die of it (SIGILL in a bf16 convolution of oneDNN): without it bf16 is tested everywhere.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

if TYPE_CHECKING:
    from tests.nursery import Nursery
    from tests.small_job import SmallWorld
    from tests.small_reranker_job import RerankerWorld


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> "SmallWorld":
    """Pictures, captions and a tiny base; not to be changed."""
    from tests.small_job import SmallWorld  # heavy, and most tests need none of it

    return SmallWorld.make(tmp_path_factory.mktemp("small-world"))


@pytest.fixture(scope="session")
def reranker_world(small_world: "SmallWorld", tmp_path_factory: pytest.TempPathFactory) -> "RerankerWorld":
    """The same with a tiny BLIP to tune; not to be changed."""
    from tests.small_reranker_job import RerankerWorld

    return RerankerWorld.of(small_world, tmp_path_factory.mktemp("reranker-world"))


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Nursery]":
    """Starts commands without the seconds that imports take."""
    from tests.nursery import Nursery

    started = Nursery(tmp_path_factory.mktemp("nursery"))
    yield started
    started.close()


def pytest_collection_finish() -> None:
    """Leave what is imported out of every later garbage collection."""
    import gc

    gc.collect()
    gc.freeze()
