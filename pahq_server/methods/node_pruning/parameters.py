"""What a request for node pruning may ask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.pruning import (
    NODE_KINDS,
    PRECISIONS,
    START,
    NodeKind,
    NodeLayout,
    Penalty,
    Steering,
    Training,
)
from pahq_server.methods.base import finite_number, layout_of, truth_value, whole_number

STEPS, MOST_STEPS = 1000, 100_000
MOST_SEED = 2**63 - 1
# What a node of each kind costs, as published for indirect object identification in GPT-2 small, and how many
# of them that model has. In other models all nodes of a kind together cost what they do there.
PUBLISHED_WEIGHTS: dict[NodeKind, float] = {
    "heads": 1e-4,
    "attention_neurons": 2e-4,
    "mlp_hidden": 5e-6,
    "mlp_outputs": 5e-7,
    "attention_blocks": 0.01,
    "mlp_blocks": 0.03,
    "layers": 0.05,
}
GPT2_SMALL = NodeLayout(layers=12, heads=12, d_head=64, d_model=768, d_mlp=3072)
# Gates have to move by some units of log_alpha, which takes so many steps times their learning rate: with the
# published .005 they are still open after 1,000 steps, and nothing is pruned. More than .05 is unsteady.
MOVES, LEAST_RATE, MOST_RATE = 50.0, 0.005, 0.05
# The weight of all penalties where it is steered, before the first step.
STEERED_START = 2.0


@dataclass(frozen=True)
class NodePruningParameters:
    """Parameters of `node_pruning`; see `NodePruningParameters` in methods.proto.

    Args:
        max_kl: the budget, in nats; None where there is a ``penalty``.
        penalty: weight of all penalties (lambda); None where there is a budget.
        steps: of training; 0 means the usual number.
        kinds: that are pruned; empty for all.
        seed: of the first gates and of their noise.
        task_loss: weight of the answers' mean negative log-probability.
        no_polish: whether to stop after training.

    Raises InvalidRequestError for a value that is not allowed.
    """

    max_kl: float | None = None
    penalty: float | None = None
    steps: int = STEPS
    kinds: tuple[NodeKind, ...] = ()
    seed: int = 0
    task_loss: float = 0.0
    no_polish: bool = False

    def __post_init__(self) -> None:
        if (self.max_kl is None) == (self.penalty is None):
            given = "neither" if self.max_kl is None else "both"
            raise InvalidRequestError("max_kl", f"exactly one of max_kl and penalty is needed, got {given}")
        for name in ("max_kl", "penalty"):
            value = getattr(self, name)
            if value is not None and not finite_number(name, value) > 0:
                raise InvalidRequestError(name, f"must be above 0, got {value!r}")
        if self.steps == 0 and not isinstance(self.steps, bool):  # as good as absent in a message
            object.__setattr__(self, "steps", STEPS)
        whole_number("steps", self.steps, 1, MOST_STEPS)
        whole_number("seed", self.seed, 0, MOST_SEED)
        finite_number("task_loss", self.task_loss)
        truth_value("no_polish", self.no_polish)
        kinds = tuple(self.kinds)
        for number, kind in enumerate(kinds):
            if kind not in NODE_KINDS:
                detail = f"unknown kind of node {kind!r}; one of {list(NODE_KINDS)}"
                raise InvalidRequestError(f"kinds[{number}]", detail)
        object.__setattr__(self, "kinds", tuple(kind for kind in NODE_KINDS if kind in kinds))

    def kinds_of(self, layout: NodeLayout) -> tuple[NodeKind, ...]:
        """Returns the kinds that are pruned. Raises InvalidRequestError for one that the model lacks."""
        missing = [kind for kind in self.kinds if kind not in layout.kinds]
        if missing:
            detail = f"the model has no {missing[0]}: it has no MLPs. It has {list(layout.kinds)}"
            raise InvalidRequestError("kinds", detail)
        return self.kinds or layout.kinds

    def penalties(self, layout: NodeLayout) -> Penalty:
        """Returns what training adds to the KL divergence, for a model."""
        weights = {
            kind: PUBLISHED_WEIGHTS[kind] * _count(GPT2_SMALL, kind) / _count(layout, kind)
            for kind in self.kinds_of(layout)
        }
        rate = min(max(MOVES / self.steps, LEAST_RATE), MOST_RATE)
        return Penalty(weights, learning_rate=rate, task_loss=self.task_loss, seed=self.seed)

    @property
    def steering(self) -> Steering | None:
        """How the weight of penalties follows the budget; None where it is constant."""
        return None if self.max_kl is None else Steering(self.max_kl)

    def start(self, layout: NodeLayout) -> Training:
        """Returns where training begins."""
        low, high = START
        log_alpha = np.random.default_rng(self.seed).uniform(low, high, layout.size).astype(np.float32)
        zeros = np.zeros(layout.size, dtype=np.float32)
        scale = STEERED_START if self.penalty is None else float(self.penalty)
        return Training(log_alpha, zeros, zeros.copy(), 0, scale)


def check_objective(resolved: ResolvedObjective) -> NodeLayout:
    """Checks that circuits of nodes can be measured under an objective, and returns the model's nodes.

    Raises InvalidRequestError.
    """
    objective = resolved.objective
    if objective.metric != "kl_divergence":
        raise InvalidRequestError(
            "metric",
            f"node pruning minimises the KL divergence from the full model, got {objective.metric!r}. "
            "Use metric 'kl_divergence'; logit difference and accuracy are measured in the end.",
        )
    if objective.ablation == "resample" and resolved.task.corrupted is None:
        raise InvalidRequestError("task.corrupted", "resample ablation needs corrupted prompts")
    if objective.precision not in PRECISIONS:
        raise InvalidRequestError(
            "precision",
            f"node pruning does not run in {objective.precision!r}, which rounds activations: gradients "
            f"do not pass through rounding. Use one of {list(PRECISIONS)}.",
        )
    return layout_of(resolved)


def _count(layout: NodeLayout, kind: NodeKind) -> int:
    return layout.layers * layout.per_layer[kind]
