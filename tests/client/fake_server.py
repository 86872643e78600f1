"""A server that speaks the protocol over real sockets and does what a test tells it to."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from pahq.v1 import circuit_pb2, generation_pb2, model_pb2, patching_pb2, server_pb2
from pahq.v1.generation_pb2_grpc import GenerationServiceServicer, add_GenerationServiceServicer_to_server
from pahq.v1.jobs_pb2_grpc import add_JobServiceServicer_to_server
from pahq.v1.model_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server
from pahq.v1.patching_pb2_grpc import PatchingServiceServicer, add_PatchingServiceServicer_to_server
from pahq.v1.server_pb2_grpc import ServerServiceServicer, add_ServerServiceServicer_to_server

from pahq_client import Graph

from .fake_jobs import FakeJobs
from .faults import Code, Fault

__all__ = ["Code", "FakeServer", "Fault", "edges_of"]


def edges_of(message: circuit_pb2.EdgeSet) -> set[str]:
    """The names of edges that are sent by number."""
    sizes = {field.name: getattr(message.graph, field.name) for field in message.graph.DESCRIPTOR.fields}
    names = list(Graph(**sizes).edge_names())
    bits = [byte >> place & 1 for byte in message.bits for place in range(8)]
    assert len(message.bits) == (len(names) + 7) // 8
    assert not any(bits[len(names) :])
    return {name for name, bit in zip(names, bits, strict=False) if bit}


class _Answering:
    """The methods of a fake server, as long as nothing else is to answer."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Callable[[Any, Any], Any]:
        usual = getattr(self._server, name)

        def answer(request: Any, context: Any) -> Any:
            return self._server.replies.get(name, usual)(request, context)

        return answer


class FakeServer(
    FakeJobs, GenerationServiceServicer, ModelServiceServicer, PatchingServiceServicer, ServerServiceServicer
):
    """Set its fields before calls; look at ``calls`` after them.

    Args:
        port: to listen on; 0 for any.
    """

    def __init__(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any, dict[str, str]]] = []
        self.faults: dict[str, list[Fault | None]] = defaultdict(list)
        self.session = patching_pb2.Session(
            name="users/me/sessions/0",
            graph=circuit_pb2.Graph(layers=1, heads=2, kv_heads=1, kv_receivers="group", mlps=True),
            num_edges_total=11,
            metric_full=0.0,
            metric_empty=4.0,
            max_circuits=5,
        )
        self.workers: list[server_pb2.Worker] = []
        self.unavailable = ""
        self.base = 11  # edges of the session's base circuit
        self.unanswered = 0  # circuits per call
        self.measured = ""  # the metric of evaluations, if not that which was asked for
        self.texts_left_out = 0  # of those to tokenize
        self.hold = "EvaluateCircuits"  # the method whose calls wait ...
        self.held = threading.Event()  # ... until this is set, as it is unless a test takes another one
        self.held.set()
        self.holding = threading.Event()  # a call waits
        self.abandoned = threading.Event()  # its caller has gone
        self._pool = ThreadPoolExecutor(80)
        self._server = grpc.server(self._pool)
        # By method: what answers instead of the method here.
        self.replies: dict[str, Callable[[Any, Any], Any]] = {}
        answering: Any = _Answering(self)
        add_GenerationServiceServicer_to_server(answering, self._server)
        add_JobServiceServicer_to_server(answering, self._server)
        add_ModelServiceServicer_to_server(answering, self._server)
        add_PatchingServiceServicer_to_server(answering, self._server)
        add_ServerServiceServicer_to_server(answering, self._server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._closing.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def _wait(self, context: grpc.ServicerContext) -> None:
        """Holds the call until the test, or the caller, has had enough."""
        context.add_callback(self.abandoned.set)
        self.holding.set()
        while not self.held.wait(0.02) and context.is_active():
            pass

    def called(self, method: str) -> list[Any]:
        """The requests of a method so far."""
        return [request for name, request, _ in self.calls if name == method]

    def _enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        self.calls.append((method, request, dict(context.invocation_metadata())))
        if method == self.hold and not self.held.is_set():
            self._wait(context)
        fault = self.faults[method].pop(0) if self.faults[method] else None
        if fault is not None:
            fault.raise_on(context)

    def OpenSession(self, request: Any, context: Any) -> Any:
        self._enter("OpenSession", request, context)
        return patching_pb2.OpenSessionResponse(session=self.session)

    def ScoreCircuits(self, request: Any, context: Any) -> Any:
        """A circuit's metric is its number of edges; as if no edge were named twice."""
        self._enter("ScoreCircuits", request, context)
        answered = request.circuits[self.unanswered :]
        return patching_pb2.ScoreCircuitsResponse(metrics=map(self._count, answered))

    def CommitCircuit(self, request: Any, context: Any) -> Any:
        self._enter("CommitCircuit", request, context)
        self.base = self._count(request.circuit)
        return patching_pb2.CommitCircuitResponse(num_edges=self.base)

    def _count(self, circuit: patching_pb2.SessionCircuit) -> int:
        if circuit.HasField("edges"):
            return len(circuit.edges.names)
        return self.base - len(circuit.removed.names)

    def CloseSession(self, request: Any, context: Any) -> Any:
        self._enter("CloseSession", request, context)
        return patching_pb2.CloseSessionResponse()

    def EvaluateCircuits(self, request: Any, context: Any) -> Any:
        """The first circuit measures 1, the second 2, and so on."""
        self._enter("EvaluateCircuits", request, context)
        values = [1.0 + number for number in range(len(request.circuits))][self.unanswered :]
        return patching_pb2.EvaluateCircuitsResponse(
            metric=self.measured or request.objective.metric,
            values=values,
            full=0.0,
            empty=4.0,
            num_edges_total=7,
            warnings=self.warnings,
        )

    def EvaluateNodes(self, request: Any, context: Any) -> Any:
        """The first circuit has a KL divergence of 1, the second of 2, and so on."""
        self._enter("EvaluateNodes", request, context)
        figures = [patching_pb2.NodeFigures(kl=1.0 + number) for number in range(len(request.circuits))]
        return patching_pb2.EvaluateNodesResponse(
            values=figures[self.unanswered :],
            full=patching_pb2.NodeFigures(exact_match=1.0),
            empty=patching_pb2.NodeFigures(kl=4.0),
            warnings=self.warnings,
        )

    def ListModels(self, request: Any, context: Any) -> Any:
        self._enter("ListModels", request, context)
        return model_pb2.ListModelsResponse(models=[model_pb2.Model(name="demo", layers=4, tokenizer=True)])

    def TokenizeTexts(self, request: Any, context: Any) -> Any:
        """A token per letter, with 0 before them in prompts; single letters are answers."""
        self._enter("TokenizeTexts", request, context)
        return model_pb2.TokenizeTextsResponse(
            texts=[self._tokenized(text, request) for text in request.texts[self.texts_left_out :]]
        )

    def PredictTokens(self, request: Any, context: Any) -> Any:
        """Token 0 with half of the probability, token 1 with a quarter, and so on."""
        self._enter("PredictTokens", request, context)
        tokens = [
            model_pb2.PredictedToken(id=i, text=f" {chr(97 + i)}", probability=0.5 ** (i + 1), logit=-i)
            for i in range(request.top)
        ]
        predictions = [model_pb2.Prediction(tokens=tokens)] * len(request.prompts)
        return model_pb2.PredictTokensResponse(predictions=predictions, warnings=self.warnings)

    def GenerateSamples(self, request: Any, context: Any) -> Any:
        """The first sample is token 0, the second token 1, and so on; texts have a token."""
        self._enter("GenerateSamples", request, context)
        ids = [prompt.token_ids.ids or [1] for prompt in request.prompts]
        prompts = {"prompts": [{"ids": each} for each in ids]}
        yield generation_pb2.GenerateSamplesResponse(prompts=prompts)
        for prompt in range(len(ids)):
            for index in range(request.parameters.n):
                sample = {"prompt": prompt, "index": index, "ids": [index], "finish_reason": "stop"}
                yield generation_pb2.GenerateSamplesResponse(sample=sample)
        yield generation_pb2.GenerateSamplesResponse(summary={"warnings": self.warnings})

    def CheckTask(self, request: Any, context: Any) -> Any:
        self._enter("CheckTask", request, context)
        return model_pb2.CheckTaskResponse(
            clean=model_pb2.TaskAccuracy(above_wrong=0.95, likeliest=0.5, logit_difference=3.0),
            corrupted=model_pb2.TaskAccuracy(above_wrong=0.5, likeliest=0.25, logit_difference=-0.125),
            num_prompts=16,
            warnings=self.warnings,
        )

    def _tokenized(self, text: str, request: Any) -> model_pb2.TokenizedText:
        start = [] if request.omit_special_tokens else [0]
        found = model_pb2.TokenizedText(text=text, ids=[*start, *map(ord, text)])
        found.tokens.extend([*("<s>" for _ in start), *text])
        if len(text) == 1:
            found.answer_id, found.answer_token = ord(text), text
        found.answer_note = "" if len(text) == 1 else f"no answer to {request.prompt!r}: \x1b[31m"
        return found

    def GetServerInfo(self, request: Any, context: Any) -> Any:
        self._enter("GetServerInfo", request, context)
        memory = server_pb2.MemoryUsage(
            page_bytes=16, pages=70, used_pages=60, preemptions=3, head_store_misses=5
        )
        limits = server_pb2.Limits(queued_jobs=0, requests_per_second=0.5)
        info = server_pb2.ServerInfo(
            version="9.9",
            device="abacus",
            methods=["acdc", "single_edge"],
            memory=memory,
            limits=limits,
            workers=self.workers,
            unavailable=self.unavailable,
        )
        return server_pb2.GetServerInfoResponse(server_info=info)
