"""PatchingService."""

from __future__ import annotations

import asyncio
from typing import Any

from pahq.v1 import patching_pb2 as pb
from pahq.v1 import patching_pb2_grpc

from pahq_server.api import requests, responses
from pahq_server.api.calls import check_owner, current_call
from pahq_server.api.threads import Threads
from pahq_server.jobs.sessions import PatchingSession
from pahq_server.jobs.sessions import SessionService


class PatchingService(patching_pb2_grpc.PatchingServiceServicer):
    """Speaks for a `SessionService`.

    What takes long runs in threads. It has no effect there, except for commits: a call that is cancelled
    meanwhile leaves nothing behind.

    Args:
        sessions: of all users.
        threads: where what takes long happens.
    """

    def __init__(self, sessions: SessionService, threads: Threads) -> None:
        self._sessions, self._threads = sessions, threads

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        resolved = await self._threads.run(
            lambda: self._sessions.resolve(requests.objective(request.objective)), slow=True
        )
        session, ends = self._sessions.open(resolved, user=current_call().caller.user)
        full, empty = await asyncio.wrap_future(ends)
        found = await self._threads.run(lambda: session.warnings(full, empty))
        return pb.OpenSessionResponse(session=responses.session(session, full, empty, found))

    async def ScoreCircuits(self, request: pb.ScoreCircuitsRequest, context: Any) -> pb.ScoreCircuitsResponse:
        session = self._find(request.name)
        call = await self._threads.run(lambda: session.read(requests.hypotheses(request.hypotheses)))
        metrics = await asyncio.wrap_future(session.submit(call))
        return pb.ScoreCircuitsResponse(metrics=metrics)

    async def CommitCircuit(self, request: pb.CommitCircuitRequest, context: Any) -> pb.CommitCircuitResponse:
        session = self._find(request.name)
        circuit = requests.hypothesis("circuit", request.circuit)
        num_edges = await self._threads.run(lambda: session.commit(circuit))
        return pb.CommitCircuitResponse(num_edges=num_edges)

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        self._find(request.name).close()
        return pb.CloseSessionResponse()

    def _find(self, name: str) -> Session:
        """The caller's session of this name. Raises NotFoundError."""
        check_owner("session", name)
        return self._sessions.find(name)
