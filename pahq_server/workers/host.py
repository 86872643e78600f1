"""What answers the pool's calls where a worker is: keeps the states that the pool has named."""

from __future__ import annotations

import platform
from functools import singledispatchmethod

from pahq_server.core.engine import EngineStateId, Outcome, ResolvedObjective, Work
from pahq_server.core.errors import ServerError
from pahq_server.core.operations import Operation, ScorePasses
from pahq_server.engine.worker import Worker
from pahq_server.workers.messages import (
    Call,
    CheckWorker,
    CloseState,
    Opened,
    OpenState,
    Ran,
    RunOperations,
    WorkerInfo,
)
from pahq_server.workers.passes import ReceivedBases, SentPasses


class WorkerHost:
    """Answers calls to one worker, one after another.

    Args:
        worker: runs operations.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._states: dict[EngineStateId, EngineStateId] = {}  # the pool's name to the worker's
        self._opened: dict[EngineStateId, ResolvedObjective] = {}
        self._bases: dict[EngineStateId, ReceivedBases] = {}

    def info(self) -> WorkerInfo:
        """Describes the worker; measures its speed."""
        worker, speed = self._worker, self._worker.speed()
        models = tuple(sorted(worker.models(), key=lambda model: model.name))
        return WorkerInfo(
            host=platform.node(),
            device=worker.title,
            hardware=worker.hardware(),
            models=models,
            operations_s=speed.operations_s(),
            bytes_s={model.name: speed.bytes_s(model.name) for model in models if model.streams},
            memory_bytes=worker.memory_bytes,
            memory=worker.memory_usage(),
        )

    @singledispatchmethod
    def run(self, call: Call) -> object:
        """Returns the answer to a call, see `messages`. Raises whatever it fails with."""
        raise ServerError(f"a worker has no answer to {type(call).__name__}")

    @run.register
    def _open(self, call: OpenState) -> Opened:
        if call.state not in self._states:
            self._states[call.state] = self._worker.open(call.resolved)
            self._opened[call.state], self._bases[call.state] = call.resolved, ReceivedBases()
        elif self._opened[call.state] != call.resolved:
            raise ServerError(f"a worker has state {call.state} open with another objective")
        return Opened(call.resolved.clean_run.margins, self._worker.memory_usage())

    @run.register
    def _operate(self, call: RunOperations) -> Ran:
        outcomes: dict[int, Outcome] = {}
        work: dict[int, Work] = {}
        for number, (state, operation) in enumerate(call.operations):
            if state not in self._states:
                outcomes[number] = ServerError(f"state {state} is not open on this worker")
                continue
            try:
                work[number] = Work(self._states[state], self._received(state, operation))
            except ServerError as error:
                outcomes[number] = error
        outcomes |= zip(work, self._worker.run(list(work.values())), strict=True)
        return Ran([outcomes[number] for number in range(len(outcomes))], self._worker.memory_usage())

    def _received(self, state: EngineStateId, operation: Operation | SentPasses) -> Operation:
        if not isinstance(operation, SentPasses):
            return operation
        return ScorePasses(self._bases[state].receive(operation))

    @run.register
    def _close(self, call: CloseState) -> None:
        self._opened.pop(call.state, None)
        self._bases.pop(call.state, None)
        state = self._states.pop(call.state, None)
        if state is not None:
            self._worker.close(state)

    @run.register
    def _check(self, call: CheckWorker) -> None:
        self._worker.check()
