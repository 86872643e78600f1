"""How much memory a job takes, known before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from pahq_server.core.task import TokenTask
from pahq_server.models.architecture import Architecture

BYTES = 4  # float32
# Share of the device's memory for jobs.
DEFAULT_SHARE = 0.5


def job_bytes(arch: Architecture, task: TokenTask) -> int:
    """Bytes that the clean and the ablated pass of a job keep, and about twice as much for its rows.

    Per token and layer: z of both passes, keys and values of the clean one, MLP outputs and the two
    residual streams of both. Attention scores of one layer come on top.
    """
    longest = max(len(ids) for ids in task.clean)
    tokens = longest * len(task.clean)
    scores = len(task.clean) * arch.heads * longest * longest
    logits = len(task.metric_positions()) * arch.output_vocabulary
    return tokens * token_bytes(arch) + BYTES * (3 * scores + 4 * logits)


def token_bytes(arch: Architecture) -> int:
    """Bytes that a job needs at least for each token of its clean prompts."""
    per_layer = (2 * arch.heads + 2 * arch.kv_heads) * arch.d_head + 6 * arch.d_model
    return BYTES * 3 * arch.layers * per_layer


def machine_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or as much of it as this process may take: its control groups may set limits.

    Args:
        root: of the file system where the system tells about groups.
    """
    return min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_group_limits(root))


def _group_limits(root: Path) -> Iterator[int]:
    """Of every group that this process is in, up to the outermost that can be seen. Both versions count."""
    yield 1 << 62
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in groups):
        if number == "0":
            base, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        for group in (path, *map(str, PurePosixPath(path).parents)):
            with suppress(OSError, ValueError):  # "max", and groups outside of this container
                yield int((base / group.lstrip("/") / file).read_text())
