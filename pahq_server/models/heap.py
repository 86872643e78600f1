"""Telling the C library to hand freed memory back to the kernel while models are loaded.

What is kept of a model and what is thrown away again are allocated in turn. In one heap the gaps between
the kept tensors would stay with the process, a quarter of the model and more.
"""

from __future__ import annotations

import ctypes

# A parameter of mallopt(3).
_MMAP_THRESHOLD = -3

# glibc's default, which would grow with the blocks that are freed unless it is set.
HANDED_BACK_BYTES = 128 << 10


def hand_back_freed_memory() -> bool:
    """Applies to the whole process, until `keep_freed_memory`. Returns whether the C library knows how."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, HANDED_BACK_BYTES) == 1)
