"""What steering by a set of neurons does at several strengths, beside random sets of the same size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from pahq_client import checks, files
from pahq_client.display.plots import Series, plot, table
from pahq_client.errors import InvalidRequest
from pahq_client.neuron_set import NeuronSet
from pahq_client.results import WithProvenance
from pahq_client.samples import Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pahq_client.circuit_file import JsonObject
    from pahq_client.task import PromptLike

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
# The fewest random sets that tell noise from effect.
LEAST_CONTROLS = 5
# By which the log-probability of a certain token may be above 0.
_ROUNDING = 1e-3

Scorer: TypeAlias = "Callable[[Sample], float] | tuple[PromptLike, PromptLike]"
"""A function of a sample, or two continuations, of which the first has the value."""


@dataclass(frozen=True, eq=False)
class ContinuationScores(WithProvenance):
    """Log-probabilities of continuations, as the method ``continuations`` gives them.

    Args:
        logprobs: of each text's continuation, in nats.
        provenance: as that of a `Circuit`.
        partial: whether the job was cancelled or failed before its end.
    """

    logprobs: tuple[float, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False

    @staticmethod
    def read(
        layout: JsonObject,
        arrays: Mapping[str, NDArray[Any]],
        provenance: Mapping[str, Any],
        partial: bool,
    ) -> ContinuationScores:
        """Reads an artifact. Raises ValueError for numbers that are no log-probabilities."""
        from pahq_client.artifacts import array_of

        logprobs = array_of(arrays, "logprobs", "float64", None).tolist()
        if not all(math.isfinite(each) and each <= _ROUNDING for each in logprobs):
            raise ValueError("it holds a log-probability that is not finite, or above 0")
        return ContinuationScores(tuple(logprobs), provenance, partial)


@dataclass(frozen=True)
class DoseRequest:
    """What steering is tried on; described at `Client.dose_response`."""

    model: str
    neurons: NeuronSet
    prompts: PromptLike | Iterable[PromptLike]
    scorer: Scorer
    strengths: Iterable[float] = STRENGTHS
    controls: int = LEAST_CONTROLS
    seed: int = 0
    generate: Mapping[str, Any] | None = None

    def plan(self) -> tuple[tuple[float, ...], list[NeuronSet]]:
        """Returns the strengths in increasing order, and the set with its controls after it.

        Raises:
            InvalidRequest: an argument is wrong.
        """
        if not isinstance(self.neurons, NeuronSet):
            detail = f"must be a NeuronSet, got {type(self.neurons).__name__}"
            raise InvalidRequest("neurons", detail)
        if not len(self.neurons):
            raise InvalidRequest("neurons", "holds no neurons, so that nothing would be steered")
        given = [
            checks.number(f"strengths[{i}]", each)
            for i, each in enumerate(checks.items("strengths", self.strengths))
        ]
        if not given or not all(map(math.isfinite, given)) or len(set(given)) != len(given):
            raise InvalidRequest("strengths", f"must be finite numbers, each once, got {given}")
        if checks.integer("controls", self.controls) < LEAST_CONTROLS:
            detail = f"must be at least {LEAST_CONTROLS}, to tell an effect from noise, got {self.controls}"
            raise InvalidRequest("controls", detail)
        seed = checks.integer("seed", self.seed)
        pair = isinstance(self.scorer, tuple | list)
        if not callable(self.scorer) and not (pair and len(self.scorer) == 2):
            detail = "must be a function of a Sample, or two continuations as in (' yes', ' no')"
            raise InvalidRequest("scorer", detail)
        if pair and self.generate is not None:
            raise InvalidRequest("generate", "is for a scorer of samples; continuations are given already")
        sets = [self.neurons, *(self.neurons.matched_control(seed + i) for i in range(self.controls))]
        return tuple(sorted(given)), sets


@dataclass(frozen=True, repr=False)
class DoseResponse:
    """Mean scores at several strengths of steering.

    Args:
        strengths: in increasing order.
        values: the mean score at each, over prompts or samples.
        controls: the same of each random set.
        score: what was measured, in words.
    """

    strengths: tuple[float, ...]
    values: tuple[float, ...]
    controls: tuple[tuple[float, ...], ...]
    score: str

    @property
    def monotone(self) -> bool:
        """Whether each strength gives at least the score of those below."""
        return all(a <= b for a, b in zip(self.values, self.values[1:], strict=False))

    @property
    def effect(self) -> float:
        """The score at the largest strength minus that at the smallest."""
        return self.values[-1] - self.values[0]

    @property
    def control_effects(self) -> tuple[float, ...]:
        """The same of each random set."""
        return tuple(values[-1] - values[0] for values in self.controls)

    def summary(self) -> str:
        """Says in one line what steering does."""
        spread = max(map(abs, self.control_effects))
        low, high = self.strengths[0], self.strengths[-1]
        shape = "monotone" if self.monotone else "not monotone"
        return (
            f"{self.score} changes by {self.effect:.4g} from strength {low:g} to {high:g}, {shape}; "
            f"{len(self.controls)} random sets change it by at most {spread:.4g}"
        )

    @overload
    def to_svg(self, path: None = None) -> str: ...
    @overload
    def to_svg(self, path: files.PathLike) -> None: ...
    def to_svg(self, path: files.PathLike | None = None) -> str | None:
        """A plot of the scores by strength, those of random sets dashed.

        Returns the text if there is no path to write it to, else None. Raises as `Circuit.to_svg`.
        """
        lines = [
            Series(self._points(values), "random neurons", "#9aa0a6", dots=False, dashed=True)
            for values in self.controls
        ]
        lines.append(Series(self._points(self.values), "located neurons"))
        return files.text_or_file(plot(lines, "strength", self.score, legend=True), path)

    def _points(self, values: Sequence[float]) -> list[tuple[float, float]]:
        return list(zip(self.strengths, values, strict=True))

    def __repr__(self) -> str:
        return f"DoseResponse({self.summary()})"

    def _repr_html_(self) -> str:
        rows = [
            [f"{strength:g}", f"{self.values[i]:.4g}", *(f"{values[i]:.4g}" for values in self.controls)]
            for i, strength in enumerate(self.strengths)
        ]
        head = ["strength", "located", *(f"control {i}" for i in range(len(self.controls)))]
        return f"{self.to_svg()}{table(head, rows)}"


def mean_score(scorer: Callable[[Sample], float], samples: Iterable[Sample]) -> float:
    """Returns the mean of a function over samples. Raises InvalidRequest for what is no finite number."""
    scores = [checks.number("scorer", scorer(sample)) for sample in samples]
    if not scores or not all(map(math.isfinite, scores)):
        raise InvalidRequest("scorer", "gave a score that is not finite, or there were no samples")
    return statistics.fmean(scores)


def mean_difference(logprobs: Sequence[float]) -> float:
    """Returns by how much first continuations are likelier than second ones, in nats.

    Args:
        logprobs: of the first and of the second continuation of each prompt in turn.
    """
    return statistics.fmean(a - b for a, b in zip(logprobs[::2], logprobs[1::2], strict=True))
