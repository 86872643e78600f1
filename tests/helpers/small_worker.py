"""A worker without models, for tests of what is around workers."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress

from pahq_server.core.engine import EngineStateId, MemoryUsage
from pahq_server.core.errors import InvalidRequestError, NotFoundError
from pahq_server.workers.messages import (
    Call,
    CheckWorker,
    CloseState,
    MeasureMemory,
    OpenState,
    RunOperations,
    WorkerInfo,
)

# Closing these states does something else. What is added to HANGS is how long to hang, in seconds.
DIES, HANGS, RAISES, NOT_FOUND = 1_000_000, 2_000_000, 3_000_000, 4_000_000


class SmallWorker:
    """Answers calls without computing anything; the number of open states is told as the pages used."""

    def __init__(self) -> None:
        self._open: set[EngineStateId] = set()

    def info(self) -> WorkerInfo:
        hardware = {"process": str(os.getpid())}
        return WorkerInfo(socket.gethostname(), "cpu", hardware, (), 1e9, self._memory())

    def _memory(self) -> MemoryUsage:
        return MemoryUsage(1, 100, len(self._open), 0, 0, 0, 0)

    def run(self, call: Call) -> object:
        match call:
            case OpenState(state):
                self._open.add(state)
            case CloseState(state) if state >= NOT_FOUND:
                raise NotFoundError("state", "look elsewhere")
            case CloseState(state) if state == NOT_FOUND - 1:
                return os.getpid()
            case CloseState(state) if state >= RAISES:
                raise ValueError("wrong on purpose")
            case CloseState(state) if state >= HANGS:
                time.sleep(state - HANGS)
            case CloseState(state) if state >= DIES:
                os._exit(3)
            case CloseState(state):
                self._open.discard(state)
            case MeasureMemory():
                return self._memory()
            case RunOperations(operations):
                return [operation for _, operation in operations]
            case CheckWorker():
                return None
        return None


def load(options: bytes) -> SmallWorker:
    """Loads nothing, or raises what the options ask for."""
    wanted = json.loads(options)
    if "refuse" in wanted:
        raise InvalidRequestError("model", wanted["refuse"])
    if "fail_once" in wanted:
        with suppress(FileExistsError), open(wanted["fail_once"], "x"):
            raise RuntimeError("no luck on purpose")
    return SmallWorker()
