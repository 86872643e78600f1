"""Freed memory stays with the process. In a process of its own: the setting cannot be taken back."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import resource
import torch
from pahq_server.models.heap import keep_freed_memory

print(keep_freed_memory())
torch.zeros(4 << 20).add_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    torch.zeros(4 << 20).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_freed_block_is_reused_without_page_faults() -> None:
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    applied, faults = run.stdout.split()
    if applied != "True":
        pytest.skip("this C library has no mallopt")
    # 50 blocks of 16 MiB are 204,800 pages of 4 KiB. Kernels that take idle ones back cause some faults.
    assert int(faults) < 60_000
