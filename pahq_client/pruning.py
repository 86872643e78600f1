"""What node pruning is asked for, as a message."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pahq.v1 import jobs_pb2, methods_pb2

from pahq_client import _requests, checks
from pahq_client._job_options import JobRequest
from pahq_client.errors import InvalidRequest
from pahq_client.node_circuit import KINDS
from pahq_client.task import TaskLike


@dataclass(frozen=True)
class PruneRequest:
    """Arguments of `Client.prune_nodes`, where they are described."""

    model: str
    task: TaskLike
    max_kl: float | None = None
    penalty: float | None = None
    steps: int = 1000
    kinds: Iterable[str] | None = None
    seed: int = 0
    task_loss: float = 0.0
    polish: bool = True
    ablation: str = "resample"
    precision: str = "fp32"
    include_prompts: bool = False


def prune_spec(request: PruneRequest) -> jobs_pb2.JobSpec:
    """Converts a PruneRequest.

    Raises:
        InvalidRequest: an argument has a wrong type, or a value that no server allows.
    """
    if (request.max_kl is None) == (request.penalty is None):
        given = "neither" if request.max_kl is None else "both"
        raise InvalidRequest("max_kl", f"exactly one of max_kl and penalty is needed, got {given}")
    steps = checks.integer("steps", request.steps, bits=32)
    if steps < 1:  # 0 would be the server's default
        raise InvalidRequest("steps", f"must be at least 1, got {steps}")
    limits = {
        name: checks.number(name, value)
        for name in ("max_kl", "penalty")
        if (value := getattr(request, name)) is not None
    }
    message = methods_pb2.NodePruningParameters(
        steps=steps,
        kinds=_kinds(request.kinds),
        seed=checks.integer("seed", request.seed),
        task_loss=checks.number("task_loss", request.task_loss),
        no_polish=not checks.flag("polish", request.polish),
        **limits,
    )
    job = JobRequest(request.model, request.task, ablation=request.ablation, precision=request.precision)
    return jobs_pb2.JobSpec(
        objective=_requests.objective_message(job, "kl_divergence"),
        include_prompts=checks.flag("include_prompts", request.include_prompts),
        node_pruning=message,
    )


def _kinds(given: Iterable[str] | None) -> list[str]:
    if given is None:
        return []
    kinds = (given,) if isinstance(given, str) else tuple(checks.items("kinds", given))
    for number, kind in enumerate(kinds):
        if kind not in KINDS:
            detail = f"unknown kind of node {kind!r}; one of {', '.join(KINDS)}"
            raise InvalidRequest(f"kinds[{number}]", detail)
    return list(kinds)
