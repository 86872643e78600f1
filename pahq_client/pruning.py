"""The arguments of node pruning: their checks, and their message."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pahq.v1 import methods_pb2

from pahq_client import checks
from pahq_client.errors import InvalidRequest
from pahq_client.node_layout import checked_kind

# In the order of `Client.prune_nodes`, as `discover` and `submit` take them.
ARGUMENTS = ("max_kl", "penalty", "steps", "kinds", "seed", "task_loss", "polish")
# Arguments that messages call otherwise.
RENAMED = {"no_polish": "polish"}


def read_kinds(field: str, given: object) -> tuple[str, ...]:
    """Reads kinds of nodes: a list of names, or one name.

    Raises:
        InvalidRequest: there is none, or one is unknown.
    """
    kinds = (given,) if isinstance(given, str) else checks.items(field, given)
    if not kinds:  # a message without any would prune all
        raise InvalidRequest(field, "is empty, so that nothing would be pruned; None stands for all kinds")
    return tuple(checked_kind(f"{field}[{number}]", kind) for number, kind in enumerate(kinds))


def parameters_message(given: Mapping[str, Any]) -> methods_pb2.NodePruningParameters:
    """Converts arguments of node pruning.

    Args:
        given: by name, those that are not left at their default; each of the right type.

    Raises:
        InvalidRequest: a value is one that no server allows.
    """
    limits = [name for name in ("max_kl", "penalty") if name in given]
    if len(limits) != 1:
        known = "both" if limits else "neither"
        raise InvalidRequest("max_kl", f"exactly one of max_kl and penalty is needed, got {known}")
    (limit,) = limits
    if not 0 < given[limit] < math.inf:  # also refuses NaN
        raise InvalidRequest(limit, f"must be a number above 0, got {given[limit]:g}")
    if given.get("steps", 1) < 1:  # 0 would be the server's default
        raise InvalidRequest("steps", f"must be at least 1, got {given['steps']}")
    if given.get("seed", 0) < 0:
        raise InvalidRequest("seed", f"must be an integer from 0 on, got {given['seed']}")
    if not math.isfinite(given.get("task_loss", 0.0)):
        raise InvalidRequest("task_loss", f"must be a finite number, got {given['task_loss']:g}")
    own = {name: value for name, value in given.items() if name != "polish"}
    return methods_pb2.NodePruningParameters(**own, no_polish=not given.get("polish", True))
