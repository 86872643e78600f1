"""Engine operations: what a method asks the engine for, one bounded piece of work at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from pahq_server.core.engine import PatchedPass
from pahq_server.core.errors import NonFiniteMetricError, ServerError


class Operation(ABC):
    """A value that says what to compute on the tensors of one job.

    Operations of one class, model, precision and graph are given to the engine together, and may share work.
    An operation takes about as long as a batch of patched passes: others wait meanwhile.
    """

    @property
    @abstractmethod
    def weight(self) -> float:
        """What it costs, in patched passes: what operations share is charged by it, above 0."""

    def check(self, result: object) -> None:
        """Raises ServerError where an engine's result cannot be one of this operation."""


@dataclass(frozen=True, eq=False)
class ScorePasses(Operation):
    """Measures circuits: the result is the metric of every pass, in order, as a list of floats."""

    passes: Sequence[PatchedPass]

    @property
    def weight(self) -> float:
        return len(self.passes)

    def check(self, result: object) -> None:
        if not isinstance(result, list) or len(result) != len(self.passes):
            raise ServerError(f"the engine gave no {len(self.passes)} scores for as many passes")
        if not all(map(math.isfinite, result)):
            raise NonFiniteMetricError("the engine gave a score that is not finite")
