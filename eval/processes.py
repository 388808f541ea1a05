"""The processes of one job as evaluation sees them: who am I, how many are we, and how do arrays of uneven length come together; and how
values go from the host to a device and back without a wait."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

# Its functions have the default group as a default value. Imported once the group exists, as some models do, it would hold the group past
# destroy_process_group(), and a thread of the group's that still lives when the interpreter ends aborts the process.
import torch.distributed.nn.functional

from eval.errors import NotFinite, OutOfMemory, UserError, WriteError

Made = TypeVar("Made")


@dataclass(frozen=True)
class Processes:
    """Rank and number of the processes that share a job; a single one needs no communication.

    Attributes:
        host_group: where what lies in the host's memory travels: a gloo group; None: the default group, which is gloo's.
    """

    rank: int = 0
    world_size: int = 1
    host_group: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def current(cls, timeout: timedelta | None = None) -> "Processes":
        """The processes of torch.distributed where it is initialised, else one. Call on every process.

        Args:
            timeout: how long one waits for another with host data, where the default group is of a device (nccl).
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        host_group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
        return cls(dist.get_rank(), dist.get_world_size(), host_group)

    @property
    def is_main(self) -> bool:
        """True for the process that prints and writes."""
        return self.rank == 0

    def share_of(self, num_blocks: int) -> range:
        """The blocks this process works on: every world_size-th, from its rank."""
        return range(self.rank, num_blocks, self.world_size)

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """The array of every process, in rank order, on every process. Arrays may differ in their first dimension only."""
        if self.world_size == 1:
            return [array]
        lengths = torch.zeros(self.world_size, dtype=torch.int64)
        lengths[self.rank] = len(array)
        dist.all_reduce(lengths, group=self.host_group)
        longest = int(lengths.max())
        padded = np.zeros((longest, *array.shape[1:]), dtype=array.dtype)
        padded[: len(array)] = array
        if not padded.size:
            return [padded[: int(length)] for length in lengths]
        mine = torch.from_numpy(padded.reshape(-1).view(np.uint8))  # as bytes: gloo refuses some types (int16, bool)
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(parts, mine, group=self.host_group)
        arrays = [part.numpy().view(array.dtype).reshape(padded.shape) for part in parts]
        return [gathered[: int(length)] for gathered, length in zip(arrays, lengths, strict=True)]

    def gather_later(self, array: np.ndarray, most: int) -> Callable[[], list[np.ndarray]]:
        """As `gather`, in a single exchange, which begins here; what is returned waits for it. The room is the same on every process.

        Args:
            array: of one dimension, of the same type on every process.
            most: entries of an array at most.

        Raises:
            ValueError: this one has more.
        """
        if len(array) > most:
            raise ValueError(f"expected at most {most} entries, found {len(array)}")
        if self.world_size == 1:
            return lambda: [array]
        mine = torch.zeros(8 + most * array.itemsize, dtype=torch.uint8)
        mine[:8] = torch.from_numpy(np.array([len(array)], dtype=np.int64).view(np.uint8))
        mine[8 : 8 + array.nbytes] = torch.from_numpy(array.view(np.uint8))
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        work = dist.all_gather(parts, mine, group=self.host_group, async_op=True)

        def result() -> list[np.ndarray]:
            work.wait()
            return [part[8:].numpy().view(array.dtype)[: int(part[:8].numpy().view(np.int64)[0])] for part in parts]

        return result

    def on_device_later(self, values_k: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Numbers of a device from every process, (world_size, k) on the device in rank order: the exchange begins here, in the device's
        group. What is returned has the device wait for it; the host waits only where the device is a CPU."""
        if self.world_size == 1:
            return lambda: values_k[None]
        gathered_Wk = values_k.new_empty((self.world_size, *values_k.shape))
        work = dist.all_gather_into_tensor(gathered_Wk.view(-1), values_k.contiguous(), async_op=True)

        def result() -> torch.Tensor:
            work.wait()
            return gathered_Wk

        return result

    def is_on_all(self, flag: bool) -> bool:
        """Whether a flag is set on every process; call on every one."""
        return all(bool(part[0]) for part in self.gather(np.array([flag])))

    def gather_blocks(self, blocks: list[np.ndarray], num_blocks: int) -> list[np.ndarray]:
        """All blocks in grid order from each process's share of them; blocks share shape but for their first dimension.

        Processes without a block learn the shape from those that have one.
        """
        if self.world_size == 1:
            return blocks
        shapes: list[tuple[tuple[int, ...], str] | None] = [None] * self.world_size
        dist.all_gather_object(shapes, (blocks[0].shape[1:], blocks[0].dtype.str) if blocks else None, group=self.host_group)
        tail, dtype = next(shape for shape in shapes if shape is not None)
        mine = np.concatenate(blocks) if blocks else np.zeros((0, *tail), dtype=np.dtype(dtype))
        lengths = self.gather(np.array([len(block) for block in blocks], dtype=np.int64))
        parts = self.gather(mine)
        split = [np.split(part, np.cumsum(length)[:-1]) if len(length) else [] for part, length in zip(parts, lengths, strict=True)]
        return [split[block % self.world_size][block // self.world_size] for block in range(num_blocks)]

    def raise_together(self, failure: str, exit_code: int = UserError.exit_code) -> None:
        """Raise on every process what went wrong on one (empty: nothing did), so that none waits for another for ever.

        Raises:
            UserError: something did, on some process; the first one's, in rank order.
        """
        told = f"{exit_code} {failure}" if failure else ""
        for part in self.gather(np.frombuffer(told.encode("utf-8", "surrogatepass"), dtype=np.uint8)):
            if len(part):
                code, _, message = part.tobytes().decode("utf-8", "surrogatepass").partition(" ")
                kinds = {kind.exit_code: kind for kind in (WriteError, NotFinite, OutOfMemory)}
                error: UserError = kinds.get(int(code), UserError)(message)
                error.exit_code, error.is_shared = int(code), True
                raise error

    def together(self, make: Callable[[], Made]) -> Made:
        """What `make` gives on each process, once it has given it on all. Several machines may see different files.

        Raises:
            UserError: `make` raised one, or an OSError, on some process; it is raised on all, with its exit code and, but for the main
                process, its place.
        """
        with self.jointly():
            made = make()
        return made

    @contextmanager
    def jointly(self) -> Iterator[None]:
        """Go on only if all got through what is in here, which is each process's own work: it must not wait for the others.

        Raises:
            UserError: what one of them met (an OSError too), on every process, with its exit code.
        """
        failure, code = "", UserError.exit_code
        where = "" if self.is_main else f"on machine {socket.gethostname()} (process {self.rank}): "
        try:
            yield
        except UserError as error:
            if self.world_size == 1:
                raise
            failure, code = f"{where}{error}", error.exit_code
        except OSError as error:
            if self.world_size == 1:
                raise
            failure, code = f"{where}could not read or write: {error}", WriteError.exit_code
        self.raise_together(failure, code)

    def from_main(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on the main process, where alone it is called, on every process; made of what JSON knows.

        Raises:
            UserError: `make` raised one; it is raised on all.
        """
        value = self.together(lambda: make() if self.is_main else None)
        text = json.dumps(value).encode() if self.is_main else b""
        return json.loads(self.gather(np.frombuffer(text, dtype=np.uint8))[0].tobytes())

    def broadcast(self, array: np.ndarray) -> None:
        """Put the main process's values into the array of every process, which has the same shape and type."""
        if self.world_size > 1 and array.size:
            dist.broadcast(torch.from_numpy(array.reshape(-1).view(np.uint8)), 0, group=self.host_group)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier(group=self.host_group)

    def any_later(self, flag: bool) -> Callable[[], bool]:
        """Whether any process's flag is set, on all; begun here, and waited for where what is returned is called."""
        if self.world_size == 1:
            return lambda: flag
        flags = torch.tensor([int(flag)])
        work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.host_group, async_op=True)

        def result() -> bool:
            work.wait()
            return bool(flags.item())

        return result


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values of the host on a device; on the CPU they are the same tensor. A copy to a GPU leaves from page-locked memory, so that the host
    goes on at once."""
    if device.type == "cuda" and values.device.type == "cpu" and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def brought(values: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Values of a device in the host's memory: the copy begins here, and what is returned waits for it."""
    if values.device.type == "cpu":
        return lambda: values
    on_cuda = values.device.type == "cuda"
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=on_cuda)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event() if on_cuda else None
    if arrived is not None:
        arrived.record()

    def wait() -> torch.Tensor:
        if arrived is not None:
            arrived.synchronize()
        else:
            torch.get_device_module(values.device).synchronize()
        return host

    return wait
