"""Memory of large tables: what was freed given back to the system, and what is read only kept in mapped files."""

import ctypes
import math
import mmap
import os
import sys
import tempfile
from contextlib import suppress

import numpy as np
import pyarrow as pa

LEAST_MAPPED = 2**22
"""Bytes of an array or of strings from which they are kept in a file."""


def release_unused() -> None:
    """Give back what Arrow and the C library hold of freed memory, after a large piece of work that freed most of what it took."""
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def mapped(array: np.ndarray) -> np.ndarray:
    """The same values in a mapped file where they are many; else, and where the disk does not take them, the array itself.

    The file lies in the system's temporary folder and has no name, so the end of the process frees it. The system drops its pages when
    memory is short, and forked processes share them. What is written to the array stays with the process that does it.
    """
    if array.nbytes < LEAST_MAPPED or _is_repeated(array):
        return array
    buffer = _in_file(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return array if buffer is None else np.frombuffer(buffer, dtype=array.dtype).reshape(array.shape)


def mapped_strings(strings: pa.Array) -> pa.Array:
    """As `mapped`, of the buffers of an Arrow array of strings."""
    buffers = [None if buffer is None or buffer.size < LEAST_MAPPED else _in_file(buffer) for buffer in strings.buffers()]
    if all(buffer is None for buffer in buffers):
        return strings
    chosen = [old if new is None else pa.py_buffer(new) for old, new in zip(strings.buffers(), buffers, strict=True)]
    return pa.Array.from_buffers(strings.type, len(strings), chosen, strings.null_count, strings.offset)


def empty_mapped(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array to be filled, in a mapped file as of `mapped` where it takes 16 times LEAST_MAPPED or more; what is written lands there."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    reserve = getattr(os, "posix_fallocate", None)  # macOS has none
    if reserve is not None and num_bytes >= 16 * LEAST_MAPPED:
        with suppress(OSError), tempfile.TemporaryFile(prefix=".table-") as file:
            reserve(file.fileno(), 0, num_bytes)  # a full disk is an error now, not a SIGBUS later
            return np.frombuffer(mmap.mmap(file.fileno(), num_bytes), dtype=dtype).reshape(shape)
    return np.empty(shape, dtype=dtype)


def compact(numbers: np.ndarray) -> np.ndarray:
    """Integers in less memory: one value repeated, where all are equal, and 32 bits where they suffice."""
    if not len(numbers) or _is_repeated(numbers):
        return numbers
    low, high = int(numbers.min()), int(numbers.max())
    if low == high:
        return np.broadcast_to(np.int64(low), numbers.shape)
    limits = np.iinfo(np.int32)
    return numbers.astype(np.int32, copy=False) if limits.min <= low and high <= limits.max else numbers


def _is_repeated(array: np.ndarray) -> bool:
    return array.ndim == 1 and array.strides == (0,)


def _in_file(values: object) -> mmap.mmap | None:
    """Bytes in a mapped file without a name; None: it cannot be written."""
    try:
        with tempfile.TemporaryFile(prefix=".table-") as file:
            file.write(memoryview(values))  # type: ignore[arg-type]  # written, not mapped: a full disk is an error then, not a SIGBUS
            file.flush()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError:
        return None
