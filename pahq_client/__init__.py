"""Discover circuits of language models on a PAHQ server, from a laptop.

>>> import pahq_client
>>> circuit = pahq_client.discover(model="demo", task="ioi", threshold=0.05)  # doctest: +SKIP
"""

from pahq_client import _grpc_log

# isort: split
from pahq_client.aio.client import AsyncClient
from pahq_client.aio.jobs import AsyncJobHandle
from pahq_client.aio.session import AsyncSession
from pahq_client.caution import PahqWarning
from pahq_client.circuit import Circuit
from pahq_client.client import Client
from pahq_client.comparison import Comparison, compare
from pahq_client.discover import discover
from pahq_client.elements import CircuitMetric, Edge, Graph, Verdict
from pahq_client.endpoint import TlsConfig
from pahq_client.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InvalidCircuitFile,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NoEmbeddedServer,
    NotFound,
    OtherModel,
    PahqError,
    PermissionDenied,
    QuotaExceeded,
    RateLimited,
    ResourceExhausted,
    ServerFault,
    StorageUnavailable,
    Unauthenticated,
    Unavailable,
    VersionMismatch,
)
from pahq_client.events import Event, EventKind, JobInfo, JobState
from pahq_client.jobs import JobHandle
from pahq_client.results import Estimate, Evaluation, Limits, MemoryUsage, Model, ServerInfo, TokenizedText
from pahq_client.session import Session
from pahq_client.task import BuiltinTask, Task

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "AsyncJobHandle",
    "AsyncSession",
    "BuiltinTask",
    "Circuit",
    "CircuitMetric",
    "Client",
    "Comparison",
    "Conflict",
    "DeadlineExceeded",
    "Edge",
    "Estimate",
    "Evaluation",
    "Event",
    "EventKind",
    "Graph",
    "InvalidCircuitFile",
    "InvalidRequest",
    "JobCancelled",
    "JobFailed",
    "JobHandle",
    "JobInfo",
    "JobState",
    "Limits",
    "MemoryUsage",
    "Model",
    "NoEmbeddedServer",
    "NotFound",
    "OtherModel",
    "PahqError",
    "PahqWarning",
    "PermissionDenied",
    "QuotaExceeded",
    "RateLimited",
    "ResourceExhausted",
    "ServerFault",
    "ServerInfo",
    "Session",
    "StorageUnavailable",
    "Task",
    "TlsConfig",
    "TokenizedText",
    "Unauthenticated",
    "Unavailable",
    "Verdict",
    "VersionMismatch",
    "compare",
    "discover",
]
