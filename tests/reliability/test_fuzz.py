"""Malformed and mutated messages on every RPC: each is answered or refused for what it is."""

from __future__ import annotations

import random
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from helpers.demo import HEADS, LAYERS, NUM_EDGES
from pahq.v1 import circuit_pb2, generation_pb2, methods_pb2, model_pb2, patching_pb2, server_pb2, task_pb2
from pahq.v1 import jobs_pb2 as pb

from pahq_server.access.policy import POLICY

from .conftest import Figures
from .secured import SecuredServer, node_evaluation, objective, spec

Code = grpc.StatusCode
SHORT, FULL = 400, 20_000
# What may be said to a message that makes no sense, or happens to make some.
FINE = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.ALREADY_EXISTS,
    Code.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED,
    Code.DEADLINE_EXCEEDED,  # of the test: what happens to make sense can take long
}
GROWTH_MIB = 64
NAME = "users/ada/jobs/0123456789abcdef0123456789abcdef"

PROMPTS = task_pb2.PromptTask(
    clean=[
        task_pb2.Prompt(text=" Lily gave"),
        task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=[1, 2, 3])),
    ],
    corrupted=[task_pb2.Prompt(text=" Ben gave")],
    positions=task_pb2.Positions(indices=[-1, 2]),
)
RIGHT = task_pb2.PromptTask(
    clean=[task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=[1, 2, 3]))],
    corrupted=[task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=[1, 2, 4]))],
)


def seeds() -> dict[str, Message]:
    """A request of every RPC that makes sense, or nearly."""
    reflection = "grpc.reflection.v1alpha.ServerReflection"
    return {
        **job_seeds(),
        **patching_seeds(),
        **model_seeds(),
        "pahq.v1.GenerationService/GenerateSamples": generation_pb2.GenerateSamplesRequest(
            model="demo",
            prompts=PROMPTS.clean,
            parameters=methods_pb2.GenerateParameters(
                n=2, max_tokens=3, temperature=0.5, top_p=0.9, stop=["."], slots=2, policy="sjf"
            ),
        ),
        "pahq.v1.ServerService/GetServerInfo": server_pb2.GetServerInfoRequest(),
        "grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(service="pahq.v1.ModelService"),
        "grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest(service="nothing"),
        f"{reflection}/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="pahq.v1.Job"
        ),
    }


def job_seeds() -> dict[str, Message]:
    jobs = "pahq.v1.JobService"
    return {
        f"{jobs}/CreateJob": pb.CreateJobRequest(spec=spec(), request_id="a", validate_only=True),
        f"{jobs}/GetJob": pb.GetJobRequest(name=NAME),
        f"{jobs}/ListJobs": pb.ListJobsRequest(page_size=3, page_token="7"),
        f"{jobs}/CancelJob": pb.CancelJobRequest(name=NAME),
        f"{jobs}/DeleteJob": pb.DeleteJobRequest(name=NAME),
        f"{jobs}/WatchJob": pb.WatchJobRequest(name=NAME, after_sequence=5),
        f"{jobs}/GetArtifact": pb.GetArtifactRequest(name=NAME),
    }


def patching_seeds() -> dict[str, Message]:
    patching = "pahq.v1.PatchingService"
    edges = patching_pb2.EdgeList(names=["m3->logits", f"a3.h{HEADS - 1}->m3"])
    circuit = patching_pb2.SessionCircuit(removed=edges)
    # Nearly right: sessions that were opened would stay.
    nearly = objective(task=task_pb2.Task(prompts=PROMPTS))
    return {
        f"{patching}/EvaluateCircuits": patching_pb2.EvaluateCircuitsRequest(
            objective=objective(task=task_pb2.Task(prompts=RIGHT)),
            circuits=[{"names": {"names": ["m3->logits"]}}, {"edges": every_edge()}],
        ),
        f"{patching}/EvaluateNodes": node_evaluation(task=task_pb2.Task(prompts=RIGHT)),
        f"{patching}/OpenSession": patching_pb2.OpenSessionRequest(objective=nearly),
        f"{patching}/ScoreCircuits": patching_pb2.ScoreCircuitsRequest(name=NAME, circuits=[circuit] * 3),
        f"{patching}/CommitCircuit": patching_pb2.CommitCircuitRequest(name=NAME, circuit=circuit),
        f"{patching}/CloseSession": patching_pb2.CloseSessionRequest(name=NAME),
    }


def model_seeds() -> dict[str, Message]:
    models = "pahq.v1.ModelService"
    answer = [task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=[7]))]
    checked = task_pb2.PromptTask(answers=answer, wrong_answers=answer)
    checked.MergeFrom(RIGHT)
    return {
        f"{models}/ListModels": model_pb2.ListModelsRequest(),
        f"{models}/GetModel": model_pb2.GetModelRequest(name="demo"),
        f"{models}/TokenizeTexts": model_pb2.TokenizeTextsRequest(
            model="demo", texts=[" Lily", "Tom"], prompt=" Lily and"
        ),
        f"{models}/PredictTokens": model_pb2.PredictTokensRequest(model="demo", prompts=PROMPTS.clean, top=3),
        f"{models}/CheckTask": model_pb2.CheckTaskRequest(model="demo", task=task_pb2.Task(prompts=checked)),
    }


def every_edge() -> circuit_pb2.EdgeSet:
    graph = circuit_pb2.Graph(layers=LAYERS, heads=HEADS, kv_heads=HEADS, kv_receivers="group", mlps=True)
    bits = ((1 << NUM_EDGES) - 1).to_bytes(-(-NUM_EDGES // 8), "little")
    return circuit_pb2.EdgeSet(graph=graph, bits=bits)


def circuit_seed() -> tuple[str, Message]:
    """A request for samples under a circuit."""
    clean, corrupted = (
        [task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=ids))] for ids in ([1, 2, 3], [1, 2, 4])
    )
    asked = generation_pb2.GenerateSamplesRequest(
        model="demo",
        prompts=clean,
        parameters=methods_pb2.GenerateParameters(max_tokens=3, circuit=every_edge()),
        ablation="resample",
        corrupted=corrupted,
    )
    return "pahq.v1.GenerationService/GenerateSamples", asked


def extension_seed() -> tuple[str, Message]:
    """A request for a method by name, with all kinds of parameters."""
    asked = pb.JobSpec(objective=objective())
    asked.extension.method = "acdc"
    asked.extension.parameters.update(
        {"threshold": 0.1, "gates": True, "note": "x", "list": [1.0, None], "object": {"a": "b"}}
    )
    return "pahq.v1.JobService/CreateJob", pb.CreateJobRequest(spec=asked, validate_only=True)


def pruning_seed() -> tuple[str, Message]:
    """A request for a job of node pruning."""
    asked = pb.JobSpec(objective=objective())
    asked.node_pruning.MergeFrom(
        methods_pb2.NodePruningParameters(
            max_kl=0.1, steps=5, kinds=["heads", "layers"], seed=3, task_loss=0.5
        )
    )
    return "pahq.v1.JobService/CreateJob", pb.CreateJobRequest(spec=asked, validate_only=True)


def neurons_seed() -> tuple[str, Message]:
    """A request for neurons that carry a value."""
    asked = pb.JobSpec(objective=objective())
    asked.neurons.MergeFrom(methods_pb2.NeuronsParameters(positive=1, starts=[0, -1], top_k=5, min_delta=0.2))
    return "pahq.v1.JobService/CreateJob", pb.CreateJobRequest(spec=asked, validate_only=True)


def continuations_seed() -> tuple[str, Message]:
    """A request for scores of continuations, with neurons edited."""
    asked = pb.JobSpec(objective=objective())
    steering = methods_pb2.NeuronSteering(layers=4, d_mlp=512, raised=[1, 7], amounts=[0.5, 2], lowered=[3])
    asked.continuations.MergeFrom(methods_pb2.ContinuationsParameters(starts=[1, 2], steering=steering))
    return "pahq.v1.JobService/CreateJob", pb.CreateJobRequest(spec=asked, validate_only=True)


def concepts_seeds() -> list[tuple[str, Message]]:
    """Requests for the concepts of texts, and for what states lose without them."""
    width = 128
    book = methods_pb2.ConceptCodebook(
        layers=LAYERS,
        width=width,
        low=1,
        encoder=b"\0" * 4 * (width * width + 3 * width + 1),
        codes=b"\0\0\0\x3f" * 3 * width,
    )
    assigned, ablated = pb.JobSpec(objective=objective()), pb.JobSpec(objective=objective())
    assigned.assign_concepts.MergeFrom(methods_pb2.AssignConceptsParameters(codebook=book, skip=0))
    ablated.ablate_concepts.MergeFrom(
        methods_pb2.AblateConceptsParameters(
            codebook=book, layer=2, labels=[0, 1], positions=[-1, 0], seed=3, skip=2
        )
    )
    return [
        ("pahq.v1.JobService/CreateJob", pb.CreateJobRequest(spec=asked, validate_only=True))
        for asked in (assigned, ablated)
    ]


Mutation = Callable[[random.Random, bytes], bytes]


def _flip(random: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(random.randint(1, 4)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(random: random.Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _splice(random: random.Random, data: bytes) -> bytes:
    a, b = sorted(random.randrange(len(data) + 1) for _ in range(2))
    place = random.randrange(len(data) + 1)
    return data[:place] + data[a:b] * random.randint(1, 50) + data[place:]


def _noise(random: random.Random, data: bytes) -> bytes:
    return random.randbytes(random.randrange(200))


def _insert(random: random.Random, data: bytes) -> bytes:
    """Where a field may be: what a parser trips over."""
    odd = (
        b"\xff" * 11,  # a number that does not end
        b"\x0a\xff\xff\xff\xff\x07",  # 2 GiB of text
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a negative length
        b"\x0b" * 200,  # groups in groups
        b"\x0a\x03\xed\xa0\x80",  # half a surrogate
        b"\x0a\x01\0",
        b"\x08" + b"\xff" * 9 + b"\x01",  # -1
        b"\x11\0\0\0\0\0\0\xf8\x7f",  # NaN
        b"\x00\x00",
        b"\xf8\xff\xff\xff\x0f\x01",  # the largest field number
    )
    place = random.randrange(len(data) + 1)
    return data[:place] + random.choice(odd) + data[place:]


def _nested(random: random.Random, data: bytes) -> bytes:
    for _ in range(random.choice((3, 30, 120))):
        data = b"\x0a" + _varint(len(data)) + data
    return data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _value(random: random.Random, data: bytes) -> bytes:
    """A number or text where another one was, without harm to the frame around it."""
    changed = bytearray(data or b"\0")
    place = random.randrange(len(changed))
    odd = (0, 127, 255, 128, 1, 45, 47, 46)
    changed[place] = random.choice(odd)
    return bytes(changed)


MUTATIONS: tuple[Mutation, ...] = (_flip, _cut, _splice, _noise, _insert, _nested, _value)


def cases(number: int, seed: int) -> Iterator[tuple[str, bytes]]:
    chance, messages = (
        random.Random(seed),
        [
            *seeds().items(),
            extension_seed(),
            circuit_seed(),
            pruning_seed(),
            neurons_seed(),
            *concepts_seeds(),
            continuations_seed(),
        ],
    )
    assert {method for method, _ in messages} == set(POLICY)
    for case in range(number):
        method, message = messages[case % len(messages)]
        data = message.SerializeToString()
        for _ in range(chance.randint(1, 2)):
            data = chance.choice(MUTATIONS)(chance, data)
        yield method, data


def ask(channel: grpc.Channel, token: str, method: str, data: bytes) -> Code:
    call = channel.unary_stream(f"/{method}")
    metadata = [("authorization", f"Bearer {token}")]
    # A watch of health does not end by itself.
    patience = 0.2 if method.endswith("Health/Watch") else 20
    answers = call(data, metadata=metadata, timeout=patience)
    with suppress(grpc.RpcError):
        for _ in answers:
            pass
    code: Code = answers.code()
    assert code in FINE, (method, data, code, answers.details())
    return code


def run(server: SecuredServer, number: int, seed: int) -> Counter[str]:
    with server.channel() as channel, ThreadPoolExecutor(4) as pool:
        token = server.tokens["ada"]
        codes = pool.map(lambda case: ask(channel, token, *case), cases(number, seed))
        return Counter(code.name for code in codes)


def fuzz(server: SecuredServer, number: int, figures: Figures) -> None:
    # What a server needs once, it needs now. What generates text is loaded by a request that is right, which
    # mutations may leave none of.
    run(server, number // 2, seed=1)
    sampled = "pahq.v1.GenerationService/GenerateSamples"
    with server.channel() as channel:
        for message in (seeds()[sampled], circuit_seed()[1]):
            code = ask(channel, server.tokens["ada"], sampled, message.SerializeToString())
            assert code is Code.OK
    before = server.memory()
    codes = run(server, number, seed=2)
    growth = server.memory() - before
    with server.as_user("ada") as ada:
        ada.cancel_all()
    server.assert_alive()
    assert "a call failed" not in server.process.log()
    assert growth < GROWTH_MIB
    assert sum(codes.values()) == number
    assert codes["INVALID_ARGUMENT"] > number / 10
    figures(cases=number, growth_mib=round(growth, 1), **codes)


def test_mutated_messages(secured: SecuredServer, figures: Figures) -> None:
    fuzz(secured, SHORT, figures)


@pytest.mark.long
def test_many_mutated_messages(secured: SecuredServer, figures: Figures) -> None:
    fuzz(secured, FULL, figures)


@pytest.mark.parametrize("encrypted", [False, True])
def test_what_is_no_http(encrypted: bool, secured: SecuredServer) -> None:
    """Noise on the port itself, and inside of a connection that was encrypted."""
    chance = random.Random(3)
    host, _, port = secured.process.address.rpartition(":")
    context = ssl.create_default_context(cafile=str(secured.authority.cert))
    context.set_alpn_protocols(["h2"])
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for start in (b"", b"GET / HTTP/1.1\r\n\r\n", preface, preface + b"\0\0\0\4\0\0\0\0\0"):
        for _ in range(5):
            plain = socket.create_connection((host, int(port)), timeout=20)
            with (
                context.wrap_socket(plain, server_hostname="localhost") if encrypted else plain as connection
            ):
                connection.sendall(start + chance.randbytes(2000))
    secured.assert_alive()
