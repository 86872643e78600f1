"""Discover circuits of language models on a PAHQ server, from a laptop.

>>> import pahq_client
>>> circuit = pahq_client.discover(model="demo", task="ioi", threshold=0.05)  # doctest: +SKIP
"""

import os

# gRPC's core, written in C++, would print its own lines to the terminal, past every log. It reads this
# variable once, when `grpc` is imported. A program that has set it or GRPC_TRACE, or has imported `grpc`
# before, keeps what it has. The variable is removed again, so that child processes decide for themselves.
if "GRPC_VERBOSITY" not in os.environ and "GRPC_TRACE" not in os.environ:
    os.environ["GRPC_VERBOSITY"] = "NONE"
    try:
        import grpc  # noqa: F401 - reads the variable
    finally:
        del os.environ["GRPC_VERBOSITY"]

from pahq_client.aio import AsyncClient, AsyncJobHandle, AsyncSession
from pahq_client.artifacts import Artifact
from pahq_client.assigned_concepts import AssignedConcepts, AssignedText
from pahq_client.circuit import Circuit
from pahq_client.client import Client
from pahq_client.codebook import Codebook, Concept, ConceptContext, ConceptToken, NearConcept
from pahq_client.comparison import Comparison, Roc, ScoreComparison, compare
from pahq_client.concept_ablation import AblatedConcept, ConceptAblation
from pahq_client.connection import TlsConfig
from pahq_client.curve import Curve, CurveCircuits, circuits_of_curve
from pahq_client.discover import attribute, discover, generate, learn_concepts, locate_neurons, prune_nodes
from pahq_client.dose_response import ContinuationScores, DoseResponse
from pahq_client.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InvalidCircuitFile,
    InvalidCodebookFile,
    InvalidNeuronSetFile,
    InvalidNodeCircuitFile,
    InvalidRequest,
    InvalidSamplesFile,
    InvalidScoresFile,
    JobCancelled,
    JobFailed,
    NoEmbeddedServer,
    NotFound,
    NoWorker,
    OtherModel,
    PahqError,
    PahqWarning,
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
from pahq_client.events import Event, EventKind, JobInfo, JobState, Progress
from pahq_client.graph import CircuitMetric, Edge, Graph, Verdict
from pahq_client.jobs import JobHandle
from pahq_client.neuron_set import Neuron, NeuronContext, NeuronEdit, NeuronSet, TokenPlace
from pahq_client.node_circuit import NodeCircuit, NodeFigures, NodeOverlap
from pahq_client.node_evaluation import NodeEvaluation
from pahq_client.node_layout import NodeLayout
from pahq_client.nodes import NodeTotal
from pahq_client.predictions import PredictedToken, Prediction, Predictions, TaskAccuracy, TaskCheck
from pahq_client.results import (
    Estimate,
    Evaluation,
    Limits,
    MemoryUsage,
    Model,
    ServerInfo,
    TokenizedText,
    Worker,
    WorkerState,
)
from pahq_client.samples import Sample, Samples
from pahq_client.scores import EdgeScores
from pahq_client.session import Session
from pahq_client.task import BuiltinTask, Task
from pahq_client.values import ValueTexts, load_values, schwartz_values

__all__ = [
    "AblatedConcept",
    "AlreadyExists",
    "Artifact",
    "AssignedConcepts",
    "AssignedText",
    "AsyncClient",
    "AsyncJobHandle",
    "AsyncSession",
    "BuiltinTask",
    "Circuit",
    "CircuitMetric",
    "Client",
    "Codebook",
    "Comparison",
    "Concept",
    "ConceptAblation",
    "ConceptContext",
    "ConceptToken",
    "Conflict",
    "ContinuationScores",
    "Curve",
    "CurveCircuits",
    "DeadlineExceeded",
    "DoseResponse",
    "Edge",
    "EdgeScores",
    "Estimate",
    "Evaluation",
    "Event",
    "EventKind",
    "Graph",
    "InvalidCircuitFile",
    "InvalidCodebookFile",
    "InvalidNeuronSetFile",
    "InvalidNodeCircuitFile",
    "InvalidRequest",
    "InvalidSamplesFile",
    "InvalidScoresFile",
    "JobCancelled",
    "JobFailed",
    "JobHandle",
    "JobInfo",
    "JobState",
    "Limits",
    "MemoryUsage",
    "Model",
    "NearConcept",
    "Neuron",
    "NeuronContext",
    "NeuronEdit",
    "NeuronSet",
    "NoEmbeddedServer",
    "NoWorker",
    "NodeCircuit",
    "NodeEvaluation",
    "NodeFigures",
    "NodeLayout",
    "NodeOverlap",
    "NodeTotal",
    "NotFound",
    "OtherModel",
    "PahqError",
    "PahqWarning",
    "PermissionDenied",
    "PredictedToken",
    "Prediction",
    "Predictions",
    "Progress",
    "QuotaExceeded",
    "RateLimited",
    "ResourceExhausted",
    "Roc",
    "Sample",
    "Samples",
    "ScoreComparison",
    "ServerFault",
    "ServerInfo",
    "Session",
    "StorageUnavailable",
    "Task",
    "TaskAccuracy",
    "TaskCheck",
    "TlsConfig",
    "TokenPlace",
    "TokenizedText",
    "Unauthenticated",
    "Unavailable",
    "ValueTexts",
    "Verdict",
    "VersionMismatch",
    "Worker",
    "WorkerState",
    "attribute",
    "circuits_of_curve",
    "compare",
    "discover",
    "generate",
    "learn_concepts",
    "load_values",
    "locate_neurons",
    "prune_nodes",
    "schwartz_values",
]
