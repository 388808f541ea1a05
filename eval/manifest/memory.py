"""Give memory that was freed back to the system."""

import ctypes
import sys
from contextlib import suppress

import pyarrow as pa


def release_unused() -> None:
    """Give back what Arrow and the C library hold of freed memory, after a large piece of work that freed most of what it took."""
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
