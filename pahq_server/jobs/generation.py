"""Samples for a call that waits for them: streamed as they end, stored nowhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pahq_server.core.context import LOCAL_USER
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.errors import InvalidRequestError, OtherModelError, ResourceExhaustedError
from pahq_server.core.generation import Decoded
from pahq_server.core.operations import Operation
from pahq_server.core.task import Prompt, PromptTask
from pahq_server.jobs.predictions import of_prompts
from pahq_server.jobs.unstored_run import UnstoredRun, UnstoredService
from pahq_server.methods.generate.method import Generate
from pahq_server.methods.generate.parameters import GenerateParameters
from pahq_server.methods.generate.samples import FinishedSample
from pahq_server.methods.generate.sampling import SampleRun

# A run stops once more samples than this wait for a client that has taken none for so many seconds.
MOST_WAITING, PATIENCE_S = 256, 30.0
RETRY_S = 1.0


@dataclass(frozen=True)
class GenerationSummary:
    """What samples took.

    Args:
        figures: by name, see `GenerationSummary` in generation.proto.
        backend: name of the backend.
        policy: the policy that ran.
    """

    figures: Mapping[str, float]
    backend: str
    policy: str


class SampleBuffer:
    """Samples that have ended and that the client has not taken yet. May be used from two threads.

    Args:
        told: called after every sample, from the thread that puts it in.
        clock: seconds.
    """

    def __init__(self, told: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._told, self._clock = told, clock
        self._samples: deque[FinishedSample] = deque()
        self._taken = clock()
        self._lock = threading.Lock()

    def put(self, samples: Sequence[FinishedSample]) -> None:
        """Adds samples."""
        with self._lock:
            if not self._samples:
                self._taken = self._clock()  # until now there was nothing to take
            self._samples += samples
        if samples:
            self._told()

    def take(self) -> FinishedSample | None:
        """Removes and returns the oldest sample; None if there is none."""
        with self._lock:
            if not self._samples:
                return None
            self._taken = self._clock()
            return self._samples.popleft()

    def check(self) -> None:
        """Raises ResourceExhaustedError if too many samples wait for a client that takes none."""
        with self._lock:
            waiting, idle_s = len(self._samples), self._clock() - self._taken
        if waiting > MOST_WAITING and idle_s > PATIENCE_S:
            detail = (
                f"{waiting} samples wait, and the client has read none for {idle_s:.0f} s: read the stream "
                "as it comes, or run a job, which keeps its samples"
            )
            raise ResourceExhaustedError(detail, RETRY_S)


class StreamedSamples(UnstoredRun[GenerationSummary]):
    """Generates samples, and puts each into ``samples`` when it has ended.

    ``future`` gives the summary, after the last sample. Cancelling it stops the run.

    Args:
        resolved: the prompts, and what can be generated.
        parameters: how.
        user: who asks.
        told: called after every sample, from the worker thread.
    """

    def __init__(
        self,
        resolved: ResolvedObjective,
        parameters: GenerateParameters,
        user: str,
        told: Callable[[], None],
    ) -> None:
        super().__init__(resolved, user)
        self.parameters, self.samples = parameters, SampleBuffer(told)
        self.warnings = tuple(map(of_prompts, resolved.warnings)) + Generate().warnings(parameters, resolved)
        self._run = SampleRun(resolved, parameters)
        self._begun_at = 0.0

    def begin(self) -> Operation | None:
        self._begun_at = time.monotonic()
        return super().begin()

    def next_operation(self) -> Operation | None:
        self.samples.check()
        return self._run.next_operation()

    def take(self, result: object) -> None:
        assert isinstance(result, Decoded), "the scheduler has checked it"
        self.samples.put(self._run.take(result))

    def result(self) -> GenerationSummary:
        offer = self.parameters.offer_for(self.resolved)
        assert offer is not None, "a run without a backend is refused"
        figures = {**self._run.figures(), "seconds": time.monotonic() - self._begun_at}
        return GenerationSummary(figures, offer.backend, self._run.policy)

    def done(self) -> float:
        return self._run.ended / self._run.total

    def place(self, sample: FinishedSample) -> tuple[int, int]:
        """Returns the prompt that a sample follows, and its number among the samples of that prompt."""
        return divmod(sample.key, self.parameters.n)


class GenerationService(UnstoredService):
    """Generates samples under the same quotas as jobs."""

    def generate(
        self,
        model: str,
        prompts: Sequence[Prompt],
        parameters: GenerateParameters,
        user: str = LOCAL_USER,
        told: Callable[[], None] = lambda: None,
        ablation: str = "",
        corrupted: Sequence[Prompt] = (),
    ) -> StreamedSamples:
        """Begins to generate samples as soon as it is the user's turn.

        Args:
            model: name of a served model.
            prompts: texts or token ids.
            parameters: how samples are drawn.
            user: who asks.
            told: called after every sample, from the worker thread.
            ablation: what the edges outside of a circuit carry; empty without a circuit.
            corrupted: prompts of resample ablation; none without a circuit.

        Raises InvalidRequestError, NotFoundError (model) and ResourceExhaustedError.
        """
        circuit = parameters.circuit
        for field, given in (("ablation", ablation), ("corrupted", corrupted)):
            if circuit is None and given:
                raise InvalidRequestError(field, "is for text under a circuit: give one, or leave this out")
        task = PromptTask(tuple(prompts), tuple(corrupted))
        # The full model ablates nothing, and nothing is measured.
        ablation, kv = ("zero", "group") if circuit is None else (ablation, circuit.graph.kv_receivers)
        objective = Objective(model, task, "l2", ablation, kv, "fp32")
        try:
            resolved = self._engine.resolve(objective, activations=False)
        except InvalidRequestError as error:
            raise InvalidRequestError(_of_request(error.field), _of_request(error.detail)) from error
        try:
            parameters.check_for(resolved)
        except OtherModelError as error:
            raise OtherModelError(error.circuit, error.model, f"parameters.{error.field}") from error
        except InvalidRequestError as error:
            own = error.field in ("model", "ablation", "task.corrupted")
            field = _of_request(error.field) if own else f"parameters.{error.field}"
            raise InvalidRequestError(field, _of_request(error.detail)) from error
        run = StreamedSamples(resolved, parameters, user, told)
        self._submit(run)
        return run


def _of_request(text: str) -> str:
    """Renames the fields of a task in a text to those of a request for samples."""
    text = text.replace("task.clean", "prompts").replace("task.corrupted", "corrupted")
    return of_prompts(text)
