"""Node pruning as a method of jobs."""

from __future__ import annotations

import statistics
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import (
    PASSES_PER_STEP,
    Mask,
    MaskFigures,
    MeasureMasks,
    TrainMasks,
)
from pahq_server.methods.base import Method, MethodContext, Steps, layout_of
from pahq_server.methods.node_pruning.artifact import (
    KIND,
    VERSION,
    NodeCircuit,
    node_circuit_bytes,
    of_full_model,
)
from pahq_server.methods.node_pruning.journal import (
    CHECKPOINT_S,
    FIRST_CHECKPOINT_S,
    Recorded,
    checkpoint_record,
    figures_record,
)
from pahq_server.methods.node_pruning.parameters import NodePruningParameters, check_objective
from pahq_server.methods.node_pruning.polish import Bounds, Measured, Polished, binary, polish, repair

# Steps of one operation take about so many seconds, for which other jobs wait.
OPERATION_S = 0.2
MOST_STEPS_AT_ONCE = 50
# Of so many last steps the mean KL is told.
RECENT = 50
# What polishing takes, in steps of training, for estimates.
POLISH_STEPS = 200

R = TypeVar("R")


class NodePruning(Method[NodePruningParameters]):
    """Trains gates on nodes of several sizes. The artifact is a node circuit.

    Its journal records are checkpoints of training and figures of circuits (`journal`).
    """

    name, parameters, unit = "node_pruning", NodePruningParameters, "steps"
    needs_activations = False  # its operations run the prompts by themselves

    def stored(self, parameters: NodePruningParameters) -> dict[str, Any]:
        return {**vars(parameters), "kinds": list(parameters.kinds)}

    def read_stored(self, fields: Mapping[str, Any]) -> NodePruningParameters:
        return self.read({**fields, "kinds": tuple(fields.get("kinds", ()))})

    def check(self, parameters: NodePruningParameters, resolved: ResolvedObjective) -> None:
        parameters.kinds_of(check_objective(resolved))
        if parameters.task_loss and resolved.task.answers is None:
            raise InvalidRequestError("task_loss", "needs answers, and the task has none: leave it out")

    def total(self, parameters: NodePruningParameters, resolved: ResolvedObjective) -> int:
        return parameters.steps

    def weight(self, parameters: NodePruningParameters, resolved: ResolvedObjective) -> float:
        polishing = 0 if parameters.no_polish else POLISH_STEPS
        return PASSES_PER_STEP * (parameters.steps + polishing)

    def run(self, context: MethodContext[NodePruningParameters]) -> Steps:
        run = _Run(context)
        return (yield from run.steps())

    def partial(self, context: MethodContext[NodePruningParameters]) -> Artifact | None:
        run = _Run(context)
        if run.recorded.training is None:
            return None
        told = (
            f"The job did not come to its end: this is the circuit of the gates after {run.training.step} of "
            f"{context.parameters.steps} steps. It was not measured. Run the job again for the whole one.",
        )
        kept = binary(run.layout, run.training.log_alpha, run.kinds)
        return run.artifact(run.circuit(kept, kept), told)


class _Run:
    """One run of the method.

    Args:
        context: of the job.
    """

    def __init__(self, context: MethodContext[NodePruningParameters]) -> None:
        self._context, self._asked = context, context.parameters
        self.layout = layout_of(context.resolved)
        self.kinds = self._asked.kinds_of(self.layout)
        self.recorded = Recorded.of(context.journal, self.layout)
        self._replayed = iter(list(self.recorded.figures))
        self.training = self.recorded.training or self._asked.start(self.layout)
        self._recent = list(self.recorded.recent)
        self._step_s: float | None = None

    def steps(self) -> Steps:
        full_mask = np.ones(self.layout.size, dtype=bool)
        (full,) = yield from self._measure([full_mask])
        budget = self._asked.max_kl
        if budget is not None and full.kl > budget:
            raise InvalidRequestError(
                "node_pruning.max_kl",
                f"must be at least the KL divergence of the whole model in "
                f"{self._context.resolved.objective.precision!r}, which is {full.kl:.3g}, got {budget:g}. "
                "Use a larger one, or precision 'fp32'.",
            )
        yield from self._train()
        trained = binary(self.layout, self.training.log_alpha, self.kinds)
        (of_trained,) = yield from self._measure([trained])
        log_alpha, bounds = self.training.log_alpha, self._bounds(full, of_trained)
        kept, repaired = trained, not bounds.hold(of_trained)
        if repaired:
            kept = (yield from self._decide(repair(self.layout, log_alpha, self.kinds, bounds))).kept
        if not self._asked.no_polish:
            kept = (yield from self._decide(polish(self.layout, log_alpha, kept, self.kinds, bounds))).kept
        (of_kept,) = yield from self._measure([kept])
        circuit = self.circuit(trained, kept, full, of_trained, of_kept, repaired)
        told = (*of_full_model(self._context.resolved, full), *_warnings(circuit))
        return self.artifact(circuit, told)

    def _bounds(self, full: MaskFigures, trained: MaskFigures) -> Bounds:
        """Returns what the circuit keeps within: the full model is, and without a budget the trained circuit.

        Where answers are part of the loss, they stay as right as the full model's.
        """
        budget = self._asked.max_kl
        accuracy = full.accuracy if self._asked.task_loss else None
        if budget is None and accuracy is not None and trained.accuracy is not None:
            accuracy = min(accuracy, trained.accuracy)
        return Bounds(trained.kl if budget is None else budget, accuracy)

    def _train(self) -> Generator[Operation, Any, None]:
        asked, context = self._asked, self._context
        penalty, steering = asked.penalties(self.layout), asked.steering
        since, wait = context.clock(), FIRST_CHECKPOINT_S
        self._tell("training", {})
        while (left := asked.steps - self.training.step) > 0:
            started = context.clock()
            count = min(left, self._steps_at_once())
            found = yield TrainMasks(self.layout, self.training, count, penalty, steering)
            now = context.clock()
            self._step_s = (now - started) / count
            self.training = found.training
            self._recent = [*self._recent, *found.kl][-RECENT:]
            context.count(steps=count)
            if left == count or now - since >= min(wait, CHECKPOINT_S):
                measured = b"".join(map(figures_record, self.recorded.figures))
                context.record(measured + checkpoint_record(self.training, self._recent), alone=True)
                since, wait = now, 2 * wait
            self._tell("training", {f"size_{kind}": size for kind, size in found.sizes.items()})

    def _steps_at_once(self) -> int:
        if self._step_s is None:
            return 1
        return max(1, min(MOST_STEPS_AT_ONCE, int(OPERATION_S / max(self._step_s, 1e-6))))

    def _decide(self, search: Measured) -> Generator[Operation, Any, Polished]:
        """Runs a search to its end."""
        figures: Sequence[MaskFigures] | None = None
        while True:
            try:
                masks = search.send(figures)  # type: ignore[arg-type]
            except StopIteration as stop:
                found: Polished = stop.value
                return found
            figures = yield from self._measure(masks)

    def _measure(self, masks: Sequence[Mask]) -> Generator[Operation, Any, list[MaskFigures]]:
        """Measures circuits, or takes their figures from the journal."""
        known = [figures for _, figures in zip(masks, self._replayed, strict=False)]
        if len(known) == len(masks):
            return known
        if known:
            raise ValueError("the journal ends within circuits that were measured together")
        found: list[MaskFigures] = yield MeasureMasks(self.layout, masks)
        self._context.record(b"".join(map(figures_record, found)), len(found))
        self.recorded.figures += found
        self._context.count(circuits=len(found))
        self._tell("measuring circuits", {"kl_circuit": found[0].kl})
        return found

    def _tell(self, stage: str, figures: Mapping[str, float]) -> None:
        average = self.training.average
        shown = {"lambda": self.training.scale, **figures}
        if average is not None:
            shown["kl"] = average
        self._context.tell(Progress(self.training.step, stage, shown))

    def circuit(
        self,
        trained: Mask,
        kept: Mask,
        full: MaskFigures | None = None,
        of_trained: MaskFigures | None = None,
        of_kept: MaskFigures | None = None,
        repaired: bool = False,
    ) -> NodeCircuit:
        """Returns what was found. The masks and figures are those of `NodeCircuit`."""
        asked = self._asked
        return NodeCircuit(
            self.kinds,
            self.training.step,
            asked.max_kl,
            asked.penalty,
            self.training.log_alpha,
            trained,
            kept,
            full,
            of_trained,
            of_kept,
            statistics.fmean(self._recent) if self._recent else None,
            of_kept is not None and not asked.no_polish,
            repaired,
        )

    def artifact(self, circuit: NodeCircuit, told: tuple[str, ...]) -> Artifact:
        """Packs what was found."""
        figures = {"kept": float(np.count_nonzero(circuit.kept))}
        if circuit.of_kept is not None:
            figures["kl"] = circuit.of_kept.kl
        data = node_circuit_bytes(circuit, self._context.resolved, self.layout)
        return Artifact(KIND, VERSION, data, figures, told)


def _warnings(circuit: NodeCircuit) -> Iterator[str]:
    """Yields what may mislead about a circuit that was measured."""
    assert circuit.of_kept is not None
    if not circuit.kept.any():
        yield (
            f"Nothing is kept: the ablated run alone is within {circuit.of_kept.kl:.3g} nats of the full "
            "model. Use a smaller budget or penalty, or prompts whose corrupted ones differ more."
        )
    elif circuit.kept.all():
        yield (
            "Nothing was pruned: training closed no gate. Use a larger budget or penalty, or more steps of "
            "training."
        )
