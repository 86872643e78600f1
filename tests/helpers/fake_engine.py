"""An engine without models or tensors: scores are a made-up function, and tests hold the reins."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from helpers.fake_generator import CIRCUIT_OFFER, OFFER, decode
from helpers.scores import SetScore
from helpers.toy_activations import ToyActivations
from helpers.toy_nodes import Toy
from pahq_server.core.activations import DescribeNeurons, ScoreContinuations, SumNeurons
from pahq_server.core.circuit import PatchedPass
from pahq_server.core.engine import (
    Capabilities,
    EngineStateId,
    Estimate,
    HeadStoreUsage,
    MemoryUsage,
    ModelInfo,
    Objective,
    Outcome,
    ResolvedObjective,
    Work,
    WorkerState,
    WorkerStatus,
)
from pahq_server.core.errors import InvalidRequestError, NotFoundError, ResourceExhaustedError
from pahq_server.core.generation import Decode, DecodeUnderCircuit, GenerationOffer
from pahq_server.core.graph import Graph
from pahq_server.core.operations import (
    LikeliestTokens,
    MeasureAccuracy,
    Operation,
    ScorePasses,
    TaskAccuracy,
    TopTokens,
)
from pahq_server.core.pruning import MeasureMasks, NodeLayout, TrainMasks
from pahq_server.core.task import Prompt, PromptTask, TokenIds, TokenizedText, TokenTask

GRAPH = Graph(layers=2, heads=2, kv_heads=2)
TASK = PromptTask(clean=((1, 2), (3, 4)), corrupted=((1, 5), (3, 6)))
OBJECTIVE = Objective("toy", TASK, "kl_divergence", "resample", "group", "fp32")

# Operations on texts, which need the task.
_OF_TEXTS = (SumNeurons, DescribeNeurons, ScoreContinuations)

# Of every task that is checked.
CLEAN, CORRUPTED = TaskAccuracy(0.75, 0.5, 2.5), TaskAccuracy(0.25, 0.0, -1.5)

# Longest wait for another thread; never part of what a test asserts.
PATIENCE_S = 30.0


@dataclass
class Failures:
    """What goes wrong with jobs of a model; set to an exception to raise or return it."""

    resolve: Exception | None = None
    open: Exception | None = None
    run: Exception | None = None
    close: Exception | None = None


class FakeEngine:
    """Serves "toy" and whatever else a test names in ``failures``.

    ``operations`` says what a class of operations gives; a test may add its own. ``steps`` records which
    states each call of `run` worked for. While the engine is held, `run` waits; `let` allows some calls.
    ``room`` limits how many states can be open at once. ``request_warnings`` are found in every request.

    Args:
        graph: of every model.
        score: of a pass; by default made up from the kept edges.
    """

    def __init__(self, graph: Graph = GRAPH, score: Callable[[PatchedPass], float] | None = None) -> None:
        self.graph = graph
        self.failures: dict[str, Failures] = {"toy": Failures()}
        self.whole_call_fails: Exception | None = None
        self.broken: Exception | None = None  # what `check` raises
        self.checks = 0
        self.why_unavailable = ""
        self.worker_list = [
            WorkerStatus(0, WorkerState.READY, "attic", "abacus", {"beads": "100"}, batches=7)
        ]
        self.room: int | None = None
        self.request_warnings: tuple[str, ...] = ()
        self.answers: dict[str, TokenIds] = {}  # fields of every task beside its prompts
        self.revision = "c0ffee"  # of every model
        self.offer: GenerationOffer | None = OFFER  # of every model
        self.steps: list[list[EngineStateId]] = []
        self.open_states: dict[EngineStateId, ResolvedObjective] = {}
        self.opened: list[ResolvedObjective] = []
        self.threads: set[str] = set()
        score_pass = score or SetScore(graph, 1)
        self.operations: dict[type[Operation], Callable[[Any], object]] = {
            ScorePasses: lambda operation: [score_pass(each) for each in operation.passes],
            LikeliestTokens: _likeliest,
            MeasureAccuracy: lambda operation: [CLEAN, CORRUPTED][: 1 + operation.corrupted],
            Decode: decode,
            DecodeUnderCircuit: decode,
            TrainMasks: _nodes,
            MeasureMasks: _nodes,
        }
        layout = nodes_of(graph)
        self.neurons = ToyActivations(1, layout.layers * layout.d_mlp, planted=2) if layout.d_mlp else None
        self._ids = itertools.count()
        self._held = False
        self._allowed = 0
        self._changed = threading.Condition()
        self._asked = threading.Semaphore(0)

    def hold(self) -> None:
        """From now on, `run` waits for `let`."""
        self._held = True

    def let(self, calls: int = 1) -> None:
        with self._changed:
            self._allowed += calls
            self._changed.notify_all()

    def wait_for_call(self) -> None:
        """Waits until `run` has been entered once more than this was called."""
        assert self._asked.acquire(timeout=PATIENCE_S), "the engine was not asked to run anything"

    def release(self) -> None:
        """Ends holding, for good."""
        with self._changed:
            self._held = False
            self._changed.notify_all()

    # Engine

    def capabilities(self) -> Capabilities:
        return Capabilities(
            device="abacus",
            metrics=("kl_divergence", "l2"),
            ablations=("resample", "zero"),
            precisions=("fp32",),
            tasks=("ioi",),
            hardware={"beads": "100"},
            generation="transformers",
        )

    def memory_usage(self) -> MemoryUsage:
        return MemoryUsage(
            page_bytes=16,
            pages=70,
            used=60,
            shared=50,
            peak_used=65,
            scratch_bytes=400,
            preemptions=3,
            head_store=HeadStoreUsage(hits=11, misses=2, bytes_moved=4096),
        )

    def workers(self) -> list[WorkerStatus]:
        return self.worker_list

    concurrent = False

    def unavailable(self) -> str:
        return self.why_unavailable

    def models(self) -> list[ModelInfo]:
        return [
            ModelInfo(
                name=name,
                architecture="fake",
                revision=self.revision,
                layers=self.graph.layers,
                heads=self.graph.heads,
                kv_heads=self.graph.kv_heads,
                d_model=8,
                vocabulary=100,
                context=10,
                parameters=1234,
                tokenizer=False,
                edges_group=self.graph.num_edges,
                edges_query=self.graph.num_edges,
            )
            for name in sorted(self.failures)
        ]

    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        if objective.model not in self.failures:
            raise NotFoundError(f"model {objective.model!r}", "served models: toy")
        _raise(self.failures[objective.model].resolve)
        if objective.metric not in self.capabilities().metrics:
            raise InvalidRequestError("metric", f"unknown metric {objective.metric!r}")
        if not activations:
            return self._resolve_prompts(objective)
        task = replace(TokenTask(((1, 2),), ((1, 3),)), **self.answers)
        return ResolvedObjective(objective, task, self.graph, self.revision, warnings=self.request_warnings)

    def _resolve_prompts(self, objective: Objective) -> ResolvedObjective:
        """Takes prompts of token ids as they are."""
        assert isinstance(objective.task, PromptTask)
        if not objective.task.clean:
            raise InvalidRequestError("task.clean", "at least one prompt is needed")
        return ResolvedObjective(
            objective,
            replace(
                TokenTask(_ids(objective.task.clean), _ids(objective.task.corrupted) or None), **self.answers
            ),
            self.graph,
            self.revision,
            prompts=objective.task,
            warnings=self.request_warnings,
            activations=False,
            generation=self.offer,
            no_generation="" if self.offer else "the abacus does not speak",
            circuit_generation=CIRCUIT_OFFER,
            nodes=nodes_of(self.graph),
        )

    def tokenize(self, model: str, texts: Sequence[str], special: bool, prompt: str) -> list[TokenizedText]:
        """A token for each letter, with 0 before them; single letters other than the prompt are answers."""
        if model not in self.failures:
            raise NotFoundError(f"model {model!r}", "served models: toy")
        _raise(self.failures[model].resolve)
        if not texts:
            raise InvalidRequestError("texts", "at least one text is needed")
        return [_tokenized(text, special, prompt) for text in texts]

    def token_texts(
        self, model: str, prompts: Sequence[TokenIds], tokens: Sequence[Sequence[int]]
    ) -> list[list[str]]:
        """The length of the prompt, and a letter."""
        return [
            [f"{len(prompt)}{chr(97 + token)}" for token in ids]
            for prompt, ids in zip(prompts, tokens, strict=True)
        ]

    def estimate(
        self, resolved: ResolvedObjective, weight: float | None = None, tests: tuple[int, int] | None = None
    ) -> Estimate:
        return Estimate(1000 * len(resolved.task.clean), 0.5, 60.0, resolved.objective.model != "toy")

    def open(self, resolved: ResolvedObjective) -> EngineStateId:
        self.threads.add(threading.current_thread().name)
        _raise(self.failures[resolved.objective.model].open)
        if self.room is not None and len(self.open_states) >= self.room:
            raise ResourceExhaustedError("no room on the abacus", 1.0)
        state = EngineStateId(next(self._ids))
        self.open_states[state] = resolved
        self.opened.append(resolved)
        return state

    def run(self, work: Sequence[Work]) -> list[Outcome]:
        self.threads.add(threading.current_thread().name)
        self.steps.append([item.state for item in work])
        self._asked.release()
        with self._changed:
            allowed = self._changed.wait_for(lambda: not self._held or self._allowed, PATIENCE_S)
            assert allowed, "the test forgot a held engine"
            self._allowed -= self._held
        _raise(self.whole_call_fails)
        return [self._outcome(item) for item in work]

    def close(self, state: EngineStateId) -> None:
        resolved = self.open_states.pop(state)
        _raise(self.failures[resolved.objective.model].close)

    def check(self) -> None:
        self.checks += 1
        _raise(self.broken)

    def _outcome(self, work: Work) -> Outcome:
        resolved = self.open_states[work.state]
        failure = self.failures[resolved.objective.model].run
        if failure is None and isinstance(work.operation, _OF_TEXTS):
            assert self.neurons is not None
            return self.neurons.answer(work.operation, resolved.task)
        return failure if failure is not None else self.operations[type(work.operation)](work.operation)


def _ids(prompts: Sequence[Prompt]) -> tuple[TokenIds, ...]:
    return tuple(ids if isinstance(ids, tuple) else (1,) for ids in prompts)


def nodes_of(graph: Graph) -> NodeLayout:
    """Which nodes a model of this graph has."""
    return NodeLayout(graph.layers, graph.heads, d_head=4, d_model=8, d_mlp=6 if graph.mlps else 0)


def _nodes(operation: TrainMasks | MeasureMasks) -> object:
    return Toy(1, layout=operation.layout).answer(operation)


def _likeliest(operation: LikeliestTokens) -> TopTokens:
    """Token 0 with half of the probability, token 1 with a quarter, and so on."""
    ids = np.tile(np.arange(operation.count), (operation.positions, 1))
    return TopTokens(ids, 0.0 - ids, 0.5 ** (1.0 + ids))


def _tokenized(text: str, special: bool, prompt: str) -> TokenizedText:
    start = (0,) if special else ()
    tokens = (*("<s>" for _ in start), *text)
    if len(text) != 1 or text == prompt:
        return TokenizedText(text, (*start, *map(ord, text)), tokens, None, "", f"no answer to {prompt!r}")
    return TokenizedText(text, (*start, ord(text)), tokens, ord(text), text, "")


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
