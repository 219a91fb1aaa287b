"""Keeps the memory of a process that runs for weeks as it was after its first minutes.

Each seal reads a segment back, and each stall of the disk fills buffers; both leave memory free that allocators keep
for later: Arrow's, Python's, and the C library's. In pieces, and by thread, it is not found again, so the process
grows though it holds no more than before. Measured with a whole chain, three recorders side by side, from the 6th
to the 16th minute: with mimalloc, Arrow's default, the process wandered between 104 and 122 MB; with jemalloc, which
gives back by itself what is free for a second, it stayed within 98 and 99. Either jumps by some megabytes where the
disk stalls. Mimalloc, where Arrow allocates for itself, also asks for pages of 2 MB, which Linux gives on request; a
few kB of one may be needed. At its steady pace a recorder grew by one every ten minutes or so; without them it is
5 MB smaller, and stays so.
"""

import contextlib
import ctypes

import pyarrow as pa

_PR_SET_THP_DISABLE = 41  # of Linux, prctl(2)
_M_MMAP_THRESHOLD = -3  # of glibc, mallopt(3)
_LARGE_BYTES = 256 * 1024


def keep_steady() -> None:
    """Let Arrow use the allocator that gives back, where its build has it, and take no pages of 2 MB.

    Call it before anything is allocated.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    with contextlib.suppress(NotImplementedError):
        pa.set_memory_pool(pa.jemalloc_memory_pool())


def give_back_large() -> None:
    """Let what is large, and held for a moment only, be the system's again at once: a loader's groups.

    With it a loader of 20 million rows in 2,000 segments took 338 MB at most, `release_unused` after each group
    included, with Arrow's own default 400. Call it before anything is allocated.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc's only
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def release_unused() -> None:
    """Give back what is free, as far as the allocators let. Takes milliseconds, without the interpreter's lock."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc's only; others give back by themselves
        ctypes.CDLL(None).malloc_trim(0)
