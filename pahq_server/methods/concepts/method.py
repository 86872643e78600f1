"""Learning concepts as a method of jobs."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from pahq_server.core.activations import CaptureStates, Span, count_tokens
from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.concepts import (
    PASSES_PER_STEP,
    AssignCodes,
    AssignedCodes,
    CodebookErrors,
    CodebookTraining,
    MeasureCodebook,
    NameTokens,
    StartCodebook,
    StartedCodebook,
    TrainCodebook,
    TrainedCodebook,
    forward_passes,
)
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.operations import Operation
from pahq_server.methods.base import Method, MethodContext, Steps
from pahq_server.methods.concepts.artifact import (
    KIND,
    VERSION,
    codebook_bytes,
    contexts_of,
    named_tokens,
)
from pahq_server.methods.concepts.files import Checkpoint, StateFile, read_checkpoint, write_checkpoint
from pahq_server.methods.concepts.journal import (
    CHECKPOINT_S,
    CHECKPOINT_SHARE,
    Recorded,
    checkpoint_record,
    part_record,
)
from pahq_server.methods.concepts.parameters import ConceptsParameters, check_objective
from pahq_server.methods.concepts.report import ConceptReport
from pahq_server.methods.concepts.tokens import ChosenTokens, model_weights

# Steps of one operation take about so many seconds, for which other jobs wait.
OPERATION_S = 0.2
MOST_STEPS_AT_ONCE = 20
# Training starts from the best of so many starts, each from so many states, or so many per code.
ATTEMPTS, START_STATES, START_STATES_PER_CODE = 5, 4096, 8
# So many states are given codes at a time, and so many are decoded in the end.
ASSIGNED_AT_ONCE, MEASURED_STATES = 8192, 8192
# Fewer states per code make codes of single states.
FEW_STATES = 10


class Concepts(Method[ConceptsParameters]):
    """Learns a codebook of the states of texts. The artifact is a codebook.

    States and checkpoints of training are files of the job; its journal says what is in them (`journal`).
    """

    name, parameters, unit = "concepts", ConceptsParameters, "steps"
    needs_activations = ablates = False

    def check(self, parameters: ConceptsParameters, resolved: ResolvedObjective) -> None:
        check_objective(parameters, resolved)
        ChosenTokens.of(parameters, resolved.task)

    def total(self, parameters: ConceptsParameters, resolved: ResolvedObjective) -> int:
        return _Plan(parameters, resolved).total

    def weight(self, parameters: ConceptsParameters, resolved: ResolvedObjective) -> float:
        return _Plan(parameters, resolved).weight

    def warnings(self, parameters: ConceptsParameters, resolved: ResolvedObjective) -> tuple[str, ...]:
        count = ChosenTokens.of(parameters, resolved.task).count
        if count >= FEW_STATES * parameters.codes:
            return ()
        return (
            f"There are {count} states for {parameters.codes} codes, so that many concepts are single tokens "
            f"of these texts. Use at most {max(2, count // FEW_STATES)} codes, or more texts.",
        )

    def run(self, context: MethodContext[ConceptsParameters]) -> Steps:
        return (yield from _Run(context).steps())


class _Plan:
    """What a request comes to.

    Args:
        parameters: what is asked for.
        resolved: the model and its texts.
    """

    def __init__(self, parameters: ConceptsParameters, resolved: ResolvedObjective) -> None:
        layout = check_objective(parameters, resolved)
        self.settings = parameters.settings(layout.d_model)
        self.tokens = ChosenTokens.of(parameters, resolved.task)
        self.task_tokens = resolved.task.num_tokens
        self.model_weights = model_weights(layout, resolved.gated_mlps)
        self.parts = self.tokens.parts(layout, resolved.gated_mlps)
        self.shape = (self.tokens.count, len(parameters.layers), layout.d_model)
        self._steps = parameters.steps

    @property
    def assignments(self) -> int:
        """How many operations give all states their codes."""
        return -(-self.tokens.count // ASSIGNED_AT_ONCE)

    @property
    def total(self) -> int:
        """Parts of the texts, steps of training, and parts of the states that get codes."""
        return len(self.parts) + self._steps + self.assignments

    @property
    def weight(self) -> float:
        """Weight of all operations."""
        forward = sum(span.last for span in self.tokens.spans) / self.task_tokens
        per_token = PASSES_PER_STEP * self.settings.weights + self.settings.codes * self.settings.width
        trained = self._steps * min(self.tokens.batch, self.tokens.count) * per_token
        assigned = self.tokens.count * (
            self.settings.encoder_weights + self.settings.codes * self.settings.width
        )
        return forward + forward_passes(trained + assigned, self.task_tokens, self.model_weights)

    @property
    def file_bytes(self) -> int:
        """Size of all files of the job: states, and three checkpoints while a new one is written."""
        return 4 * int(np.prod(self.shape)) + 3 * (self.settings.training_bytes + 12 * self._steps)


class _Run:
    """One run of the method.

    Args:
        context: of the job.
    """

    def __init__(self, context: MethodContext[ConceptsParameters]) -> None:
        self._context, self._asked = context, context.parameters
        self._plan = _Plan(context.parameters, context.resolved)
        self._tokens, self._settings = self._plan.tokens, self._plan.settings
        self._recorded = Recorded.of(context.journal)
        self._folder = context.folder(self._plan.file_bytes)
        self._states = StateFile(self._folder, self._plan.shape)
        self._cost = (self._plan.task_tokens, self._plan.model_weights)
        self._step_s: float | None = None
        self._done = 0

    def steps(self) -> Steps:
        yield from self._capture()
        trained = yield from self._train()
        report = yield from self._assign(trained.training)
        errors = yield from self._measure(trained.training)
        codes, numbers = report.contexts()
        texts, positions = (places[numbers] for places in self._tokens.places)
        contexts = contexts_of(codes, texts, positions, self._context.resolved.task.clean)
        names: Sequence[str] = yield NameTokens(named_tokens(report.top_tokens(), contexts))
        data = codebook_bytes(
            self._asked,
            self._context.resolved,
            trained.training,
            trained.history,
            errors,
            report,
            contexts,
            names,
            len(self._tokens.windows),
        )
        figures = {
            "perplexity": report.perplexity,
            "used": float(np.count_nonzero(report.sizes)),
            "explained": 1 - errors.decoded / errors.variance if errors.variance else 0.0,
        }
        return Artifact(KIND, VERSION, data, figures, tuple(_warnings(self._asked, report)))

    # States

    def _capture(self) -> Generator[Operation, Any, None]:
        """Fills the file of states, but for what earlier processes have left there."""
        known, row, whole = self._recorded.checksums, 0, True
        for number, part in enumerate(self._plan.parts):
            last = row + count_tokens(part)
            # After a part that is gone or damaged, all are captured again.
            whole = whole and number < len(known) and self._states.checksum(row, last) == known[number]
            if not whole:
                yield from self._capture_part(number, part, row)
            row = last
            self._advance("capturing states")

    def _capture_part(self, number: int, part: Sequence[Span], row: int) -> Generator[Operation, Any, None]:
        width, task_tokens = self._settings.width, self._plan.task_tokens
        states = yield CaptureStates(part, self._asked.layers, width, task_tokens)
        checksum = self._states.write(row, states)
        if number >= len(self._recorded.checksums):
            self._context.record(part_record(number, checksum))
        self._context.count(texts=len(part), states=len(states))

    # Training

    def _train(self) -> Generator[Operation, Any, Checkpoint]:
        now = self._last_checkpoint()
        if now is None:
            now = Checkpoint((yield from self._start()), np.zeros((0, 3), np.float32))
        first, clock = self._done, self._context.clock
        since, wait = clock(), CHECKPOINT_S
        self._done = first + now.training.step
        while (left := self._settings.steps - now.training.step) > 0:
            started, step = clock(), now.training.step
            count = min(left, self._steps_at_once())
            batches = [
                self._states.batch(*self._tokens.rows(self._tokens.of_step(each)))
                for each in range(step, step + count)
            ]
            found: TrainedCodebook = yield TrainCodebook(self._settings, now.training, batches, *self._cost)
            self._step_s = (clock() - started) / count
            added = np.column_stack([found.losses, found.perplexity]).astype(np.float32)
            now = Checkpoint(found.training, np.concatenate([now.history, added]))
            self._context.count(steps=count)
            if left == count or clock() - since >= wait:
                wait = self._checkpoint(now)
                since = clock()
            self._done = first + now.training.step
            decoded, commitment, perplexity = added[-1].tolist()
            figures = {"loss": decoded, "commitment": commitment, "perplexity": perplexity}
            self._context.tell(Progress(self._done, "training", figures))
        return now

    def _start(self) -> Generator[Operation, Any, CodebookTraining]:
        """Takes the best of some starts."""
        wanted = max(START_STATES, START_STATES_PER_CODE * self._settings.codes)
        states = self._states.batch(*self._tokens.rows(self._tokens.drawn(wanted)))
        best: StartedCodebook | None = None
        for attempt in range(ATTEMPTS):
            found: StartedCodebook = yield StartCodebook(self._settings, states, attempt, *self._cost)
            if best is None or found.distance < best.distance:
                best = found
        assert best is not None
        return best.training

    def _steps_at_once(self) -> int:
        if self._step_s is None:
            return 1
        return max(1, min(MOST_STEPS_AT_ONCE, int(OPERATION_S / max(self._step_s, 1e-6))))

    def _checkpoint(self, now: Checkpoint) -> float:
        """Writes a checkpoint; returns after how many seconds of work the next one is due."""
        started = time.perf_counter()
        digest = write_checkpoint(self._folder, now)
        self._context.record(checkpoint_record(now.training.step, digest))
        return max(CHECKPOINT_S, CHECKPOINT_SHARE * (time.perf_counter() - started))

    def _last_checkpoint(self) -> Checkpoint | None:
        for step, digest in reversed(self._recorded.checkpoints):
            found = read_checkpoint(self._folder, step, digest, self._settings)
            if found is not None:
                return found
        return None

    # What was found

    def _assign(self, training: CodebookTraining) -> Generator[Operation, Any, ConceptReport]:
        """Gives all states their codes."""
        report = ConceptReport(self._settings.codes, self._tokens.priorities())
        encoder = training.weights[: self._settings.encoder_weights]
        texts, positions = self._tokens.places
        prompts = self._context.resolved.task.clean
        for first in range(0, self._tokens.count, ASSIGNED_AT_ONCE):
            last = min(self._tokens.count, first + ASSIGNED_AT_ONCE)
            x = self._states.low(first, last)
            found: AssignedCodes = yield AssignCodes(encoder, training.codes, x, *self._cost)
            places = zip(texts[first:last].tolist(), positions[first:last].tolist(), strict=True)
            ids = np.array([prompts[text][position] for text, position in places], np.int64)
            report.add(found.codes, found.distances, ids)
            self._advance("naming concepts")
        return report

    def _measure(self, training: CodebookTraining) -> Generator[Operation, Any, CodebookErrors]:
        total = CodebookErrors(0, 0.0, 0.0, 0.0)
        for windows in self._tokens.in_groups(self._tokens.drawn(MEASURED_STATES)):
            states = self._states.batch(*self._tokens.rows(windows))
            found: CodebookErrors = yield MeasureCodebook(self._settings, training, states, *self._cost)
            total = total + found
        return total

    def _advance(self, stage: str) -> None:
        self._done += 1
        self._context.tell(Progress(self._done, stage))


def _warnings(asked: ConceptsParameters, report: ConceptReport) -> Iterator[str]:
    """Yields what may mislead about a codebook."""
    used = int(np.count_nonzero(report.sizes))
    if 2 * used < asked.codes:
        yield (
            f"Only {used} of {asked.codes} codes have states: the others stand for nothing. Use fewer codes, "
            "or more and more varied texts."
        )
