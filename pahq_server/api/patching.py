"""PatchingService."""

from __future__ import annotations

import asyncio
from typing import Any

from pahq.v1 import patching_pb2 as pb
from pahq.v1 import patching_pb2_grpc

from pahq_server.api import requests, responses
from pahq_server.api.errors import guarded
from pahq_server.jobs.sessions import SessionService


class PatchingService(patching_pb2_grpc.PatchingServiceServicer):
    """Speaks for a `SessionService`.

    What takes long runs in threads. It has no effect there, except for commits: a call that is cancelled
    meanwhile leaves nothing behind.
    """

    def __init__(self, sessions: SessionService) -> None:
        self._sessions = sessions

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        async with guarded(context):
            measurement = requests.measurement(request.measurement)
            prepared = await asyncio.to_thread(self._sessions.prepare, measurement)
            session, ends = self._sessions.open(prepared)
            full, empty = await asyncio.wrap_future(ends)
            return pb.OpenSessionResponse(session=responses.session(session, full, empty))

    async def ScoreCircuits(self, request: pb.ScoreCircuitsRequest, context: Any) -> pb.ScoreCircuitsResponse:
        async with guarded(context):
            session = self._sessions.find(request.name)
            call = await asyncio.to_thread(lambda: session.read(requests.hypotheses(request.hypotheses)))
            metrics = await asyncio.wrap_future(session.submit(call))
            return pb.ScoreCircuitsResponse(metrics=metrics)

    async def CommitCircuit(self, request: pb.CommitCircuitRequest, context: Any) -> pb.CommitCircuitResponse:
        async with guarded(context):
            session = self._sessions.find(request.name)
            circuit = requests.hypothesis("circuit", request.circuit)
            num_edges = await asyncio.to_thread(session.commit, circuit)
            return pb.CommitCircuitResponse(num_edges=num_edges)

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        async with guarded(context):
            self._sessions.close(request.name)
            return pb.CloseSessionResponse()
