"""Evaluations: one given circuit is measured, when it is its user's turn, and nothing is stored."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from pahq_server.core.circuit import Circuit
from pahq_server.core.context import LOCAL_USER
from pahq_server.core.engine import Engine, Objective, ResolvedObjective
from pahq_server.core.errors import InvalidRequestError, OtherModelError
from pahq_server.core.graph import Graph
from pahq_server.core.operations import Operation, ScorePasses
from pahq_server.jobs import warnings as request_warnings
from pahq_server.jobs.quotas import Admission
from pahq_server.methods import warnings as circuit_warnings
from pahq_server.methods.circuits import endpoints
from pahq_server.scheduler.run import QueuePosition
from pahq_server.scheduler.scheduler import Scheduler
from pahq_server.store.base import JobStore


@dataclass(frozen=True)
class CircuitOrigin:
    """The model that a circuit was found in, as far as a client knows it.

    Args:
        graph: the graph that the circuit is part of.
        revision: revision of the model; empty if unknown.
    """

    graph: Graph
    revision: str

    def check(self, resolved: ResolvedObjective) -> None:
        """Raises OtherModelError where the circuit cannot be one of this model, else InvalidRequestError.

        Equal names of edges mean nothing across models: a circuit would be measured without an error and
        without sense.
        """
        here = resolved.graph
        # Where every head has keys and values of its own, both values of kv_receivers give the same graph.
        alike = here.heads == here.kv_heads or self.graph.kv_receivers == here.kv_receivers
        same_model = replace(self.graph, kv_receivers=here.kv_receivers) == here
        same_model &= self.revision in ("", resolved.revision)
        if not same_model:
            raise OtherModelError(_model(self.graph, self.revision), _model(here, resolved.revision))
        if not alike:
            detail = f"the circuit was found with {self.graph.kv_receivers!r}, which names other edges"
            raise InvalidRequestError("kv_receivers", f"{detail} than {here.kv_receivers!r}: leave it out")


@dataclass(frozen=True)
class CircuitMetrics:
    """The metric of a circuit, of the full model and of the empty circuit. Lower is better."""

    value: float
    full: float
    empty: float


class EvaluationRun:
    """A `Run` of the scheduler that measures one circuit, the full model and the empty circuit.

    ``future`` resolves to the metrics. Cancelling it stops the run.

    Args:
        resolved: the objective.
        circuit: the circuit that is measured.
        user: who asked for it.
        tokens: number of tokens of the task's prompts, for quotas.
    """

    name = ""

    def __init__(self, resolved: ResolvedObjective, circuit: Circuit, user: str, tokens: int = 0) -> None:
        self.resolved, self.circuit, self.user, self.tokens = resolved, circuit, user, tokens
        self.begun = False
        self.future: Future[CircuitMetrics] = Future()
        self._metrics: CircuitMetrics | None = None

    def begin(self) -> Operation | None:
        self.begun = True
        return ScorePasses(endpoints(self.resolved.graph, self.circuit))

    def deliver(self, result: object) -> Operation | None:
        assert isinstance(result, list), "the scheduler has checked it"
        self._metrics = CircuitMetrics(*result)
        return None

    def stopped(self) -> bool:
        return self.future.cancelled()

    def end(self, error: Exception | None) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if error is not None or self._metrics is None:
            self.future.set_exception(error or RuntimeError("the evaluation ended without a result"))
        else:
            self.future.set_result(self._metrics)

    def done(self) -> float:
        return 0.0

    def charge(self, seconds: float) -> None:
        """Does nothing: the answer to an evaluation does not say what it cost."""

    def queued_at(self, position: QueuePosition) -> None:
        """Does nothing: whoever waits for an evaluation is not told its position in the queue."""


class Evaluation:
    """An evaluation that waits for its turn, runs or is done.

    ``future`` gives the metrics. Cancelling it gives the evaluation up.
    """

    def __init__(self, run: EvaluationRun) -> None:
        self._circuit = run.circuit
        self.resolved, self.future = run.resolved, run.future

    def warnings(self) -> tuple[str, ...]:
        """Returns what may mislead about the metrics, once ``future`` is done."""
        found, resolved = self.future.result(), self.resolved
        full_and_empty = circuit_warnings.Endpoints(resolved.objective.metric, found.full, found.empty)
        return (
            *request_warnings.of_request(resolved),
            *circuit_warnings.of_circuit(resolved.clean_run, self._circuit, found.value, full_and_empty),
        )


class EvaluationService:
    """Evaluates circuits under the same quotas as jobs. May be used from any thread.

    Args:
        engine: checks objectives.
        scheduler: runs evaluations.
        store: knows what users have.
        admission: decides what is accepted.
    """

    def __init__(self, engine: Engine, scheduler: Scheduler, store: JobStore, admission: Admission) -> None:
        self._engine, self._scheduler, self._store = engine, scheduler, store
        self._admission = admission

    def evaluate(
        self,
        objective: Objective,
        edges: Sequence[str],
        user: str = LOCAL_USER,
        origin: CircuitOrigin | None = None,
    ) -> Evaluation:
        """Measures a circuit.

        Args:
            objective: how it is measured.
            edges: names of the kept edges.
            user: who asks.
            origin: where the circuit was found, if that is known.

        Raises InvalidRequestError, NotFoundError (model), OtherModelError if the circuit was found in another
        model, and ResourceExhaustedError.
        """
        resolved = self._engine.resolve(objective)
        if origin is not None:
            origin.check(resolved)
        circuit = Circuit.from_names(resolved.graph, edges)
        run = EvaluationRun(resolved, circuit, user, resolved.task.num_tokens)
        self._admission.admit(run, self._store.usage(user))
        run.future.add_done_callback(lambda future: self._admission.forget(run))
        self._scheduler.submit(run)
        return Evaluation(run)


def _model(graph: Graph, revision: str) -> str:
    parts = [f"{graph.layers} layers", f"{graph.heads} heads", f"{graph.kv_heads} key/value heads"]
    parts += ["attention and MLP in parallel"] if graph.parallel else []
    parts += [] if graph.mlps else ["no MLPs"]
    return ", ".join([*parts, f"revision {revision}" if revision else "revision unknown"])
