"""The attribution methods: where each takes gradients, and by which rule of the backward pass.

To add one, define its parameters and its class here, and add it to `methods.registry`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.operations import CLEAN_RUN, EXACT, BackwardRule, GradientPoint
from pahq_server.methods.attribution.method import Attribution

MOST_STEPS = 100

RELEVANCE = BackwardRule(norm_scale_constant=True, activation="relp", gated_product_factor=0.5)
GRADIENT_INTERACTION = BackwardRule(
    norm_scale_constant=True,
    softmax_temperature=2.0,
    qk_factor=0.25,
    v_factor=0.5,
    gated_product_factor=0.5,
)


@dataclass(frozen=True)
class EapParameters:
    """Parameters of edge attribution patching: it has none."""


class Eap(Attribution[EapParameters]):
    """Edge attribution patching (arXiv:2310.10348): the gradient at the clean run."""

    name, parameters, rule = "eap", EapParameters, EXACT

    def points(self, parameters: EapParameters) -> tuple[GradientPoint, ...]:
        return CLEAN_RUN


@dataclass(frozen=True)
class EapIgParameters:
    """Parameters of edge attribution patching with integrated gradients.

    Args:
        steps: in how many runs the gradient is taken, 1 to `MOST_STEPS`.
    """

    steps: int = 5

    def __post_init__(self) -> None:
        if type(self.steps) is not int or not 1 <= self.steps <= MOST_STEPS:
            raise InvalidRequestError(
                "steps", f"must be an integer from 1 to {MOST_STEPS}, got {self.steps!r}"
            )


class EapIg(Attribution[EapIgParameters]):
    """Edge attribution patching with integrated gradients, in its "inputs" form (arXiv:2403.17806).

    The gradient is the mean over ``steps`` runs from the ablated embedding towards the clean one, which is
    not among them.
    """

    name, parameters, rule = "eap_ig", EapIgParameters, EXACT

    def points(self, parameters: EapIgParameters) -> tuple[GradientPoint, ...]:
        steps = parameters.steps
        return tuple(GradientPoint(step / steps, 1 / steps) for step in range(steps))


@dataclass(frozen=True)
class CleanCorruptedParameters:
    """Parameters of the mean gradient of two runs: it has none."""


class CleanCorrupted(Attribution[CleanCorruptedParameters]):
    """The mean of the gradients at the clean run and at the run with the ablated embedding."""

    name, parameters, rule = "clean_corrupted", CleanCorruptedParameters, EXACT

    def points(self, parameters: CleanCorruptedParameters) -> tuple[GradientPoint, ...]:
        return GradientPoint(1.0, 0.5), GradientPoint(0.0, 0.5)


@dataclass(frozen=True)
class RelpParameters:
    """Parameters of relevance patching: it has none."""


class Relp(Attribution[RelpParameters]):
    """Relevance patching: the clean run, under the rules of layer-wise relevance propagation."""

    name, parameters, rule = "relp", RelpParameters, RELEVANCE

    def points(self, parameters: RelpParameters) -> tuple[GradientPoint, ...]:
        return CLEAN_RUN


@dataclass(frozen=True)
class GimParameters:
    """Parameters of gradient interaction modifications: it has none."""


class Gim(Attribution[GimParameters]):
    """Gradient interaction modifications (arXiv:2505.17630): the clean run. Scores are an order only."""

    name, parameters, rule = "gim", GimParameters, GRADIENT_INTERACTION

    def points(self, parameters: GimParameters) -> tuple[GradientPoint, ...]:
        return CLEAN_RUN
