"""What answers the pool's calls where a worker is: keeps the states that the pool has named."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import singledispatchmethod

from pahq_server.core.circuit import BaseCircuit, PatchedPass
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


class WorkerHost:
    """Answers calls to one worker, one after another.

    Args:
        worker: runs operations.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._states: dict[EngineStateId, EngineStateId] = {}  # the pool's name to the worker's
        self._opened: dict[EngineStateId, ResolvedObjective] = {}
        self._bases: dict[EngineStateId, KnownBases] = {}

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
            self._opened[call.state], self._bases[call.state] = call.resolved, KnownBases()
        elif self._opened[call.state] != call.resolved:
            raise ServerError(f"a worker has state {call.state} open with another objective")
        return Opened(call.resolved.clean_run.margins, self._worker.memory_usage())

    @run.register
    def _operate(self, call: RunOperations) -> Ran:
        outcomes: dict[int, Outcome] = {}
        work: dict[int, Work] = {}
        for number, (state, operation) in enumerate(call.operations):
            if state in self._states:
                work[number] = Work(self._states[state], self._known(state, operation))
            else:
                outcomes[number] = ServerError(f"state {state} is not open on this worker")
        outcomes |= zip(work, self._worker.run(list(work.values())), strict=True)
        return Ran([outcomes[number] for number in range(len(outcomes))], self._worker.memory_usage())

    def _known(self, state: EngineStateId, operation: Operation) -> Operation:
        if not isinstance(operation, ScorePasses):
            return operation
        return ScorePasses(self._bases[state].of(operation.passes))

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


class KnownBases:
    """The base circuits of a job's last passes, so that equal ones are the same objects when they come again.

    An executor keeps the activations of base circuits by identity, which a message does not preserve.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], BaseCircuit] = {}

    def of(self, passes: Sequence[PatchedPass]) -> list[PatchedPass]:
        """Returns the same passes, from base circuits that were there before where these are equal."""
        kept: dict[tuple[bytes, int], BaseCircuit] = {}
        replaced: dict[int, BaseCircuit] = {}

        def known(base: BaseCircuit) -> BaseCircuit:
            if id(base) not in replaced:
                parent = None if base.parent is None else known(base.parent)
                key = base.circuit.key, 0 if parent is None else id(parent)
                kept[key] = kept.get(key) or self._known.get(key) or BaseCircuit(base.circuit, parent)
                replaced[id(base)] = kept[key]
            return replaced[id(base)]

        found = [PatchedPass(known(each.base_circuit), each.removed, each.receiver) for each in passes]
        self._known = kept
        return found
