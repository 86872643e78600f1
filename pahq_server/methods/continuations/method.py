"""Scoring continuations of texts, as a method of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pahq_server.core.activations import (
    NeuronSteering,
    ScoreContinuations,
    Span,
    Steering,
    part_tokens,
    span_parts,
)
from pahq_server.core.artifact import Artifact, Progress, pack
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.methods.base import Method, MethodContext, Steps, layout_of, refuse_rounded_activations

KIND, VERSION = "continuation_scores", 1


@dataclass(frozen=True)
class ContinuationsParameters:
    """Parameters of `continuations`; see `ContinuationsParameters` in methods.proto.

    Args:
        starts: per text the position of its continuation's first token, from 1 on.
        steering: the edit of neurons at every token; None for the model as it is.

    Raises InvalidRequestError for a value that is not allowed.
    """

    starts: tuple[int, ...] = ()
    steering: NeuronSteering | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", tuple(self.starts))
        for number, start in enumerate(self.starts):
            if not isinstance(start, int) or isinstance(start, bool):
                raise InvalidRequestError(f"starts[{number}]", f"must be a whole number, got {start!r}")
        if self.steering is not None and not isinstance(self.steering, NeuronSteering):
            raise InvalidRequestError("steering", f"must be an edit of neurons, got {self.steering!r}")

    def spans(self, resolved: ResolvedObjective) -> Sequence[Span]:
        """Returns the continuations. Raises InvalidRequestError for those that are not in the texts."""
        texts = resolved.task.clean
        if len(self.starts) != len(texts):
            detail = f"must be a position for each of {len(texts)} texts, got {len(self.starts)}"
            raise InvalidRequestError("starts", detail)
        for text, (start, ids) in enumerate(zip(self.starts, texts, strict=True)):
            if not 1 <= start < len(ids):
                detail = (
                    f"must be from 1 to {len(ids) - 1}, in a text of {len(ids)} tokens with at least one "
                    f"before the continuation, got {start}"
                )
                raise InvalidRequestError(f"starts[{text}]", detail)
        return [Span(text, start, len(texts[text])) for text, start in enumerate(self.starts)]

    def steering_for(self, resolved: ResolvedObjective) -> Steering | None:
        """Returns the edit. Raises InvalidRequestError or OtherModelError for one of another model."""
        if self.steering is None:
            return None
        layout = layout_of(resolved)
        return self.steering.steering("steering", layout.layers, layout.d_mlp, resolved.revision)


class Continuations(Method[ContinuationsParameters]):
    """Measures log-probabilities of continuations. The artifact is a number for each text.

    Its journal records are the numbers of one part of the texts each.
    """

    name, parameters, unit = "continuations", ContinuationsParameters, "texts"
    needs_activations = ablates = False

    def stored(self, parameters: ContinuationsParameters) -> dict[str, Any]:
        fields: dict[str, Any] = {"starts": list(parameters.starts)}
        if parameters.steering is not None:
            fields["steering"] = parameters.steering.stored()
        return fields

    def read_stored(self, fields: Mapping[str, Any]) -> ContinuationsParameters:
        fields = {**fields, "starts": tuple(fields.get("starts", ()))}
        if "steering" in fields:
            fields["steering"] = NeuronSteering.of_stored(fields["steering"])
        return self.read(fields)

    def described(self, parameters: ContinuationsParameters) -> dict[str, object]:
        fields = self.stored(parameters)
        if parameters.steering is not None:
            fields["steering"] = parameters.steering.described()
        return fields

    def check(self, parameters: ContinuationsParameters, resolved: ResolvedObjective) -> None:
        parameters.spans(resolved)
        parameters.steering_for(resolved)
        refuse_rounded_activations(resolved, "texts do not run")

    def total(self, parameters: ContinuationsParameters, resolved: ResolvedObjective) -> int:
        return len(resolved.task.clean)

    def weight(self, parameters: ContinuationsParameters, resolved: ResolvedObjective) -> float:
        return 1.0

    def run(self, context: MethodContext[ContinuationsParameters]) -> Steps:
        resolved, asked = context.resolved, context.parameters
        steering = asked.steering_for(resolved)
        parts = span_parts(asked.spans(resolved), part_tokens(layout_of(resolved)))
        scores = np.frombuffer(b"".join(context.journal), "<f8").tolist()
        done = 0
        for part in parts:
            done += len(part)
            if done <= len(scores):
                continue
            if len(scores) != done - len(part):
                raise ValueError(f"the journal tells of {len(scores)} texts, which end within a part")
            context.tell(Progress(len(scores), "scoring"))
            found = yield ScoreContinuations(part, steering, resolved.task.num_tokens)
            context.record(np.asarray(found, "<f8").tobytes())
            scores += found.tolist()
        if len(scores) != done:
            raise ValueError(f"the journal tells of {len(scores)} texts of {done}")
        context.tell(Progress(done, "scoring"))
        header = {"kind": KIND, "version": VERSION}
        data = pack(header, {"logprobs": np.asarray(scores, "<f8")})
        return Artifact(KIND, VERSION, data, {"mean": float(np.mean(scores))})
