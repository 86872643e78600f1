"""Discover circuits of language models on a PAHQ server, from a laptop.

>>> import pahq_client
>>> circuit = pahq_client.discover(model="demo", task="ioi", threshold=0.05)  # doctest: +SKIP
"""

from pahq_client.circuit import Circuit
from pahq_client.client import Client
from pahq_client.comparison import Comparison, compare
from pahq_client.discover import discover
from pahq_client.elements import CircuitMetric, Edge, Graph, Verdict
from pahq_client.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidCircuitFile,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NoEmbeddedServer,
    NotFound,
    PahqError,
    PermissionDenied,
    ResourceExhausted,
    ServerFault,
    Unauthenticated,
    Unavailable,
    VersionMismatch,
)
from pahq_client.events import Event, EventKind, JobState
from pahq_client.jobs import JobHandle
from pahq_client.results import Evaluation, MemoryUsage, Model, ServerInfo
from pahq_client.session import Session
from pahq_client.task import BuiltinTask, Task
from pahq_client.transport import TlsConfig

__all__ = [
    "BuiltinTask",
    "Circuit",
    "CircuitMetric",
    "Client",
    "Comparison",
    "Conflict",
    "DeadlineExceeded",
    "Edge",
    "Evaluation",
    "Event",
    "EventKind",
    "Graph",
    "InvalidCircuitFile",
    "InvalidRequest",
    "JobCancelled",
    "JobFailed",
    "JobHandle",
    "JobState",
    "MemoryUsage",
    "Model",
    "NoEmbeddedServer",
    "NotFound",
    "PahqError",
    "PermissionDenied",
    "ResourceExhausted",
    "ServerFault",
    "ServerInfo",
    "Session",
    "Task",
    "TlsConfig",
    "Unauthenticated",
    "Unavailable",
    "Verdict",
    "VersionMismatch",
    "compare",
    "discover",
]
