"""Runs `Decode` operations: gives a model's generator the samples that all jobs want to run now.

An operation says which samples are to run, with what is known of each as its prefix. `ModelGeneration` begins
those that the generator does not have, drops those of the same job that are not listed any more, runs the
sequences of all jobs together, and gives each job what is new.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pahq_server.core.engine import Outcome
from pahq_server.core.errors import NonFiniteMetricError, ResourceExhaustedError, ServerError
from pahq_server.core.generation import (
    Decode,
    Decoded,
    DecodedSample,
    DecodeUsage,
    GenerationOffer,
    SampleRequest,
)
from pahq_server.core.operations import in_groups
from pahq_server.engine.backends import EngineState
from pahq_server.engine.generation.backend import (
    GenerationBackend,
    Generator,
    GeneratorFailedError,
    KvUsage,
    SequenceId,
    UnsupportedModelError,
)
from pahq_server.models.loading import LoadedModel
from pahq_server.models.streaming import ResidentModel

logger = logging.getLogger(__name__)

NO_BACKEND = (
    "this server generates no text: start it with --generation transformers, or with --generation vllm where "
    "vLLM is installed (pip install 'pahq[vllm]')"
)
ROUNDED = (
    "the server keeps rounded weights only, and text is generated in full precision: start it with "
    "--weights fp32"
)
# When to ask again for memory that other jobs' samples take.
RETRY_S = 5.0


class Generation:
    """Generates text with the models of an engine. Used from the worker thread, except `offer`.

    Args:
        backend: None if no text can be generated.
        served: the models by name.
    """

    def __init__(self, backend: GenerationBackend | None, served: Mapping[str, LoadedModel]) -> None:
        self._backend, self._served = backend, served
        self._offers = {name: self._offer(loaded) for name, loaded in served.items()}
        self._models: dict[str, ModelGeneration] = {}

    @property
    def backend(self) -> str:
        """Name of the backend; empty for none."""
        return "" if self._backend is None else self._backend.name

    def offer(self, model: str) -> tuple[GenerationOffer | None, str]:
        """Returns what can be generated with a model; else None, and why."""
        return self._offers[model]

    def _offer(self, loaded: LoadedModel) -> tuple[GenerationOffer | None, str]:
        if isinstance(loaded, ResidentModel):
            return None, ROUNDED
        if self._backend is None:
            return None, NO_BACKEND
        try:
            return self._backend.offer(loaded), ""
        except UnsupportedModelError as error:
            return None, str(error)

    def run(self, work: Sequence[tuple[EngineState, Decode]]) -> list[Outcome]:
        """Runs operations; see `engine.runners`. Those on one model run together."""
        return in_groups(lambda item: item[0].resolved.objective.model, work, self._run_model)

    def _run_model(self, work: list[tuple[EngineState, Decode]]) -> Sequence[Outcome]:
        state, _ = work[0]
        name, offer = state.resolved.objective.model, state.resolved.generation
        if offer is None or self._backend is None:
            return [ServerError(state.resolved.no_generation or NO_BACKEND)] * len(work)
        if name not in self._models:
            self._models[name] = ModelGeneration(self._backend, self._served[name], offer)
        return self._models[name].run(work)

    def drop(self, state: EngineState) -> None:
        """Drops all samples of a state."""
        model = self._models.get(state.resolved.objective.model)
        if model is not None:
            model.drop(state)

    def close(self) -> None:
        """Ends all generators."""
        for model in self._models.values():
            model.close()


@dataclass(eq=False)
class _Job:
    """What a generator holds for one state.

    Args:
        number: names the state to the generator.
        begun: the requests with which sequences were begun, by the keys of their samples.
    """

    number: int
    begun: dict[int, SampleRequest] = field(default_factory=dict)

    def id(self, key: int) -> SequenceId:
        return self.number, key


class ModelGeneration:
    """Generates text with one model, for all jobs on it.

    Args:
        backend: makes the generator, with the first operation.
        loaded: the model.
        offer: what the backend offers for it.
    """

    def __init__(self, backend: GenerationBackend, loaded: LoadedModel, offer: GenerationOffer) -> None:
        self._backend, self._loaded, self._offer = backend, loaded, offer
        self._generator: Generator | None = None
        self._jobs: dict[EngineState, _Job] = {}
        self._numbers = itertools.count()

    def run(self, work: Sequence[tuple[EngineState, Decode]], again: bool = True) -> list[Outcome]:
        """Runs operations together, until a sample of any of them has ended or all have got their tokens.

        If the generator has failed, another one begins all samples again, if ``again``. A second failure is
        the outcome of all operations. One whose model gives what is not finite fails alone.
        """
        try:
            return self._run(work)
        except GeneratorFailedError as error:
            self.close()
            if not again:
                failed = ServerError(f"generating text has failed twice: {error}. See the server's log")
                return [failed] * len(work)
            logger.warning("the generator has failed, and is made again: %s", error, exc_info=error)
            return self.run(work, again=False)
        except NonFiniteMetricError as error:
            # In the middle of a forward pass: what the generator holds now cannot be relied on.
            self.close()
            return [error] if len(work) == 1 else [self.run([each])[0] for each in work]

    def drop(self, state: EngineState) -> None:
        """Drops all samples of a state."""
        job = self._jobs.pop(state, None)
        if job is None or self._generator is None:
            return
        try:
            for key in job.begun:
                self._generator.drop(job.id(key))
        except GeneratorFailedError as error:
            logger.warning("the generator has failed, and is made again when it is needed: %s", error)
            self.close()

    def close(self) -> None:
        """Ends the generator, if there is one; whatever it held is lost."""
        generator, self._generator = self._generator, None
        self._jobs.clear()
        if generator is not None:
            try:
                generator.close()
            except Exception:
                logger.exception("a generator did not end in good order")

    def _run(self, work: Sequence[tuple[EngineState, Decode]]) -> list[Outcome]:
        if self._generator is None:
            self._generator = self._backend.generator(self._loaded)
        generator, jobs = self._generator, [self._job(state) for state, _ in work]
        for job, (_, operation) in zip(jobs, work, strict=True):
            self._drop_missing(generator, job, operation)
        running = self._admit(generator, list(zip(jobs, (operation for _, operation in work), strict=True)))
        before = generator.usage()
        for job, (_, operation) in zip(jobs, work, strict=True):
            self._begin(generator, job, operation, running[job])
        now = [job.id(key) for job in jobs for key in running[job]]
        steps = 0
        if now and not any(generator.sample(sequence).finish for sequence in now):
            steps = generator.run(now, min(operation.steps for _, operation in work))
        usage = generator.usage()
        outcomes: list[Outcome] = []
        for job, (_, operation) in zip(jobs, work, strict=True):
            if not running[job]:
                outcomes.append(ResourceExhaustedError("other samples take all memory for text", RETRY_S))
                continue
            samples = tuple(self._sample(generator, job, request) for request in operation.requests)
            held = self._held(generator, job, usage)
            outcomes.append(Decoded(samples, _spent(job, steps, held, before, usage)))
        return outcomes

    def _held(self, generator: Generator, job: _Job, usage: KvUsage) -> int:
        """Returns how many tokens of a job had their keys and values in memory in the last forward pass.

        A sample that has ended may have lost them since; it had those of all tokens but its last one.
        """
        held = 0
        for key, begun in job.begun.items():
            sample = generator.sample(job.id(key))
            whole = _length(begun, sample) - 1
            held += whole if sample.finish else usage.tokens.get(job.id(key), 0)
        return held

    def _job(self, state: EngineState) -> _Job:
        if state not in self._jobs:
            self._jobs[state] = _Job(next(self._numbers))
        return self._jobs[state]

    def _drop_missing(self, generator: Generator, job: _Job, operation: Decode) -> None:
        """Drops the samples of a job that its operation does not list, or lists with another prefix."""
        wanted = {request.key: request for request in operation.requests}
        for key, begun in list(job.begun.items()):
            request = wanted.get(key)
            if request is None or not self._continues(generator, job, begun, request):
                self._forget(generator, job, key)

    def _continues(
        self, generator: Generator, job: _Job, begun: SampleRequest, request: SampleRequest
    ) -> bool:
        """Tells whether a sequence goes on with what a request asks for."""
        same = replace(request, prefix=begun.prefix) == begun
        known = (*begun.prefix, *generator.sample(job.id(request.key)).ids)
        return same and known[: len(request.prefix)] == request.prefix

    def _forget(self, generator: Generator, job: _Job, key: int) -> None:
        generator.drop(job.id(key))
        del job.begun[key]

    def _admit(self, generator: Generator, work: Sequence[tuple[_Job, Decode]]) -> dict[_Job, list[int]]:
        """Chooses which samples run, so that all fit into memory.

        Each job's samples come in the order of its request, and jobs take turns, so that none is left out.
        Samples that stand still, because their users have no turn, give way; later they go on from their
        tokens.
        """
        still = self._standing({job for job, _ in work}, generator)
        count = tokens = 0
        chosen: dict[_Job, list[int]] = {job: [] for job, _ in work}
        turns = (
            (job, operation, request)
            for requests in itertools.zip_longest(*(operation.requests for _, operation in work))
            for (job, operation), request in zip(work, requests, strict=True)
            if request is not None
        )
        full = False
        for job, operation, request in turns:
            needed = self._needed(request, len(request.prompt) + len(request.prefix), operation.steps)
            full = full or not self._fit(count + 1, tokens + needed)
            if not full:
                chosen[job].append(request.key)
                count, tokens = count + 1, tokens + needed
            elif request.key in job.begun:
                self._forget(generator, job, request.key)
        for job, key, needed in still:
            if self._fit(count + 1, tokens + needed):
                count, tokens = count + 1, tokens + needed
            else:
                self._forget(generator, job, key)
        return chosen

    def _standing(self, asked: set[_Job], generator: Generator) -> list[tuple[_Job, int, int]]:
        """Returns the samples of other jobs: job, key, and the room that each takes, in tokens."""
        return [
            (job, key, self._needed(begun, _length(begun, generator.sample(job.id(key))), 0))
            for job in self._jobs.values()
            if job not in asked
            for key, begun in job.begun.items()
        ]

    def _fit(self, count: int, tokens: int) -> bool:
        return count <= self._offer.most_sequences and tokens <= self._offer.kv_tokens

    def _needed(self, request: SampleRequest, length: int, steps: int) -> int:
        """Returns the room that a sample's keys and values take by the end of an operation, in tokens."""
        whole = len(request.prompt) + request.sampling.max_tokens
        return self._offer.room(min(length + steps, whole))

    def _begin(self, generator: Generator, job: _Job, operation: Decode, keys: Sequence[int]) -> None:
        requests = {request.key: request for request in operation.requests}
        for key in keys:
            if key not in job.begun:
                generator.add(job.id(key), requests[key])
                job.begun[key] = requests[key]

    def _sample(self, generator: Generator, job: _Job, request: SampleRequest) -> DecodedSample:
        """Returns what is new of a sample since its request's prefix; nothing for one that did not run."""
        begun = job.begun.get(request.key)
        if begun is None:
            return DecodedSample(())
        found = generator.sample(job.id(request.key))
        known = len(request.prefix) - len(begun.prefix)
        return replace(
            found,
            ids=found.ids[known:],
            logprobs=found.logprobs[known:],
            signals=found.signals[known:],
        )


def _length(begun: SampleRequest, sample: DecodedSample) -> int:
    """Returns how many tokens a sequence has, those of its prompt included."""
    return len(begun.prompt) + len(begun.prefix) + len(sample.ids)


def _spent(job: _Job, steps: int, held: int, before: KvUsage, after: KvUsage) -> DecodeUsage:
    """Returns what an operation took, from what was in memory before and after it."""
    ids = [job.id(key) for key in job.begun]

    def more(now: Mapping[SequenceId, int], then: Mapping[SequenceId, int]) -> int:
        return sum(now.get(each, 0) - then.get(each, 0) for each in ids)

    return DecodeUsage(
        steps,
        held,
        more(after.prompt_computed, before.prompt_computed),
        more(after.prompt_reused, before.prompt_reused),
    )
