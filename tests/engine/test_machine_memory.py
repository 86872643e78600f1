from __future__ import annotations

import os
from pathlib import Path

import pytest

from pahq_server.engine.devices import machine_bytes

PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


def system(root: Path, groups: str, limits: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **limits}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("", {}, PHYSICAL),
        ("0::/\n", {"sys/fs/cgroup/memory.max": f"{64 * MIB}\n"}, 64 * MIB),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "max\n"}, PHYSICAL),
        ("0::/\n", {"sys/fs/cgroup/memory.max": f"{PHYSICAL * 2}\n"}, PHYSICAL),
        # A unit within a slice: the narrower limit counts, wherever it is.
        (
            "0::/system.slice/pahq.service\n",
            {
                "sys/fs/cgroup/system.slice/pahq.service/memory.max": f"{64 * MIB}\n",
                "sys/fs/cgroup/system.slice/memory.max": f"{32 * MIB}\n",
            },
            32 * MIB,
        ),
        # The first version, where every controller has a tree of its own.
        (
            "5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n",
            {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{16 * MIB}\n"},
            16 * MIB,
        ),
        # A container sees its own group as the top; the path that it is told leads nowhere.
        (
            "4:memory:/docker/f00\n",
            {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{16 * MIB}\n"},
            16 * MIB,
        ),
    ],
)
def test_limits_of_groups_count(tmp_path: Path, groups: str, limits: dict[str, str], expected: int) -> None:
    assert machine_bytes(system(tmp_path, groups, limits)) == expected


def test_a_system_without_groups(tmp_path: Path) -> None:
    assert machine_bytes(tmp_path) == PHYSICAL


def test_this_machine() -> None:
    assert 0 < machine_bytes() <= PHYSICAL
