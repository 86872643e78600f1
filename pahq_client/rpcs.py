"""The calls that a server answers, and which of them may be sent again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pahq.v1 import discovery_pb2 as d
from pahq.v1 import model_pb2 as m
from pahq.v1 import patching_pb2 as p
from pahq.v1 import server_pb2 as s

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True)
class Rpc(Generic[Q, A]):
    """A call with requests of type Q and responses, or a stream of responses, of type A.

    Args:
        service: its service, without the package.
        name: its name.
        idempotent: whether sending a request again, after an answer that was lost, leaves the server as
            if it had come once. Only such calls are repeated after an interruption.
        costly: whether the server may compute for hours before it answers, and begins anew when it is asked
            again. Such a call is repeated only if it was interrupted soon: hours of work are not silently
            spent again, nor is a server that dies of the call killed over and over.
    """

    service: str
    name: str
    idempotent: bool
    costly: bool = False


_D, _M, _P, _S = "DiscoveryService", "ModelService", "PatchingService", "ServerService"

# The server knows a repeated creation by its request_id.
CREATE: Rpc[d.CreateDiscoveryRequest, d.CreateDiscoveryResponse] = Rpc(_D, "CreateDiscovery", True)
GET: Rpc[d.GetDiscoveryRequest, d.GetDiscoveryResponse] = Rpc(_D, "GetDiscovery", True)
LIST: Rpc[d.ListDiscoveriesRequest, d.ListDiscoveriesResponse] = Rpc(_D, "ListDiscoveries", True)
CANCEL: Rpc[d.CancelDiscoveryRequest, d.CancelDiscoveryResponse] = Rpc(_D, "CancelDiscovery", True)
DELETE: Rpc[d.DeleteDiscoveryRequest, d.DeleteDiscoveryResponse] = Rpc(_D, "DeleteDiscovery", True)
WATCH: Rpc[d.WatchDiscoveryRequest, d.WatchDiscoveryResponse] = Rpc(_D, "WatchDiscovery", True)
CIRCUIT: Rpc[d.GetCircuitRequest, d.GetCircuitResponse] = Rpc(_D, "GetCircuit", True)
# Pure: nothing of it is stored, and the server gives it up when the caller is gone. What is repeated is
# computed from the start, within the time of the first call.
EVALUATE: Rpc[d.EvaluateCircuitRequest, d.EvaluateCircuitResponse] = Rpc(
    _D, "EvaluateCircuit", True, costly=True
)
MODELS: Rpc[m.ListModelsRequest, m.ListModelsResponse] = Rpc(_M, "ListModels", True)
MODEL: Rpc[m.GetModelRequest, m.GetModelResponse] = Rpc(_M, "GetModel", True)
TOKENIZE: Rpc[m.TokenizeTextsRequest, m.TokenizeTextsResponse] = Rpc(_M, "TokenizeTexts", True)
# A second session would take memory until it expires.
OPEN: Rpc[p.OpenSessionRequest, p.OpenSessionResponse] = Rpc(_P, "OpenSession", False)
# Pure: the caller sees to it that no commit comes in between.
SCORE: Rpc[p.ScoreCircuitsRequest, p.ScoreCircuitsResponse] = Rpc(_P, "ScoreCircuits", True, costly=True)
# ``removed`` is relative to the base circuit, which the first try may have changed.
COMMIT: Rpc[p.CommitCircuitRequest, p.CommitCircuitResponse] = Rpc(_P, "CommitCircuit", False)
# Who closes is on the way out; the session expires anyway.
CLOSE: Rpc[p.CloseSessionRequest, p.CloseSessionResponse] = Rpc(_P, "CloseSession", False)
INFO: Rpc[s.GetServerInfoRequest, s.GetServerInfoResponse] = Rpc(_S, "GetServerInfo", True)

ALL: tuple[Rpc[Any, Any], ...] = (
    *(CREATE, GET, LIST, CANCEL, DELETE, WATCH, CIRCUIT, EVALUATE),
    *(MODELS, MODEL, TOKENIZE),
    *(OPEN, SCORE, COMMIT, CLOSE),
    INFO,
)
