"""One process of two whose default group is of a device, as nccl's: it refuses what lies in the host's memory. Run by test_processes.py."""

import sys
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from eval.errors import UserError
from eval.processes import Processes


def refusing(call: Any) -> Any:
    """A collective that is of a group of its own."""

    def called(*arguments: Any, group: Any = None, **named: Any) -> Any:
        if group is None:
            raise RuntimeError("No backend type associated with device type cpu")  # nccl's own words
        return call(*arguments, group=group, **named)

    return called


def main(store: str, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    dist.get_backend = lambda group=None: "nccl"
    for name in ("all_reduce", "all_gather", "all_gather_object", "broadcast", "barrier"):
        setattr(dist, name, refusing(getattr(dist, name)))
    processes = Processes.current(timedelta(seconds=60))
    assert processes == Processes(rank, 2)
    assert [part.tolist() for part in processes.gather(np.full(rank + 1, rank, dtype=np.int16))] == [[0], [1, 1]]
    later = processes.gather_later(np.arange(rank + 1), 2)
    assert [part.tolist() for part in later()] == [[0], [0, 1]]
    try:
        processes.gather_later(np.arange(3), 2)
    except ValueError as error:
        assert "at most 2" in str(error)
    assert [block.tolist() for block in processes.gather_blocks([np.full((1, 2), rank, dtype=bool)], 2)] == [[[False] * 2], [[True] * 2]]
    assert processes.from_main(lambda: {"ids": ["a", "b"]}) == {"ids": ["a", "b"]}
    sent = np.arange(4.0) if rank == 0 else np.zeros(4)
    processes.broadcast(sent)
    assert sent.tolist() == [0.0, 1.0, 2.0, 3.0]
    processes.barrier()
    asked = [processes.any_later(flag)() for flag in (False, rank == 1, False)]
    assert asked == [False, True, False]
    try:
        processes.together(lambda: None if rank == 0 else refuse())
    except UserError as error:
        assert "no such split" in str(error)
    try:
        dist.all_reduce(torch.zeros(1))
    except RuntimeError:
        print("host data alone took its own way")
    dist.destroy_process_group()


def refuse() -> None:
    raise UserError("no such split")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
