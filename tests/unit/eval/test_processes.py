"""Several gloo processes against one: the same bits, and no process left waiting."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.processes import Processes

ROOT = Path(__file__).parents[3]
BLOCK = 20


def run_job(folder: Path, manifest: Path, model: Path, world_size: int, block: int) -> None:
    folder.mkdir()
    job = json.dumps({"folder": str(folder), "manifest": str(manifest), "model": str(model), "block": str(block)})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), job]
    started = [
        subprocess.Popen([*command, str(rank), str(world_size)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(world_size)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=150)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.kill()


@pytest.fixture(scope="module")
def manifest(pictures: list[Path], sentences: list[str]) -> Path:
    path = pictures[0].parent / "m.jsonl"
    lines = [json.dumps({"image": picture.name, "captions": sentences[2 * n : 2 * n + 2]}) for n, picture in enumerate(pictures)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def alone(manifest: Path, tiny_siglip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone") / "one"
    run_job(folder, manifest, tiny_siglip, 1, BLOCK)
    return folder / "0.npz"


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_give_the_bits_of_one(alone: Path, manifest: Path, tiny_siglip: Path, tmp_path: Path, world_size: int) -> None:
    """Blocks of 20 are two for the images and four for the captions: of three processes one has no image."""
    run_job(tmp_path / "several", manifest, tiny_siglip, world_size, BLOCK)
    with np.load(alone) as one:
        assert one["images"].shape == (40, 24) and one["top"].shape == (80, 7)
        for rank in range(world_size):
            with np.load(tmp_path / "several" / f"{rank}.npz") as other:
                for name in one.files:
                    assert one[name].tobytes() == other[name].tobytes(), f"{name} differs on process {rank} of {world_size}"


def test_undecodable_picture_of_one_process_is_an_error_on_all(
    manifest: Path, pictures: list[Path], tiny_siglip: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for picture in pictures:
        (data / picture.name).write_bytes(picture.read_bytes())
    (data / "001.png").write_bytes(b"broken")  # in the first block, so of the first process alone
    (data / "m.jsonl").write_text(manifest.read_text())
    run_job(tmp_path / "job", data / "m.jsonl", tiny_siglip, 2, BLOCK)
    messages = {(tmp_path / "job" / f"{rank}.error").read_text() for rank in range(2)}
    assert len(messages) == 1 and "001.png: cannot be decoded" in messages.pop()


def test_one_process_needs_no_communication() -> None:
    alone = Processes.current()
    assert alone == Processes(0, 1) and alone.is_main and list(alone.share_of(3)) == [0, 1, 2]
    array = np.arange(3)
    assert alone.gather(array)[0] is array and alone.gather_blocks([array], 1)[0] is array
    alone.barrier()


def test_shares_cover_every_block_once() -> None:
    shares = [list(Processes(rank, 3).share_of(8)) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_host_data_never_takes_the_devices_group(tmp_path: Path) -> None:
    """Where the default group is nccl's, arrays, errors, JSON and stop flags go over a gloo group of their own."""
    command = [sys.executable, str(Path(__file__).with_name("host_group_worker.py")), str(tmp_path / "store")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for rank in range(2)]
    said = [process.communicate(timeout=150)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0] and said == ["host data alone took its own way\n"] * 2


LATE_IMPORT = """
import sys
from pathlib import Path
import torch.distributed as dist
import eval.processes
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
import torch.distributed.nn.functional
dist.destroy_process_group()
print([name for name in (thread.read_text() for thread in Path("/proc/self/task").glob("*/comm")) if "gloo" in name])
"""


def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    """A model's late import took the group as a default value, and a process under load was aborted once its work was done."""
    command = [sys.executable, "-c", LATE_IMPORT, str(tmp_path / "meeting")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr[-3000:]
