"""Servers that send anything: only errors of this package come out, nothing that a terminal would obey."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import random
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pahq.v1 import circuit_pb2, jobs_pb2, methods_pb2, model_pb2, patching_pb2, server_pb2
from pahq.v1 import jobs_pb2 as pb
from safetensors.numpy import save

from pahq_client import (
    AsyncClient,
    Circuit,
    Client,
    EdgeScores,
    InvalidRequest,
    PahqError,
    RateLimited,
    ResourceExhausted,
    ServerFault,
    Session,
    artifacts,
)
from pahq_client import _calls as rpcs
from pahq_client._calls import Call, Caller, Open, Operation, Pause, Read, run_steps
from pahq_client._job_options import JobRequest
from pahq_client._requests import CurveRequest, SessionRequest
from pahq_client._server_calls import ServerCalls
from pahq_client._transport import INBOX, BlockingStream
from pahq_client.assigning import AblateRequest, AssignRequest
from pahq_client.cli import main
from pahq_client.graph import Edge, Graph
from pahq_client.locating import LocateRequest
from pahq_client.retries import Backoff

from .fake_artifact import FakeArtifact
from .fake_server import Code, FakeServer, Fault
from .test_codebook import book
from .test_node_circuit import circuit_of as node_circuit

EVIL = "\x1b]0;pwned\x07\x1b[31m\x9b2J\u202etxt.exe\u2066\r[bold]x[/bold]\u200b\x00"
NAMES = (
    "a0.h1",
    "a1.h0<q>",
    "m0",
    "logits",
    "input",
    "a0.h1->m1",
    "group",
    "query",
    "circuit",
    "edge_scores",
    "users/me/jobs/0",
    "{}",
)
RESPONSES: dict[str, type[Message]] = {
    rpc.name: getattr(module, f"{rpc.name}Response")
    for rpc in rpcs.ALL
    for module in (jobs_pb2, model_pb2, patching_pb2, server_pb2)
    if hasattr(module, f"{rpc.name}Response")
}


def clean(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text)


# Messages of any content, made from their descriptions.

texts = (
    st.sampled_from([*NAMES, EVIL, "", "[" * 5000, '{"a": NaN}', "m" + "9" * 5000, "x" * 20_000]) | st.text()
)
utf8_texts = texts.filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
floats = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, 0.5]) | st.floats()
INTEGERS = {
    FieldDescriptor.TYPE_INT32: st.sampled_from(
        [0, 1, 2, 4, -1, 2**31 - 1, -(2**31), 10**9, len(FakeArtifact().bytes())]
    ),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 7) | st.just(99),
    FieldDescriptor.TYPE_INT64: st.sampled_from(
        [0, 1, 2, 11, len(FakeArtifact().bytes()), -1, 2**63 - 1, -(2**63), 253402300799]
    ),
}


def messages(kind: type[Message], depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of a kind with any fields, each left out at times."""
    if kind is Struct:  # it may hold itself, and is not read
        return st.just(Struct(fields={"threshold": Value(number_value=math.nan)}))
    fields = {f.name: _field(f, depth) for f in kind.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: _message(kind, values))


def _message(kind: type[Message], values: dict[str, Any]) -> Message:
    try:
        return kind(**values)
    except (ValueError, TypeError):  # two parts of a oneof
        return kind()


def _field(field: Any, depth: int) -> st.SearchStrategy[Any]:
    one: st.SearchStrategy[Any]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(utf8_texts, floats, max_size=3)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        one = messages(field.message_type._concrete_class, depth + 1)
    elif field.type in INTEGERS:
        one = INTEGERS[field.type]
    elif field.type == FieldDescriptor.TYPE_STRING:
        one = utf8_texts
    elif field.type == FieldDescriptor.TYPE_BYTES:
        one = st.binary() | st.just(FakeArtifact().bytes())
    else:
        one = st.booleans() if field.type == FieldDescriptor.TYPE_BOOL else floats
    return st.lists(one, max_size=3) if field.is_repeated else one


def look(found: Any) -> None:
    """Does with a result what people do with it."""
    for shown in found if isinstance(found, list | tuple) else [found]:
        assert clean(repr(shown))
        if hasattr(shown, "_repr_html_"):
            assert clean(shown._repr_html_())
        if isinstance(shown, Circuit):
            assert clean(shown.to_dot())
            assert clean("".join(map(str, shown.edges)))
            shown.to_networkx()
            shown.canonical_bytes()
        if dataclasses.is_dataclass(shown) and not isinstance(shown, Circuit):
            texts = [value for value in vars(shown).values() if isinstance(value, str)]
            assert all(map(clean, texts))


def outcome(act: Callable[[], Any]) -> Exception | None:
    """The error with which something ends, if it is one that may come up."""
    try:
        act()
    except (PahqError, TimeoutError) as error:
        return error
    return None


# Of the graph of the fake artifact.
SCORES = EdgeScores(np.arange(82.0), Graph(2, 4, 2, "group", False, True), "eap", "l2")

# What a client may ask for, as flows: with them no socket is needed.
ACTIONS: dict[str, Callable[[ServerCalls], Any]] = {
    "models": lambda c: c.models(),
    "server_info": lambda c: c.server_info(),
    "evaluate": lambda c: c.evaluate("m", "ioi", ["m0->logits"], {}),
    "evaluate_many": lambda c: c.evaluate_many("m", "ioi", [["m0->logits"], SCORES.top(edges=3)], {}, None),
    "curve": lambda c: c.curve("m", "ioi", CurveRequest(SCORES), {}, None),
    "attribute": lambda c: c.attribute(JobRequest("m", "ioi", method="eap"), 60.0, None),
    "exact scores": lambda c: c.attribute(JobRequest("m", "ioi", method="single_edge"), 60.0, None),
    "chosen edges": lambda c: c.discover(JobRequest("m", "ioi", method="gim", edges=9), 60.0, None),
    "prune_nodes": lambda c: c.prune_nodes(
        JobRequest("m", "ioi", method="node_pruning", max_kl=0.1), 60.0, None
    ),
    "locate_neurons": lambda c: c.locate_neurons(
        LocateRequest("m", ["a"], [[1, 2]], long_texts="split", overlap=0), 60.0, None
    ),
    "located after generation": lambda c: c.locate_neurons(
        LocateRequest("m", ["a"], [[1, 2]], tokens="generated"), 60.0, None
    ),
    "assign_concepts": lambda c: c.assign_concepts(
        AssignRequest("m", book(), ["a", [1, 2]], long_texts="split"), 60.0, None
    ),
    "ablate_concepts": lambda c: c.ablate_concepts(
        AblateRequest("m", book(), ["a", [1, 2]], ["x", "y"], long_texts="split"), 60.0, None
    ),
    "evaluate nodes": lambda c: c.evaluate("m", "ioi", node_circuit(), {}),
    "estimate": lambda c: c.estimate(_request()),
    "predict": lambda c: c.predict("m", ["a", [1, 2]], 3),
    "check_task": lambda c: c.check_task("m", "ioi"),
    "discover": lambda c: c.discover(_request(), 60.0, lambda event: look(event)),
    "jobs": lambda c: c.jobs(None),
    "info": lambda c: c.job("users/me/jobs/0").info(),
    "result": lambda c: c.job("users/me/jobs/0").result(60.0, None),
    "artifact": lambda c: c.job("users/me/jobs/0").artifact(),
    "cancel": lambda c: c.job("users/me/jobs/0").cancel(None),
    "session": lambda c: _session(c),
}


def _request() -> Any:
    return JobRequest("m", "ioi", 0.1)


def _session(flows: ServerCalls) -> Any:
    session = yield from flows.session(SessionRequest("m", "ioi"))
    scores = yield from session.score([["m0->logits"]])
    edges = session.edges
    assert len(edges) == session.num_edges_total
    yield from session.commit(["input->logits"], None)
    return scores


class Stream:
    def close(self) -> None:
        pass


@given(st.data(), st.sampled_from(sorted(ACTIONS)))
@settings(max_examples=1500, suppress_health_check=list(HealthCheck))
def test_any_messages(data: st.DataObject, action: str) -> None:
    """Whatever is in the messages: a result that can be looked at, or an error of this package."""
    opened: list[Any] = []

    def perform(operation: Operation) -> Any:
        if isinstance(operation, Pause):
            assert 0 <= operation.seconds <= 1000
            return None
        if isinstance(operation, Open):
            opened.append(operation.rpc)
            if len(opened) > 8:
                raise ResourceExhausted("enough")
            return Stream()
        if isinstance(operation, Call):
            return data.draw(messages(RESPONSES[operation.rpc.name]))
        assert isinstance(operation, Read)
        return data.draw(st.none() | messages(RESPONSES[opened[-1].name]))

    flows = ServerCalls(Caller("h:1", 1.0, Backoff(2, 0.001)))
    assert clean(str(outcome(lambda: look(run_steps(ACTIONS[action](flows), perform)))))


# Over sockets: bytes that are no messages.


class RawServer(grpc.GenericRpcHandler):
    """Answers every call with the bytes that a test sets."""

    def __init__(self) -> None:
        self.answers: dict[str, list[bytes]] = {}
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool)
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        name = details.method.rpartition("/")[2]
        if name in ("WatchJob", "GetArtifact"):
            return grpc.unary_stream_rpc_method_handler(lambda request, context: iter(self.answers[name]))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answers[name][0])

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()


def good() -> dict[str, list[Message]]:
    """Right answers, to be damaged."""
    graph = circuit_pb2.Graph(layers=1, heads=2, kv_heads=1, kv_receivers="group", mlps=True)
    job = pb.Job(name="users/me/jobs/0", state=pb.JOB_STATE_SUCCEEDED)
    job.create_time.seconds = 1_700_000_000
    token = model_pb2.PredictedToken(id=3, text=" Tom", probability=0.5, logit=2.0)
    prediction = model_pb2.Prediction(tokens=[token])
    worker = server_pb2.Worker(state=server_pb2.WORKER_STATE_READY, hardware={"torch": "2"}, host="attic")
    accuracy = model_pb2.TaskAccuracy(above_wrong=1.0, likeliest=0.5, logit_difference=2.0)
    nodes = patching_pb2.NodeFigures(kl=0.5, exact_match=1.0, logit_difference=-2.0, accuracy=0.5)
    end = pb.Event(sequence=4, kind=pb.EVENT_KIND_END, state=pb.JOB_STATE_SUCCEEDED)
    session = patching_pb2.Session(
        name="users/me/sessions/0", graph=graph, num_edges_total=11, max_circuits=5
    )
    return {
        "ListModels": [model_pb2.ListModelsResponse(models=[model_pb2.Model(name="demo", layers=4)])],
        "GetServerInfo": [
            server_pb2.GetServerInfoResponse(
                server_info=server_pb2.ServerInfo(version="1", metrics=["l2"], workers=[worker])
            )
        ],
        "PredictTokens": [model_pb2.PredictTokensResponse(predictions=[prediction])],
        "CheckTask": [model_pb2.CheckTaskResponse(clean=accuracy, corrupted=accuracy, num_prompts=3)],
        "CreateJob": [pb.CreateJobResponse(job=job)],
        "GetJob": [pb.GetJobResponse(job=job)],
        "CancelJob": [pb.CancelJobResponse(job=job)],
        "ListJobs": [pb.ListJobsResponse(jobs=[job])],
        "WatchJob": [pb.WatchJobResponse(event=end)],
        "GetArtifact": list(FakeArtifact().messages()),
        "OpenSession": [patching_pb2.OpenSessionResponse(session=session)],
        "ScoreCircuits": [patching_pb2.ScoreCircuitsResponse(metrics=[1.0])],
        "CommitCircuit": [patching_pb2.CommitCircuitResponse(num_edges=10)],
        "CloseSession": [patching_pb2.CloseSessionResponse()],
        "EvaluateCircuits": [
            patching_pb2.EvaluateCircuitsResponse(
                metric="kl_divergence", values=[0.5], full=0.0, empty=2.0, num_edges_total=82
            )
        ],
        "EvaluateNodes": [patching_pb2.EvaluateNodesResponse(values=[nodes], full=nodes, empty=nodes)],
    }


def damaged(answer: bytes, random: random.Random) -> bytes:
    """The answer with some bytes changed, lost, doubled or made up."""
    data = bytearray(answer)
    for _ in range(random.randint(1, 4)):
        place = random.randint(0, len(data))
        match random.randint(0, 4):
            case 0:
                data[place:place] = random.randbytes(random.randint(1, 9))
            case 1:
                del data[place : place + random.randint(1, 9)]
            case 2 if place < len(data):
                data[place] ^= 1 << random.randint(0, 7)
            case 3:
                data[place:place] = data[: random.randint(0, 40)]
            case _:
                data[place : place + 9] = b"\xff" * 9 + b"\x01"
    return bytes(data)


CALLS: dict[str, Callable[[Client], Any]] = {
    "models": lambda c: c.models(),
    "server_info": lambda c: c.server_info(),
    "discover": lambda c: c.discover("m", "ioi", 0.1, timeout=5, progress=lambda event: look(event)),
    "predict": lambda c: c.predict("m", "a"),
    "check_task": lambda c: c.check_task("m", "ioi"),
    "jobs": lambda c: [job.latest for job in c.jobs()],
    "cancel": lambda c: c.job("users/me/jobs/0").cancel(),
    "session": lambda c: _used(c.session("m", "ioi")),
    "evaluate": lambda c: c.evaluate("m", "ioi", ["m0->logits"]),
    "evaluate_nodes": lambda c: c.evaluate("m", "ioi", node_circuit()),
}


def _used(session: Session) -> Any:
    scores, edges = session.score([["m0->logits"]]), session.edges
    session.commit(removed=[edges[0]] if edges else [])
    session.close()
    return scores


def test_damaged_bytes() -> None:
    rng, server = random.Random(5), RawServer()
    answers = good()
    right, wrong = 0, 0
    try:
        with Client(server.address, timeout=5, backoff=Backoff(1, 0.001, 0.001)) as client:
            for number in range(600):
                server.answers = {
                    name: [m.SerializeToString() for m in some] for name, some in answers.items()
                }
                if number >= len(CALLS):  # the first ones are as they should be
                    name = rng.choice(sorted(answers))
                    server.answers[name] = [damaged(part, rng) for part in server.answers[name]]
                call = CALLS[sorted(CALLS)[number % len(CALLS)]]
                error = outcome(lambda call=call: look(call(client)))  # type: ignore[misc]
                assert error is None or number >= len(CALLS), error
                assert clean(str(error))
                right, wrong = right + (error is None), wrong + (error is not None)
    finally:
        server.stop()
    assert right > 100  # else the damage would hide what is behind it
    assert wrong > 50


def test_damaged_bytes_of_an_asynchronous_client() -> None:
    server = RawServer()
    server.answers = {"ListModels": [b"\xff" * 20], "GetArtifact": [b"\x0a\xff\xff\xff\xff\x0f"]}
    job = pb.Job(name="a", state=pb.JOB_STATE_SUCCEEDED)
    server.answers["GetJob"] = [pb.GetJobResponse(job=job).SerializeToString()]

    async def main() -> None:
        async with AsyncClient(server.address, timeout=5) as client:
            with pytest.raises(ServerFault):
                await client.models()
            with pytest.raises(ServerFault):
                await client.job("users/me/jobs/0").result()

    try:
        asyncio.run(main())
    finally:
        server.stop()


# What each kind of malice comes to.


def _set(name: str, index: int, value: object) -> Callable[[FakeArtifact], None]:
    return lambda a: a.arrays[name].__setitem__(index, value)


def _replace(name: str, change: Callable[[Any], Any]) -> Callable[[FakeArtifact], None]:
    return lambda a: a.arrays.update({name: change(a.arrays[name])})


def _lay(*path: Any) -> Callable[[FakeArtifact], None]:
    """Sets a value of the layout."""
    *keys, last, value = path

    def change(artifact: FakeArtifact) -> None:
        inner = artifact.layout
        for key in keys:
            inner = inner[key]
        inner[last] = value

    return change


def _cut(artifact: FakeArtifact) -> None:
    artifact.header.size_bytes, artifact.data = len(artifact.bytes()), artifact.bytes()[:-1]


DECEIT: tuple[tuple[Callable[[FakeArtifact], Any], str], ...] = (
    (_set("verdict_index", 0, -1), "outside of its 19 receivers"),
    (_set("verdict_index", 0, 19), "outside of its 19 receivers"),
    (_set("verdict_index", 1, 82), "outside of its 82 edges"),
    (_set("verdict_index", 1, -(2**63)), "outside of its 82 edges"),
    (lambda a: _set("verdict_index", 2, a.arrays["verdict_index"][1])(a), "two verdicts on one of its edges"),
    (_set("verdict_kept", 1, False), "contradicts the verdicts"),
    (_set("verdict_delta", 0, math.inf), "'verdict_delta' holds a number that is not finite"),
    (_set("verdict_score", 0, math.nan), "'verdict_score' holds a number that is not finite"),
    (_replace("verdict_delta", lambda x: x[:2]), r"'verdict_delta' is float64\[2\], expected float64\[3\]"),
    (_replace("verdict_index", lambda x: x.astype("int32")), "int32"),
    (_replace("verdict_gate", lambda x: x.astype("uint8")), r"uint8\[3\], expected bool"),
    (_replace("verdict_gate", lambda x: x.reshape(1, 3)), r"bool\[1, 3\]"),
    (_replace("kept", lambda x: x[:-1]), r"bool\[81\], expected bool\[82\]"),
    (lambda a: a.arrays.pop("kept"), "no array 'kept'"),
    (_lay("graph", "layers", 10**9), "from 0 to 10000"),
    (_lay("graph", "heads", -1), "from 0 to 10000"),
    (_lay("graph", "heads", True), "must not be bool"),
    (
        _lay(
            "graph",
            {
                "layers": 9000,
                "heads": 9000,
                "kv_heads": 1,
                "kv_receivers": "group",
                "parallel": False,
                "mlps": True,
            },
        ),
        "reads at most 20000000",
    ),
    (_lay("graph", "kv_receivers", EVIL), "kv_receivers"),
    (_lay("graph", None), "must not be NoneType"),
    (_lay("metric", "value", None), "must not be NoneType"),
    (_lay("metric", "empty", 10**400), "too large"),
    (_lay("kind", "edge_scores"), "something else than version 1 of 'circuit'"),
    (_lay("version", 2), "something else than version 1 of 'circuit'"),
    (_lay("graph", "extra", json.loads("[" * 200 + "]" * 200)), "levels deep"),
    (lambda a: setattr(a, "data", b""), "not a safetensors file"),
    (lambda a: setattr(a, "data", b"\xff" * 40), "not a safetensors file"),
    (lambda a: setattr(a, "data", a.bytes()[:-1]), "not a readable safetensors file"),
    (lambda a: setattr(a, "data", save({"x": np.zeros(3)}, {"artifact": "{}"})), "no 'kind'"),
    (lambda a: setattr(a, "data", save({"x": np.zeros(3)}, {"other": "{}"})), "no 'artifact'"),
    (lambda a: setattr(a, "data", save({"x": np.zeros(3)}, {"artifact": '{"kind": NaN}'})), "finite"),
    (lambda a: setattr(a.header, "version", 2), "version 2 of 'circuit'; this client reads version 1"),
    (lambda a: setattr(a.header, "provenance_run_json", "[" * 100_000), "levels deep"),
    (lambda a: setattr(a.header, "provenance_run_json", '{"a":' * 200 + "1" + "}" * 200), "levels deep"),
    (_cut, "did not arrive whole"),
    (lambda a: setattr(a.header, "size_bytes", 50), "more than the 50 bytes"),
    (lambda a: setattr(a.header, "size_bytes", -1), "announced an artifact of -1 bytes"),
    (lambda a: setattr(a.header, "size_bytes", 1 << 40), "reads at most 268435456"),
    (lambda a: setattr(a, "prompts", [""] * 2000), "hold nothing"),
)


@pytest.mark.parametrize("number", range(len(DECEIT)))
def test_artifacts_are_checked_like_files(client: Client, server: FakeServer, number: int) -> None:
    change, words = DECEIT[number]
    job = client.submit("demo", "ioi")
    change(server.artifact)
    with pytest.raises(ServerFault, match=words) as raised:
        job.result()
    assert clean(str(raised.value))
    server.artifact = FakeArtifact()
    assert len(job.result().edges) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": [1.0]}, "the metric of 1 circuits, asked for 2"),
        ({"values": [1.0, 2.0, 3.0]}, "the metric of 3 circuits, asked for 2"),
        ({"values": []}, "the metric of 0 circuits"),
        ({"values": [1.0, math.nan]}, "nan as the metric of circuit 1"),
        ({"values": [-math.inf, 1.0]}, "-inf as the metric of circuit 0"),
        ({"full": math.nan}, "nan as the metric full"),
        ({"empty": math.inf}, "inf as the metric empty"),
        ({"metric": "kl_divergence"}, "measured 'kl_divergence', asked for 'l2'"),
        ({"metric": EVIL}, "measured '.*', asked for 'l2'"),
        ({"num_edges_total": -1}, "negative number as num_edges_total"),
        ({"warnings": ["x"] * 20_000}, "20000 warnings"),
    ],
)
def test_evaluations_are_checked(
    client: Client, server: FakeServer, changes: dict[str, Any], words: str
) -> None:
    right = {"metric": "l2", "values": [1.0, 2.0], "full": 0.0, "empty": 4.0, "num_edges_total": 82}
    answer = patching_pb2.EvaluateCircuitsResponse(**(right | changes))
    server.replies["EvaluateCircuits"] = lambda request, context: answer
    for call in (
        lambda: client.evaluate_many("demo", "ioi", [[], ["m0->logits"]], metric="l2"),
        lambda: client.curve("demo", "ioi", SCORES, fractions=[0.5, 1], baselines=0, metric="l2"),
    ):
        with pytest.raises(ServerFault, match=words) as raised:
            call()
        assert clean(str(raised.value))


def test_the_circuit_of_chosen_edges_is_measured_by_what_was_asked(
    client: Client, server: FakeServer
) -> None:
    """Not by what the scores say of themselves."""
    server.artifact.make_scores()
    server.artifact.layout["metric"]["name"] = "l2"
    with pytest.raises(ServerFault, match="scores of 'l2', asked for 'logit_difference'"):
        client.discover("demo", "ioi", method="eap", edges=5)


@pytest.mark.parametrize(("place", "value"), [(0, 5), (3, 7)])
def test_exact_scores_need_every_edge(client: Client, server: FakeServer, place: int, value: int) -> None:
    server.artifact.make_single_edge()
    for name, array in server.artifact.arrays.items():
        server.artifact.arrays[name] = array if name == "kept" else np.delete(array, place)
    with pytest.raises(ServerFault, match="no score of 1 of 82 edges"):
        client.attribute("demo", "ioi", method="single_edge")
    server.artifact = FakeArtifact()  # of another method, with a gate
    with pytest.raises(ServerFault, match="no score of 80 of 82 edges"):
        client.attribute("demo", "ioi", method="single_edge")


def test_streams_of_artifacts_begin_with_their_header(client: Client, server: FakeServer) -> None:
    job = client.submit("demo", "ioi")
    header, *rest = FakeArtifact().messages()
    for messages, words in (
        ([header, header, *rest], "two headers"),
        (rest, "without a header"),
        ([], "without a header"),
    ):
        server.replies["GetArtifact"] = lambda request, context, sent=messages: iter(sent)
        with pytest.raises(ServerFault, match=words):
            job.result()


def test_prompts_without_end_are_left_before_they_are_all_there(
    client: Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MOST_PROMPT_BYTES", 100)
    server.artifact.prompts = ["x" * 60] * 1000
    with pytest.raises(ServerFault, match="more than 100 bytes of prompts"):
        client.submit("demo", "ioi").result()


@given(st.data())
@settings(max_examples=300)
def test_damaged_artifacts(data: st.DataObject) -> None:
    artifact = FakeArtifact()
    if data.draw(st.booleans()):
        artifact.make_scores()
    damage = random.Random(data.draw(st.integers(0, 2**32)))
    found = outcome(
        lambda: look(artifacts.decode(artifact.header.kind, 1, damaged(artifact.bytes(), damage), {}))
    )
    assert clean(str(found))


def test_a_graph_that_nobody_could_list(client: Client, server: FakeServer) -> None:
    """Only counted: its names would take more memory than there is."""
    server.session.graph.layers = 10**9
    with pytest.raises(ServerFault, match="layers"):
        client.session("demo", "ioi")
    server.session.graph.layers = server.session.graph.heads = 10_000
    with pytest.raises(ServerFault, match="this client"):
        print(client.session("demo", "ioi").edges)
    graph = Graph(10_000, 10_000, 1, "group", False, True)
    server.session.num_edges_total = graph.num_edges
    with pytest.raises(InvalidRequest, match="at most 20000000 can be listed"):
        print(client.session("demo", "ioi").edges)
    for wrong in (10**9, -1, 10**30, "3", 2.0, True):
        with pytest.raises(InvalidRequest, match=r"graph\.layers"):
            Graph(wrong, 1, 1, "group", False)  # type: ignore[arg-type]


def test_one_shared_receiver_of_many_heads_is_no_bomb(circuit: Circuit) -> None:
    graph = Graph(10_000, 10_000, 1, "group", False, True)
    edges = tuple(Edge(f"a0.h{i}", f"a{j}.g0<v>") for i in range(30) for j in range(1, 31))
    big = dataclasses.replace(circuit, graph=graph, edges=edges)
    for draw in (big.to_dot, big.to_networkx):
        with pytest.raises(InvalidRequest, match="9000000 arrows"):
            draw()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seconds", 1 << 62),
        ("seconds", -(1 << 62)),
        ("seconds", 253402300799),
        ("seconds", -1),
        ("nanos", -5),
        ("nanos", 2**31 - 1),
    ],
)
def test_times_that_are_none(client: Client, server: FakeServer, field: str, value: int) -> None:
    job = client.submit("demo", "ioi")
    event = server.jobs[job.name].events[-1]
    event.queue_position = 1
    setattr(event.estimated_start_time, field, value)
    with pytest.raises(ServerFault, match="estimated_start_time"):
        list(job.watch())
    with pytest.raises(ServerFault, match="estimated_start_time"):
        job.cancel()


@pytest.mark.parametrize("eta", [math.inf, -math.inf, math.nan, -12_917.0, 1e300])
def test_a_time_left_that_is_none(client: Client, server: FakeServer, eta: float) -> None:
    job = client.submit("demo", "ioi")
    for event in server.jobs[job.name].events:
        event.progress.eta_seconds = eta
    known = [event.eta_s for event in job.watch()]
    assert known == ([1e300] * 4 if eta == 1e300 else [None] * 4)
    assert len(client.discover("demo", "ioi", progress=True).edges) == 2
    assert main(["jobs", "--server", server.address]) == 0


def _with_delay(seconds: int, nanos: int, reason: str) -> Any:
    class Raised:
        def raise_on(self, context: grpc.ServicerContext) -> None:
            status = status_pb2.Status(code=Code.RESOURCE_EXHAUSTED.value[0], message=EVIL)
            info = error_details_pb2.ErrorInfo(reason=reason, domain="pahq", metadata={"quota": EVIL})
            delay = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos))
            for detail in (info, delay):
                status.details.add().Pack(detail)
            context.abort_with_status(rpc_status.to_status(status))

    return Raised()


@pytest.mark.parametrize("reason", ["RATE_LIMITED", "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"])
@pytest.mark.parametrize(
    ("seconds", "nanos", "kept"),
    [
        (1 << 62, 0, 86_400.0),
        (-(1 << 62), 0, 0.0),
        (3, -2_000_000_000, 1.0),
        (0, -5, 0.0),
        (90_000, 0, 86_400.0),
    ],
)
def test_pauses_that_nobody_could_keep(
    client: Client, server: FakeServer, reason: str, seconds: int, nanos: int, kept: float
) -> None:
    """Also by a watch, which has all the time of the world."""
    job = client.submit("demo", "ioi")
    fault = _with_delay(seconds, nanos, reason)
    if reason == "RATE_LIMITED" and kept < 10:  # then it waits that long, and goes on
        server.faults["GetServerInfo"] = [fault]
        assert client.server_info().version == "9.9"
        return
    for method, call in (
        ("GetServerInfo", client.server_info),
        ("WatchJob", lambda: list(job.watch())),
    ):
        server.faults[method] = [fault]
        with pytest.raises(RateLimited if reason == "RATE_LIMITED" else ResourceExhausted) as raised:
            call()
        assert raised.value.retry_after == kept
        assert clean(str(raised.value))


def test_damaged_details_of_an_error(client: Client, server: FakeServer) -> None:
    class Raised:
        def raise_on(self, context: grpc.ServicerContext) -> None:
            status = status_pb2.Status(code=Code.NOT_FOUND.value[0], message="no x")
            status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff")
            context.abort_with_status(rpc_status.to_status(status))

    server.faults["GetServerInfo"] = [Raised()]  # type: ignore[list-item]
    with pytest.raises(PahqError, match="no x"):
        client.server_info()


def test_a_list_that_begins_again_has_no_end(client: Client, server: FakeServer) -> None:
    token = ["again"]

    def listed(request: Any, context: Any) -> Any:
        server._enter("ListJobs", request, context)
        return pb.ListJobsResponse(
            jobs=[pb.Job(name="a", state=pb.JOB_STATE_SUCCEEDED)] * count[0],
            next_page_token=token[0] or str(len(server.calls)),
        )

    count = [1]
    server.replies["ListJobs"] = listed
    with pytest.raises(ServerFault, match="no end"):
        client.jobs()
    assert len(server.called("ListJobs")) == 2
    assert len(client.jobs(limit=1)) == 1  # what was asked for is there
    token[0], count[0] = "", 0  # always another page, never anything on it
    with pytest.raises(ServerFault, match="no end"):
        client.jobs()
    count[0] = 3
    with pytest.raises(ServerFault, match="sent 3 jobs, asked for 2"):
        client.jobs(limit=2)


def test_lists_have_a_limit(client: Client, server: FakeServer) -> None:
    server.replies["ListModels"] = lambda request, context: model_pb2.ListModelsResponse(
        models=[model_pb2.Model()] * 100_000
    )
    with pytest.raises(ServerFault, match="100000 models"):
        client.models()
    server.replies["ListModels"] = lambda request, context: model_pb2.ListModelsResponse(
        models=[model_pb2.Model(name=EVIL)]
    )
    with pytest.raises(ServerFault, match="a name that cannot be one"):
        client.models()
    server.replies["GetServerInfo"] = lambda request, context: server_pb2.GetServerInfoResponse(
        server_info=server_pb2.ServerInfo(metrics=["l2"] * 100_000)
    )
    with pytest.raises(ServerFault, match="100000 metrics"):
        client.server_info()


def test_a_flood_of_events_waits_for_its_reader(threads_client: Client, server: FakeServer) -> None:
    """The server is held up once the reader's inbox and gRPC's window are full, however long nobody reads."""
    job = threads_client.submit("demo", "ioi")
    sent, stalled = [0], threading.Event()

    def flood(request: Any, context: Any) -> Iterator[Any]:
        event = pb.Event(
            kind=pb.EVENT_KIND_PROGRESS, state=pb.JOB_STATE_RUNNING, error_message="x" * 1_000_000
        )
        while context.is_active():
            sent[0] += 1
            event.sequence = sent[0]
            yield pb.WatchJobResponse(event=event)

    server.replies["WatchJob"] = flood
    events = job.watch()
    next(events)
    before = -1
    while before != sent[0] and sent[0] < 300:  # until it does not go on any more
        before = sent[0]
        stalled.wait(1.0)
    assert sent[0] < 100  # megabytes; without a limit it would go on for ever
    assert [next(events).sequence for _ in range(20)] == list(range(2, 22))
    events.close()  # type: ignore[attr-defined]


def test_a_reader_that_leaves_lets_its_thread_go() -> None:
    class EndlessCall:
        def __iter__(self) -> Iterator[int]:
            while not cancelled.is_set():
                made.append(1)
                yield 1

        def cancel(self) -> None:
            cancelled.set()

    made: list[int] = []
    cancelled = threading.Event()
    reader = BlockingStream(EndlessCall)
    assert reader.read() == 1
    while len(made) < INBOX + 2:  # as many as it takes before it waits: one read, the inbox, one in its hands
        threading.Event().wait(0.01)
    threading.Event().wait(0.2)
    assert len(made) == INBOX + 2
    reader.close()
    reader._thread.join()


def test_compressed_answers_are_not_unpacked() -> None:
    """A megabyte of zeros is a kilobyte on its way: a server could send any number of those."""
    handler = grpc.method_handlers_generic_handler(
        "pahq.v1.ModelService",
        {
            "ListModels": grpc.unary_unary_rpc_method_handler(
                lambda request, context: bytes(1 << 20), response_serializer=None
            )
        },
    )
    pool = ThreadPoolExecutor(2)
    server = grpc.server(pool, compression=grpc.Compression.Gzip)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}", backoff=Backoff(0)) as client, pytest.raises(PahqError):
            client.models()
    finally:
        server.stop(None).wait()
        pool.shutdown()


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1e12])
def test_a_limit_beyond_all_clocks_is_none(server: FakeServer, timeout: float) -> None:
    with Client(server.address, timeout=timeout) as client:
        assert client.server_info().version == "9.9"

    async def ask() -> str:
        async with AsyncClient(server.address, timeout=timeout) as client:
            return (await client.server_info()).version

    assert asyncio.run(ask()) == "9.9"


def test_an_error_has_one_traceback(client: Client, server: FakeServer) -> None:
    def errors() -> Iterator[BaseException]:
        job = client.submit("demo", "ioi")
        server.faults["GetServerInfo"] = [Fault(Code.INTERNAL)]
        server.faults["WatchJob"] = [Fault(Code.PERMISSION_DENIED)]
        server.faults["GetArtifact"] = [Fault(Code.PERMISSION_DENIED)]
        server.faults["OpenSession"] = [Fault(Code.INVALID_ARGUMENT)]
        for call in (
            client.server_info,
            lambda: list(job.watch()),
            job.result,
            lambda: client.session("demo", "ioi"),
            lambda: client.submit("demo", 3),  # type: ignore[arg-type]
            lambda: client.evaluate("demo", "ioi", 3),  # type: ignore[arg-type]
            lambda: client.job("users/me/jobs/none").state,
        ):
            with pytest.raises(PahqError) as raised:
                call()  # type: ignore[operator]
            yield raised.value

    for error in errors():
        assert "".join(traceback.format_exception(error)).count("Traceback") == 1, error


@pytest.mark.parametrize(
    "command",
    [
        ["models"],
        ["info"],
        ["jobs"],
        ["show", "users/me/jobs/evil"],
        ["watch", "users/me/jobs/evil"],
        ["cancel", "users/me/jobs/evil"],
        ["discover", "--model", "demo", "--task", "ioi", "--threshold", "0.1"],
        ["discover", "--model", "demo", "--task", "ioi", "--threshold", "0.1", "--detach"],
        ["evaluate", "--circuit", "c.json", "--model", "demo", "--task", "ioi"],
        ["curve", "c.json", "--model", "demo", "--task", "ioi", "--baselines", "0"],
        ["attribute", "--model", "demo", "--task", "ioi"],
        ["predict", "--model", "demo", f"a{EVIL[:-1]}"],
        ["check-task", "--model", "demo", "--task", "ioi"],
    ],
)
@pytest.mark.parametrize("json", [False, True])
def test_the_command_prints_nothing_that_a_terminal_would_obey(
    command: list[str],
    json: bool,
    server: FakeServer,
    circuit: Circuit,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    circuit.save("c.json")
    name = "users/me/jobs/evil"
    spec = pb.JobSpec(extension=methods_pb2.ExtensionParameters(method=EVIL))
    spec.objective.model = spec.objective.metric = EVIL
    job = pb.Job(name=name, spec=spec, state=pb.JOB_STATE_FAILED, error_message=EVIL)
    job.progress.total = 5
    job.progress.unit = job.progress.stage = EVIL
    job.progress.figures[EVIL] = 1.0
    event = pb.Event(sequence=1, kind=pb.EVENT_KIND_END, state=pb.JOB_STATE_FAILED, error_message=EVIL)
    token = model_pb2.PredictedToken(id=3, text=EVIL, probability=0.5, logit=2.0)
    replies: dict[str, Any] = {
        "ListModels": model_pb2.ListModelsResponse(
            models=[model_pb2.Model(name="demo", architecture=EVIL, revision=EVIL)]
        ),
        "GetServerInfo": server_pb2.GetServerInfoResponse(
            server_info=server_pb2.ServerInfo(version=EVIL, device=EVIL, methods=[EVIL, EVIL])
        ),
        "PredictTokens": model_pb2.PredictTokensResponse(
            predictions=[model_pb2.Prediction(tokens=[token])], warnings=[EVIL]
        ),
        "CheckTask": model_pb2.CheckTaskResponse(
            clean=model_pb2.TaskAccuracy(logit_difference=-1.0), num_prompts=2, warnings=[EVIL]
        ),
        "CreateJob": pb.CreateJobResponse(job=job),
        "GetJob": pb.GetJobResponse(job=job),
        "CancelJob": pb.CancelJobResponse(job=job),
        "ListJobs": pb.ListJobsResponse(jobs=[job]),
        "WatchJob": iter([pb.WatchJobResponse(event=event)]),
        "EvaluateCircuits": patching_pb2.EvaluateCircuitsResponse(
            metric="kl_divergence", values=[1.0], empty=2.0, warnings=[EVIL]
        ),
    }
    server.replies.update({key: lambda request, context, r=reply: r for key, reply in replies.items()})
    main([*command, "--server", server.address, *(["--json"] if json else [])])
    out, err = capsys.readouterr()
    # The bar moves the cursor by sequences of its own.
    assert clean(out)
    assert "pwned" not in err or "\\x1b]0;pwned" in err
    assert "\u202e" not in err
    assert "\x9b" not in err
    assert "\x07" not in err
