"""How much memory a job takes, known before it starts."""

from __future__ import annotations

import os

from pahq_server.core.task import TokenTask
from pahq_server.models.architecture import Architecture

BYTES = 4  # float32
# Share of the machine's memory for jobs.
DEFAULT_SHARE = 0.5


def job_bytes(arch: Architecture, task: TokenTask) -> int:
    """Bytes that the clean and the ablated pass of a job keep, and about as much again for its rows.

    Per token and layer: z of both passes, keys and values of the clean one, MLP outputs and the two
    residual streams of both. Attention scores of one layer come on top.
    """
    longest = max(len(ids) for ids in task.clean)
    tokens = longest * len(task.clean)
    per_layer = (2 * arch.heads + 2 * arch.kv_heads) * arch.d_head + 6 * arch.d_model
    kept = tokens * arch.layers * per_layer
    scores = len(task.clean) * arch.heads * longest * longest
    logits = len(task.metric_positions()) * arch.output_vocabulary
    return BYTES * (2 * kept + 3 * scores + 4 * logits)


def machine_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def default_memory_bytes() -> int:
    """Memory for jobs unless the operator says otherwise: a share of the machine's."""
    return int(machine_bytes() * DEFAULT_SHARE)
