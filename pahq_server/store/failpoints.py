"""Named places at which tests make persistence fail, or the process die."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

# Called with the name of the place that is reached; may raise, or never return.
Failpoint = Callable[[str], None]

# The transactions of the store, and the places in each of them.
OPERATIONS = ("create", "advance", "finish", "cancel", "delete", "prune")
STAGES = ("begin", "written", "committed")
FAILPOINTS = tuple(f"{operation}.{stage}" for operation, stage in product(OPERATIONS, STAGES))


def nothing(name: str) -> None:
    """The failpoint of a server: goes on."""
