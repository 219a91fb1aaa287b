"""Gives memory that is not used any more back to the system.

Each seal reads a segment back, and each stall of the disk fills buffers: both leave free memory that allocators keep
in case it is needed again. Kept by three of them (Arrow's, Python's, and the C library's) and in pieces, it is not
found again when it is needed, so a process grows for hours though it holds no more than before (measured: 12 MB of
free memory in the C library's hands after five minutes of a whole chain, with 10 MB in use).
"""

import contextlib
import ctypes

import pyarrow as pa


def release_unused() -> None:
    """Give back what is free, as far as the allocators let. Takes milliseconds, without the interpreter's lock."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc's only; others give back by themselves
        ctypes.CDLL(None).malloc_trim(0)
