"""The arguments of discoveries, evaluations and sessions.

Their names and defaults are those of the methods of `Client` and `AsyncClient`; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

from pahq_client.circuit import Circuit
from pahq_client.elements import Edge
from pahq_client.task import TaskLike


@dataclass(frozen=True)
class DiscoveryRequest:
    """What to look for; the arguments of `pahq_client.discover`."""

    model: str
    task: TaskLike
    threshold: float | None = None
    method: str = "acdc"
    metric: str = "kl_divergence"
    ablation: str = "resample"
    gates: bool = True
    kv_receivers: str = "group"
    precision: str = "fp32"
    include_prompts: bool = False


@dataclass(frozen=True)
class SessionRequest:
    """What to keep ready; the arguments of `Client.session`."""

    model: str
    task: TaskLike
    metric: str = "kl_divergence"
    ablation: str = "resample"
    kv_receivers: str = "group"
    precision: str = "fp32"


class MeasurementOptions(TypedDict, total=False):
    """Keyword arguments of an evaluation beyond model, task and circuit; None is as good as absent."""

    metric: str | None
    ablation: str | None
    kv_receivers: str | None
    precision: str | None
    allow_other_model: bool


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure; the arguments of `Client.evaluate`."""

    model: str
    task: TaskLike
    edges: Circuit | Iterable[str | Edge]
    metric: str = "kl_divergence"
    ablation: str = "resample"
    kv_receivers: str = "group"
    precision: str = "fp32"
    allow_other_model: bool = False

    @classmethod
    def of(
        cls, model: str, task: TaskLike, edges: Circuit | Iterable[str | Edge], options: MeasurementOptions
    ) -> EvaluationRequest:
        """Fills what the options leave open from the circuit, so that it is measured as it was found."""
        known = _found_with(edges) if isinstance(edges, Circuit) else {}
        given = {key: value for key, value in options.items() if value is not None}
        return cls(model, task, edges, **{**known, **given})  # type: ignore[arg-type]


def _found_with(circuit: Circuit) -> dict[str, str]:
    asked = {
        "ablation": circuit.parameters.get("ablation"),
        "precision": circuit.provenance.get("request", {}).get("policy"),
        "metric": circuit.metric.name,
        "kv_receivers": circuit.graph.kv_receivers,
    }
    return {key: value for key, value in asked.items() if isinstance(value, str)}
