"""Freed memory stays with the process. Tested in a process of its own: the setting cannot be undone."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import resource
import torch
from pahq_server.memory.heap import keep_freed_memory

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
    # 50 blocks of 16 MiB are 204,800 pages of 4 KiB. Some faults remain where the kernel takes idle pages
    # back.
    assert int(faults) < 60_000


GAPS = """
from pathlib import Path
import torch
from pahq_server.memory.heap import Gaps, keep_freed_memory


def resident():
    (line,) = [line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if "VmRSS" in line]
    return int(line.split()[1]) >> 10


keep_freed_memory()
blocks = [torch.ones(1 << 16) for _ in range(1024)]
before, values = resident(), blocks[1::2]
del blocks
gaps = Gaps(64 << 20)
print(Gaps(1 << 30).hand_back(), gaps.hand_back(), gaps.hand_back(), before - resident())
print(all(bool((value == 1).all()) for value in values))
"""


def test_gaps_between_what_is_in_use_are_handed_back_where_they_are_much() -> None:
    run = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    first, kept = run.stdout.splitlines()
    few, many, again, freed_mib = first.split()
    if many != "True" and not sys.platform.startswith("linux"):
        pytest.skip("this C library has no malloc_trim")
    # Half of 256 MiB is gaps.
    assert (few, many, again) == ("False", "True", "False")
    assert int(freed_mib) > 100
    assert kept == "True"
