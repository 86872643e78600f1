"""A real server on a loopback port, over a fake engine, and a client's view of its errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import pahq.v1
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from pahq.v1 import (
    circuit_pb2,
    generation_pb2_grpc,
    jobs_pb2_grpc,
    model_pb2_grpc,
    patching_pb2,
    patching_pb2_grpc,
    server_pb2_grpc,
    task_pb2,
)
from pahq.v1 import jobs_pb2 as pb

from helpers.fake_engine import GRAPH, PATIENCE_S, FakeEngine, nodes_of
from pahq_server.api.server import ApiServer
from pahq_server.core.artifact import unpack
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.jobs.session_calls import SessionLimits

DETAILS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
    error_details_pb2.QuotaFailure,
)
VERSION = "1.2.3"  # of the job service, for provenance; not the API's


class RunningServer:
    """A server in a thread of its own, with stubs that speak to it.

    Args:
        engine: that it serves.
        session_limits: what sessions may take.
        api: further arguments of the `ApiServer`.
        policy: of the job service; see `JobPolicy`.
    """

    def __init__(
        self,
        engine: FakeEngine,
        session_limits: SessionLimits | None = None,
        api: dict[str, Any] | None = None,
        **policy: Any,
    ) -> None:
        self.engine, self._api = engine, api or {}
        self.jobs = JobService(engine, VERSION, JobPolicy(**policy), session_limits)
        self._ready, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="api")

    async def _serve(self) -> None:
        api = ApiServer(self.engine, self.jobs, "127.0.0.1:0", reflect=True, **self._api)
        await api.start()
        self.port = api.port
        self._ready.set()
        await asyncio.to_thread(self._stop.wait)
        await api.stop(grace_s=0)

    def __enter__(self) -> RunningServer:
        self.jobs.start()
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.job_stub = jobs_pb2_grpc.JobServiceStub(self.channel)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)
        self.generation = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.patching = patching_pb2_grpc.PatchingServiceStub(self.channel)
        self.server = server_pb2_grpc.ServerServiceStub(self.channel)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self.channel.close()
        self.engine.release()
        self.jobs.close()

    def stop(self) -> None:
        """Stops the API; jobs go on."""
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the server did not stop"

    # Whole conversations

    def create(self, spec: pb.JobSpec, **fields: Any) -> pb.Job:
        request = pb.CreateJobRequest(spec=spec, **fields)
        job: pb.Job = self.job_stub.CreateJob(request).job
        return job

    def events(self, name: str, after: int = 0) -> list[pb.Event]:
        """All events up to the end."""
        request = pb.WatchJobRequest(name=name, after_sequence=after)
        return [message.event for message in self.job_stub.WatchJob(request, timeout=PATIENCE_S)]

    def finish(self, spec: pb.JobSpec) -> str:
        """Creates a job and waits for its end; returns its name."""
        name: str = self.create(spec).name
        assert self.events(name)[-1].kind == pb.EVENT_KIND_END
        return name

    def assert_alive(self) -> None:
        """Asserts that a whole job still works."""
        kept = self.artifact(self.finish(spec())).arrays["kept"]
        assert len(kept) == self.engine.graph.num_edges

    def artifact(self, name: str) -> FetchedArtifact:
        """The artifact of a job, put together from its chunks."""
        first, *rest = self.job_stub.GetArtifact(pb.GetArtifactRequest(name=name), timeout=PATIENCE_S)
        assert first.HasField("header")
        assert not any(message.HasField("header") for message in rest)
        data = b"".join(message.data for message in (first, *rest))
        assert len(data) == first.header.size_bytes
        return FetchedArtifact(first.header, data, "".join(message.prompts_json for message in rest))


class FetchedArtifact:
    """What GetArtifact gave.

    Args:
        header: of the stream.
        data: its bytes.
        prompts_json: JSON of the prompts; empty if they were not asked for.
    """

    def __init__(self, header: pb.ArtifactHeader, data: bytes, prompts_json: str) -> None:
        self.header, self.data, self.prompts_json = header, data, prompts_json
        self.content, self.arrays = unpack(data)

    def kept_edges(self) -> list[tuple[int, float]]:
        """Index and score of every kept edge of a circuit, in the order of their verdicts."""
        columns = (self.arrays[f"verdict_{name}"] for name in ("gate", "index", "delta", "kept"))
        return [
            (int(index), float(delta))
            for gate, index, delta, kept in zip(*columns, strict=True)
            if kept and not gate
        ]


@dataclass
class Refusal:
    """What a client learns from an error."""

    code: grpc.StatusCode
    message: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def info(self) -> Any:
        return self.details["ErrorInfo"]

    @property
    def violation(self) -> tuple[str, str]:
        """Field and description."""
        (violation,) = self.details["BadRequest"].field_violations
        return violation.field, violation.description


@contextmanager
def refused() -> Iterator[Refusal]:
    """Asserts that the call in the body fails; the yielded value is filled in afterwards."""
    refusal = Refusal(grpc.StatusCode.OK, "")
    try:
        yield refusal
    except grpc.RpcError as error:
        refusal.code, refusal.message = error.code(), error.details()
        refusal.details = _details(error)
    else:
        raise AssertionError("the call succeeded")


def _details(error: Any) -> dict[str, Message]:
    status = rpc_status.from_call(error)
    found: dict[str, Message] = {}
    for packed in status.details if status else ():
        kind = next(kind for kind in DETAILS if packed.Is(kind.DESCRIPTOR))
        found[kind.DESCRIPTOR.name] = kind()
        packed.Unpack(found[kind.DESCRIPTOR.name])
    return found


def token_ids(*prompts: Sequence[int]) -> list[task_pb2.Prompt]:
    return [task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=ids)) for ids in prompts]


def objective(**changes: Any) -> pb.Objective:
    prompts = task_pb2.PromptTask(clean=token_ids((1, 2)), corrupted=token_ids((1, 3)))
    fields = {
        "model": "toy",
        "task": task_pb2.Task(prompts=prompts),
        "metric": "kl_divergence",
        "ablation": "resample",
        "kv_receivers": "group",
        "precision": "fp32",
    }
    return pb.Objective(**(fields | changes))


def spec(
    method: str = "acdc", threshold: float | None = 2.0, grouping: str = "gates", **changes: Any
) -> pb.JobSpec:
    """A job that the fake engine can do; further changes are of the objective."""
    parameters: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
    if method == "acdc":
        parameters["grouping"] = grouping
    include_prompts = changes.pop("include_prompts", False)
    return pb.JobSpec(objective=objective(**changes), include_prompts=include_prompts, **{method: parameters})


def evaluation(*circuits: Sequence[str], **changes: Any) -> patching_pb2.EvaluateCircuitsRequest:
    """An evaluation of circuits by the names of their edges; changes are of the objective."""
    named = [patching_pb2.EvaluatedCircuit(names=patching_pb2.EdgeList(names=names)) for names in circuits]
    return patching_pb2.EvaluateCircuitsRequest(objective=objective(**changes), circuits=named)


def node_evaluation(**changes: Any) -> patching_pb2.EvaluateNodesRequest:
    """An evaluation of the circuit with all nodes of the fake engine; changes are of the objective."""
    layout = nodes_of(GRAPH)
    bits = ((1 << layout.size) - 1).to_bytes(-(-layout.size // 8), "little")
    every = circuit_pb2.NodeSet(layout=circuit_pb2.NodeLayout(**asdict(layout)), bits=bits)
    return patching_pb2.EvaluateNodesRequest(objective=objective(**changes), circuits=[every])


def extension(method: str, **parameters: Any) -> pb.JobSpec:
    """A job of a method that the protocol has no message for."""
    message = pb.JobSpec(objective=objective())
    message.extension.method = method
    message.extension.parameters.update(parameters)
    return message


Call = Callable[..., Any]


def every_call(channel: grpc.Channel) -> dict[str, tuple[Call, Message]]:
    """Every RPC of the API by name, with an empty request; streams are read to their end."""
    calls = {}
    for path in pahq.v1.__path__:
        for file in sorted(Path(path).glob("*_pb2.py")):
            messages, stubs = (import_module(f"pahq.v1.{file.stem}{end}") for end in ("", "_grpc"))
            for service in messages.DESCRIPTOR.services_by_name.values():
                stub = getattr(stubs, f"{service.name}Stub")(channel)
                for method in service.methods:
                    call = getattr(stub, method.name)
                    request = getattr(messages, method.input_type.name)()
                    calls[method.name] = (_reader(call) if method.server_streaming else call, request)
    return calls


def _reader(call: Call) -> Call:
    return lambda *args, **kwargs: list(call(*args, **kwargs))
