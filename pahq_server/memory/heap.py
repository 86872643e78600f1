"""Settings of the C library's heap (glibc): when freed memory goes back to the kernel.

While models are loaded, tensors that are kept and tensors that are dropped are allocated in turn. The gaps
between the kept ones would stay with the process, a quarter of the model's size and more. So freed memory is
handed back.

Patched passes allocate and free tensors of some megabytes all the time. By default glibc hands blocks of this
size back at once, and the kernel fills each new one page by page, which takes a tenth of a pass and more. So
freed memory is kept.
"""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8

# glibc's default. Unless it is set, glibc raises it with the size of freed blocks.
HANDED_BACK_BYTES = 128 << 10
# The largest value that glibc accepts. Larger blocks still go back to the kernel at once.
KEPT_BLOCK_BYTES = 32 << 20
# Limits of the free memory at the end of the heap that is kept. It should be as much as a batch of passes
# takes, which is part of the memory for jobs: with less, passes would get the same pages from the kernel
# again and again. More would be memory of the process that `--memory` does not cover.
LEAST_KEPT_FREE_BYTES, MOST_KEPT_FREE_BYTES = 64 << 20, 512 << 20
# Free memory between blocks that is kept when a job has ended, since the next job needs about as much.
KEPT_GAPS_BYTES = 16 << 20


def hand_back_freed_memory() -> bool:
    """Has the process hand freed memory back to the kernel, until `keep_freed_memory` is called.

    Returns whether the C library supports it (glibc does).
    """
    return _set((_MMAP_THRESHOLD, HANDED_BACK_BYTES))


def kept_free_bytes(scratch_bytes: int) -> int:
    """Returns how many bytes of free memory to keep, if a batch of passes may take ``scratch_bytes``."""
    return min(MOST_KEPT_FREE_BYTES, max(LEAST_KEPT_FREE_BYTES, scratch_bytes))


def keep_freed_memory(kept_free: int = MOST_KEPT_FREE_BYTES) -> bool:
    """Has the process keep freed memory for reuse. Returns whether the C library supports it (glibc does).

    Args:
        kept_free: most bytes of free memory to keep at the end of the heap.
    """
    # One arena for all threads, since further arenas cannot hold blocks of this size.
    return _set((_ARENA_MAX, 1), (_MMAP_THRESHOLD, KEPT_BLOCK_BYTES), (_TRIM_THRESHOLD, kept_free))


class Gaps:
    """Hands free memory between used blocks of the heap back to the kernel, if there is much of it.

    Jobs of different sizes leave gaps into which the tensors of later jobs do not fit.

    Args:
        kept: bytes of gaps that are tolerated.
        kept_free: bytes of free memory at the end of the heap that are not handed back.
    """

    def __init__(self, kept: int = KEPT_GAPS_BYTES, kept_free: int = MOST_KEPT_FREE_BYTES) -> None:
        self._kept, self._kept_free = kept, kept_free
        # Bytes that glibc counts as free although they have been handed back.
        self._known = 0

    def hand_back(self) -> bool:
        """Hands gaps back if there are more than ``kept`` bytes, and free memory beyond ``kept_free``.

        Takes milliseconds, and the next allocations are slower. Returns whether memory was handed back.
        """
        try:
            libc = ctypes.CDLL(None)
            information, trim = libc.mallinfo2, libc.malloc_trim
        except AttributeError:
            return False
        information.restype, trim.argtypes = _Heap, (ctypes.c_size_t,)
        gaps = _gaps(information())
        self._known = min(self._known, gaps)
        if gaps - self._known <= self._kept:
            return False
        trim(self._kept_free)
        self._known = _gaps(information())
        return True


class _Heap(ctypes.Structure):
    """The result of mallinfo2(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _gaps(heap: _Heap) -> int:
    """Returns the bytes of free memory that are not at the end of the heap."""
    return int(heap.fordblks - heap.keepcost)


def _set(*settings: tuple[int, int]) -> bool:
    """Sets parameters of mallopt(3), (parameter, value) each. Returns whether all were accepted."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    done = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(done)
