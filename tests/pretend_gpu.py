"""A pretend GPU on a machine without one: real values on the CPU, CUDA's refusals, and a count of what makes the host wait.

    with pretend_gpu.mode():                  # tensors made on, or sent to, pretend_gpu.DEVICE live on it
        with pretend_gpu.counting() as seen:
            ...one training step...
    seen.waits                                # Counter of "what file:line"
    with pretend_gpu.mode(), pretend_gpu.nccl():
        ...one of several processes, whose default group was gloo's...

torch's private-use device, named pgpu, without a compiler. A GPU tensor in one operation with a CPU tensor of one dimension or more raises,
as on CUDA; so does `.numpy()`. Under `nccl()` no tensor of the CPU travels in the default group, and none of the device in another.
Autograd, AdamW, topk and indexing run, so that results can be compared with the CPU's. Not covered: autocast's CUDA lists, flash attention,
nccl's speed, streams, `module.to(dtype)`.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_ROOT = os.getcwd() + os.sep
_MIXED_ALLOWED = {"copy_", "_to_copy", "index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index"}
"""Operations that CUDA gives tensors of both sides to."""
_WAITING = {"nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "bincount", "equal"}
"""Operations whose result's size, or answer, the host has to know."""
_INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}


@dataclass
class Seen:
    """What was counted: each with the innermost line of the project that caused it.

    Attributes:
        waits: what made the host wait for the device.
        late: waits for copies that were begun earlier, while the host did something else (`eval.processes.brought`).
        copies: copies between host and device that it did not wait for.
        exchanges: what processes told one another, in order: the group ("host" or "device"), the call, for one of the host whether it began
            ("begins") or was waited for ("waits"), and how many operations the device had been given by then.
        num_operations: that the device was given.
    """

    waits: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    exchanges: list[tuple[str, int]] = field(default_factory=list)
    num_operations: int = 0

    def exchange(self, what: str) -> None:
        """Note one."""
        self.exchanges.append((what, self.num_operations))


_seen: Seen | None = None


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    def is_autocast_enabled(self) -> bool:
        return torch.is_autocast_enabled("pgpu")

    def set_device(self, device: Any) -> None:
        pass

    def synchronize(self, *device: Any) -> None:
        if _seen is not None:
            _seen.late[f"synchronize {_where()}"] += 1

    def manual_seed(self, seed: int) -> None:
        pass

    def get_rng_state(self, *device: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *device: Any) -> None:
        pass


backend_registration._setup_privateuseone_for_python_backend(rename="pgpu", backend_module=_Backend())
DEVICE = torch.device("pgpu", 0)


@contextmanager
def counting() -> Iterator[Seen]:
    """Count in here."""
    global _seen
    _seen = Seen()
    try:
        yield _seen
    finally:
        _seen = None


@contextmanager
def mode() -> Iterator[None]:
    """The pretend GPU is there. What runs under `torch.inference_mode`, whose tensors it cannot wrap, has to be run under `no_grad`."""
    with _Mode():
        yield


_COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "all_to_all_single", "broadcast", "barrier")


@contextmanager
def nccl() -> Iterator[None]:
    """torch.distributed's default group, which is gloo's, looks and refuses as nccl's does; what travels in it is no wait of the host."""
    changed: dict[str, Any] = {name: _collective(name) for name in _COLLECTIVES}
    changed |= {"P2POp": _p2p_op, "get_backend": lambda group=None: "nccl" if group is None else "gloo"}
    with mock.patch.multiple(dist, **changed):
        yield


@dataclass
class _HostWork:
    """A call of the host's group that was begun."""

    name: str
    work: Any

    def wait(self) -> None:
        self.work.wait()
        if _seen is not None:
            _seen.exchange(f"host {self.name} waits")


def _collective(name: str) -> Any:
    """A function of torch.distributed under nccl's rule."""
    call = getattr(dist, name)

    def called(*arguments: Any, group: Any = None, async_op: bool = False, **named: Any) -> Any:
        tensors, where = _tensors(arguments, named), "host" if group is not None else "device"
        if group is None and (name in ("all_gather_object", "barrier") or not all(map(_is_pretend, tensors))):
            raise RuntimeError(f"{name} at {_where()}: No backend type associated with device type cpu")  # nccl's own words
        if group is not None and any(map(_is_pretend, tensors)):
            raise RuntimeError(f"{name} at {_where()}: a tensor of the device in a group of the host")
        if _seen is not None:
            _seen.exchange(f"{where} {name}" + (" begins" if group is not None else ""))
        if name != "all_gather_object":  # whose list is filled in
            arguments, named = tree_map(_plain, (arguments, named | {"async_op": async_op}))
        made = call(*arguments, group=group, **named)
        if _seen is not None and group is not None and not async_op:
            _seen.exchange(f"host {name} waits")
        return _HostWork(name, made) if group is not None and async_op else made

    return called


_P2POp = dist.P2POp


def _p2p_op(op: Any, tensor: torch.Tensor, peer: int) -> Any:
    """A message in the device's group."""
    if not _is_pretend(tensor):
        raise RuntimeError(f"{op.__name__} at {_where()}: No backend type associated with device type cpu")
    if _seen is not None:
        _seen.exchange(f"device {op.__name__}")
    return _P2POp(op, _plain(tensor), peer)


def _where() -> str:
    """file:line of the innermost frame of the project."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_ROOT) and "/.venv/" not in name and name != __file__:
            return f"{name[len(_ROOT) :]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


class PretendTensor(torch.Tensor):
    """A tensor that says it lies on the GPU; its values are those of a CPU tensor."""

    _values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "PretendTensor":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=DEVICE,
            requires_grad=False,
        )
        made._values = values
        return made

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self._values!r})"

    def __len__(self) -> int:
        return self.shape[0]

    def pin_memory(self) -> "PretendTensor":
        return self

    def tolist(self) -> Any:
        if _seen is not None:
            _seen.waits[f"tolist {_where()}"] += 1
        return self._values.detach().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a GPU tensor to numpy. Use Tensor.cpu()")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _is_pretend(value: Any) -> bool:
    return isinstance(value, PretendTensor)


def _plain(value: Any) -> Any:
    return value._values if _is_pretend(value) else value


def _tensors(*trees: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]


def _count_copy(is_from: bool, is_to: bool, is_later: bool) -> None:
    assert _seen is not None
    if is_from != is_to:
        way = "D2H" if is_from else "H2D"
        (_seen.copies if is_later else _seen.waits)[f"{way} {_where()}"] += 1


def _count(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device | None, on_gpu: bool) -> None:
    assert _seen is not None
    if name == "copy_":
        is_later = bool(len(args) > 2 and args[2]) or kwargs.get("non_blocking", False)
        _count_copy(_is_pretend(args[1]), _is_pretend(args[0]), is_later)
    if name == "_to_copy":
        target = device if device is not None else args[0].device
        _count_copy(_is_pretend(args[0]), target.type == "pgpu", kwargs.get("non_blocking", False))
    if name == "_local_scalar_dense" or (name in _WAITING and on_gpu):
        _seen.waits[f"{name} {_where()}"] += 1
    if name in _INDEXING and on_gpu:
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                _seen.waits[f"{name} by truth values {_where()}"] += 1
            elif index is not None and not _is_pretend(index):
                _seen.waits[f"{name} by an index of the host {_where()}"] += 1


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the values; what it gives lies on the GPU where an argument does, or where it is asked to."""
    name = func._schema.name.split("::")[1]
    tensors = _tensors(args, kwargs)
    on_gpu = [one for one in tensors if _is_pretend(one)]
    on_cpu = [one for one in tensors if not _is_pretend(one) and one.dim() > 0]
    device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if on_gpu and on_cpu and name not in _MIXED_ALLOWED:
        shapes = [[tuple(one.shape) for one in side] for side in (on_gpu, on_cpu)]
        raise RuntimeError(f"{name}: GPU tensors {shapes[0]} with CPU tensors {shapes[1]}, at {_where()}")
    if _seen is not None and (on_gpu or device is not None):
        _seen.num_operations += 1
        _count(name, args, kwargs, device, bool(on_gpu))

    plain_args, plain_kwargs = tree_map(_plain, args), tree_map(_plain, kwargs)
    plain_kwargs |= {"device": torch.device("cpu")} if device is not None else {}
    plain_kwargs |= {"pin_memory": False} if "pin_memory" in kwargs else {}
    out = func(*plain_args, **plain_kwargs)
    if name == "_local_scalar_dense":
        return out
    is_to_gpu = device.type == "pgpu" if device is not None else bool(on_gpu)
    known = {id(one._values): one for one in on_gpu if isinstance(one, PretendTensor)}

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or _is_pretend(value):
            return value
        return known.get(id(value), PretendTensor(value) if is_to_gpu else value)

    return tree_map(wrap, out)


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> PretendTensor:
    return PretendTensor(torch.empty(size, dtype=dtype or torch.get_default_dtype()))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> PretendTensor:
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype()))


_LIBRARY = torch.library.Library("aten", "IMPL")
_LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
_LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")


class _Mode(TorchDispatchMode):
    """Catches factories, and operations of CPU tensors alone that lead to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if (device is not None and torch.device(device).type == "pgpu") or any(map(_is_pretend, _tensors(args, kwargs))):
            return _dispatch(func, args, kwargs)
        return func(*args, **kwargs)
