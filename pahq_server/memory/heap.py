"""Telling the C library what to do with freed memory.

While models are loaded, what is kept of them and what is thrown away again are allocated in turn. In one heap
the gaps between the kept tensors would stay with the process, a quarter of the model and more: freed memory
is handed back to the kernel.

Patched passes allocate and free tensors of some megabytes all the time. By default glibc hands blocks of
that size back to the kernel at once, and every new one is filled page by page again: a tenth of the time
of a pass and more. Kept, the memory is reused.
"""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8

# glibc's default, which would grow with the blocks that are freed unless it is set.
HANDED_BACK_BYTES = 128 << 10
# The largest that glibc accepts; larger blocks still go back to the kernel.
KEPT_BLOCK_BYTES = 32 << 20
# Free memory at the end of the heap that is kept: as much as a sweep may take, which is counted as memory
# for jobs, within these limits. Less makes passes fetch the same pages from the kernel again and again; more
# would be the process's own, which a plan has to promise whatever `--memory` is.
LEAST_KEPT_FREE_BYTES, MOST_KEPT_FREE_BYTES = 64 << 20, 512 << 20
# Free memory between blocks that is kept when a job has ended: the next one needs about as much.
KEPT_GAPS_BYTES = 16 << 20


def hand_back_freed_memory() -> bool:
    """Applies to the whole process, until `keep_freed_memory`. Returns whether the C library knows how."""
    return _set((_MMAP_THRESHOLD, HANDED_BACK_BYTES))


def kept_free_bytes(scratch_bytes: int) -> int:
    """How much free memory is kept at the end of the heap where sweeps may take so much."""
    return min(MOST_KEPT_FREE_BYTES, max(LEAST_KEPT_FREE_BYTES, scratch_bytes))


def keep_freed_memory(kept_free: int = MOST_KEPT_FREE_BYTES) -> bool:
    """Applies to the whole process. Returns whether the C library knows how (glibc does).

    Args:
        kept_free: bytes of free memory at the end of the heap that are kept.
    """
    # One arena: other threads' would be limited to blocks smaller than these.
    return _set((_ARENA_MAX, 1), (_MMAP_THRESHOLD, KEPT_BLOCK_BYTES), (_TRIM_THRESHOLD, kept_free))


class Gaps:
    """Free memory between blocks of the heap that are in use.

    Jobs of other sizes leave gaps that none after them fits into.

    Args:
        kept: bytes of gaps that may come up before they are handed back.
        kept_free: bytes of free memory at the end of the heap that stay.
    """

    def __init__(self, kept: int = KEPT_GAPS_BYTES, kept_free: int = MOST_KEPT_FREE_BYTES) -> None:
        self._kept, self._kept_free = kept, kept_free
        # What glibc counts as free although the kernel has it back already.
        self._known = 0

    def hand_back(self) -> bool:
        """Hands gaps back to the kernel if many have come up, and what is free beyond ``kept_free``.

        Takes milliseconds, and longer where memory must be fetched again. Returns whether it did so.
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
    """What mallinfo2(3) tells."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _gaps(heap: _Heap) -> int:
    return int(heap.fordblks - heap.keepcost)


def _set(*settings: tuple[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    done = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(done)
