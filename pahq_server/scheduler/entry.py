"""A job as the scheduler keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.engine import EngineStateId
from pahq_server.scheduler.run import Run
from pahq_server.scheduler.slots import Claim


@dataclass(eq=False, kw_only=True)
class Entry(Claim):
    """A claim with what is behind it.

    Args:
        run: the job.
        submitted: when it came, by the scheduler's clock.
        session: its tensors, while it has a slot.
        rows: that it wants scored next; it keeps them when it loses its slot.
    """

    run: Run
    submitted: float
    session: EngineStateId | None = None
    rows: Sequence[PatchedPass] = field(default=())
