"""Calls to a server, written once for the blocking and the asynchronous client.

The two clients do the same things and wait in different ways. What they do is written as *steps*: a generator
that yields operations (`Call`, `Open`, `Read`, `Pause`), receives their results or errors, and returns a
value. `run_steps` and `run_steps_async` drive steps; the transports in `_transport` perform the operations.
`Caller` adds time limits and retries; the table of `Rpc` says which calls may be sent again.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from pahq.v1 import generation_pb2 as g
from pahq.v1 import jobs_pb2 as j
from pahq.v1 import model_pb2 as m
from pahq.v1 import patching_pb2 as p
from pahq.v1 import server_pb2 as s

from pahq_client.errors import (
    DeadlineExceeded,
    NotFound,
    NoWorker,
    PahqError,
    RateLimited,
    StorageUnavailable,
    Unavailable,
)
from pahq_client.retries import Backoff, Deadline, jittered

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")
C = TypeVar("C", contravariant=True)
R = TypeVar("R", covariant=True)

# Tries after the first one at an address that never answered, so that a wrong address shows soon.
FIRST_TRIES = 2
# The shortest pause between tries in seconds, also if the server asks for a shorter one.
LEAST_PAUSE = 0.05
# The longest pause in seconds. If the server asks for a longer one, the call fails instead of waiting
# silently.
MOST_PAUSE = 600.0

# The methods of the server.


@dataclass(frozen=True)
class Rpc(Generic[Q, A]):
    """A method of a service, with requests of type Q and responses, or a stream of responses, of type A.

    Args:
        service: its service, without the package.
        name: its name.
        idempotent: whether sending a request again, after a lost answer, leaves the server as if it had
            come once. Only such calls are repeated after an interruption.
        costly: whether the server may compute for hours before it answers, and starts over when it is asked
            again. Such a call is repeated only if it was interrupted soon, so that hours of work are not
            silently done twice, and a call that crashes the server does not crash it again and again.
    """

    service: str
    name: str
    idempotent: bool
    costly: bool = False


_JOBS, _MODELS, _PATCHING, _SERVER = "JobService", "ModelService", "PatchingService", "ServerService"

# The server recognizes a repeated creation by its request_id.
CREATE: Rpc[j.CreateJobRequest, j.CreateJobResponse] = Rpc(_JOBS, "CreateJob", True)
GET: Rpc[j.GetJobRequest, j.GetJobResponse] = Rpc(_JOBS, "GetJob", True)
LIST: Rpc[j.ListJobsRequest, j.ListJobsResponse] = Rpc(_JOBS, "ListJobs", True)
CANCEL: Rpc[j.CancelJobRequest, j.CancelJobResponse] = Rpc(_JOBS, "CancelJob", True)
DELETE: Rpc[j.DeleteJobRequest, j.DeleteJobResponse] = Rpc(_JOBS, "DeleteJob", True)
WATCH: Rpc[j.WatchJobRequest, j.WatchJobResponse] = Rpc(_JOBS, "WatchJob", True)
ARTIFACT: Rpc[j.GetArtifactRequest, j.GetArtifactResponse] = Rpc(_JOBS, "GetArtifact", True)
MODELS: Rpc[m.ListModelsRequest, m.ListModelsResponse] = Rpc(_MODELS, "ListModels", True)
MODEL: Rpc[m.GetModelRequest, m.GetModelResponse] = Rpc(_MODELS, "GetModel", True)
TOKENIZE: Rpc[m.TokenizeTextsRequest, m.TokenizeTextsResponse] = Rpc(_MODELS, "TokenizeTexts", True)
# Like an evaluation: see below.
PREDICT: Rpc[m.PredictTokensRequest, m.PredictTokensResponse] = Rpc(
    _MODELS, "PredictTokens", True, costly=True
)
CHECK_TASK: Rpc[m.CheckTaskRequest, m.CheckTaskResponse] = Rpc(_MODELS, "CheckTask", True, costly=True)
# The server stores nothing of an evaluation, and stops it when the caller is gone. A repeated call computes
# it from the start, within the time limit of the first one.
EVALUATE: Rpc[p.EvaluateCircuitsRequest, p.EvaluateCircuitsResponse] = Rpc(
    _PATCHING, "EvaluateCircuits", True, costly=True
)
EVALUATE_NODES: Rpc[p.EvaluateNodesRequest, p.EvaluateNodesResponse] = Rpc(
    _PATCHING, "EvaluateNodes", True, costly=True
)
# Not repeated: a second session would take memory until it expires.
OPEN: Rpc[p.OpenSessionRequest, p.OpenSessionResponse] = Rpc(_PATCHING, "OpenSession", False)
# Scoring changes nothing; `Session` sees to it that no commit comes between two tries.
SCORE: Rpc[p.ScoreCircuitsRequest, p.ScoreCircuitsResponse] = Rpc(
    _PATCHING, "ScoreCircuits", True, costly=True
)
# Not repeated: ``removed`` is relative to the base circuit, which the first try may have changed.
COMMIT: Rpc[p.CommitCircuitRequest, p.CommitCircuitResponse] = Rpc(_PATCHING, "CommitCircuit", False)
# Not repeated: a caller that closes is about to leave, and the session expires anyway.
CLOSE: Rpc[p.CloseSessionRequest, p.CloseSessionResponse] = Rpc(_PATCHING, "CloseSession", False)
# Nothing is stored, and the same request gives the same samples.
GENERATE: Rpc[g.GenerateSamplesRequest, g.GenerateSamplesResponse] = Rpc(
    "GenerationService", "GenerateSamples", True, costly=True
)
INFO: Rpc[s.GetServerInfoRequest, s.GetServerInfoResponse] = Rpc(_SERVER, "GetServerInfo", True)

ALL: tuple[Rpc[Any, Any], ...] = (
    *(CREATE, GET, LIST, CANCEL, DELETE, WATCH, ARTIFACT),
    *(MODELS, MODEL, TOKENIZE, PREDICT, CHECK_TASK),
    *(EVALUATE, EVALUATE_NODES, OPEN, SCORE, COMMIT, CLOSE),
    GENERATE,
    INFO,
)


# Operations and steps.


class Stream(Protocol):
    """An open stream of responses, which only the transport that opened it can read."""

    def close(self) -> None:
        """Ends the stream, at once; no effect if it has ended."""


@dataclass(frozen=True)
class Call:
    """Sends one request. Its result is the response, its errors are PahqErrors."""

    rpc: Rpc[Any, Any]
    request: object
    timeout: float


@dataclass(frozen=True)
class Open:
    """Sends one request whose result is a Stream, which may last for ``timeout`` seconds."""

    rpc: Rpc[Any, Any]
    request: object
    timeout: float


@dataclass(frozen=True)
class Read:
    """Reads a stream. Its result is the next message, None after the last; its errors are PahqErrors."""

    stream: Stream


@dataclass(frozen=True)
class Pause:
    """Waits. Its result is None."""

    seconds: float


Operation: TypeAlias = Call | Open | Read | Pause
Steps: TypeAlias = Generator[Operation, Any, T]


def run_steps(steps: Steps[T], perform: Callable[[Operation], Any]) -> T:
    """Runs steps to their end: performs each operation, and sends its result or its error back in.

    Errors of every kind go back in, Ctrl-C too: the steps may want to clean up, with more operations.
    """
    resume: Callable[[Any], Operation] = steps.send
    result: Any = None
    while True:
        try:
            operation = resume(result)
            resume, result = steps.send, perform(operation)
        except StopIteration as end:
            value: T = end.value
            return value
        except BaseException as error:
            if inspect.getgeneratorstate(steps) == inspect.GEN_CLOSED:  # the steps did not handle it
                raise
            resume, result = steps.throw, error


async def run_steps_async(steps: Steps[T], perform: Callable[[Operation], Awaitable[Any]]) -> T:
    """Does as `run_steps`, for asyncio. A cancelled task's error is sent into the steps like any other."""
    resume: Callable[[Any], Operation] = steps.send
    result: Any = None
    while True:
        try:
            operation = resume(result)
            resume, result = steps.send, await perform(operation)
        except StopIteration as end:
            value: T = end.value
            return value
        except BaseException as error:
            if inspect.getgeneratorstate(steps) == inspect.GEN_CLOSED:
                raise
            resume, result = steps.throw, error


# Time limits and retries.


class Collector(Protocol[C, R]):
    """Assembles the messages of a stream one by one, and raises at the first wrong one."""

    def add(self, message: C, /) -> None:
        """Takes in the next message."""

    def result(self) -> R:
        """Returns what the messages are together, after the last one."""


class Caller:
    """Makes calls to one server within a time limit, and repeats interrupted ones if that does no harm.

    Args:
        address: address of the server, for errors.
        timeout: seconds that a call may take unless it says otherwise, all of its tries together.
        backoff: pauses between tries.
    """

    def __init__(self, address: str, timeout: float, backoff: Backoff) -> None:
        self.address = address
        self.timeout = timeout
        self.backoff = backoff
        self._reached = False  # whether anything ever answered

    def call(
        self, rpc: Rpc[Q, A], request: Q, timeout: float | None = None, gone: A | None = None
    ) -> Steps[A]:
        """Sends one request and returns its response.

        Args:
            rpc: what to call.
            request: what to send.
            timeout: seconds for all tries together; None for the usual.
            gone: for a call that removes something: what to return if a repeated try does not find it,
                because the first try had succeeded and only its answer was lost.
        """
        tries = 0

        def once(seconds: float) -> Steps[A]:
            nonlocal tries
            tries += 1
            try:
                response: A = yield Call(rpc, request, seconds)
            except NotFound:
                if gone is None or tries == 1:
                    raise
                return gone
            return response

        return self._repeat(rpc, once, timeout)

    def collect(
        self, rpc: Rpc[Q, A], request: Q, into: Callable[[], Collector[A, T]], timeout: float | None = None
    ) -> Steps[T]:
        """Sends one request and reads all messages of its stream.

        Args:
            rpc: what to call.
            request: what to send.
            into: makes a collector for the messages; called anew for every try.
            timeout: seconds for all tries together; None for the usual.
        """

        def once(seconds: float) -> Steps[T]:
            taken = into()
            stream = yield Open(rpc, request, seconds)
            try:
                while (message := (yield Read(stream))) is not None:
                    taken.add(message)
            finally:
                stream.close()
            return taken.result()

        return self._repeat(rpc, once, timeout)

    def _repeat(
        self, rpc: Rpc[Any, Any], once: Callable[[float], Steps[T]], timeout: float | None
    ) -> Steps[T]:
        """Tries until there is an answer, a permanent error, no try left or no time left."""
        seconds = self.timeout if timeout is None else timeout
        deadline, delays = Deadline.after(seconds), self._delays()
        while True:
            began = time.monotonic()
            try:
                result = yield from once(deadline.within(seconds))
            except PahqError as error:
                self._reached |= not isinstance(error, Unavailable)
                if not rpc.idempotent or isinstance(error, DeadlineExceeded):
                    raise
                lost = rpc.costly and time.monotonic() - began > self.timeout
                if lost and not isinstance(error, RateLimited):
                    raise
                delay = next_delay(error, delays)
                if delay is None or delay >= deadline.within(seconds):
                    raise
            else:
                self._reached = True
                return result
            yield Pause(delay)

    def _delays(self) -> Iterator[float]:
        attempts = self.backoff.attempts if self._reached else min(FIRST_TRIES, self.backoff.attempts)
        return Backoff(attempts, self.backoff.first_s, self.backoff.most_s).delays()


def next_delay(error: PahqError, delays: Iterator[float]) -> float | None:
    """Returns after how many seconds another try is sensible; None if none is."""
    if isinstance(error, RateLimited):
        pause = max(error.retry_after or 0.0, LEAST_PAUSE)
        return jittered(pause) if pause <= MOST_PAUSE else None
    hopeless = isinstance(error, StorageUnavailable) and error.damaged
    if not isinstance(error, Unavailable) or hopeless or error.explanation:
        return None
    delay = next(delays, None)
    if delay is not None and isinstance(error, NoWorker):
        return max(delay, min(error.retry_after or 0.0, MOST_PAUSE))
    return delay
