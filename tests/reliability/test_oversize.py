"""Messages that are too large, or would be when unpacked: refused before they take memory."""

from __future__ import annotations

import gzip
import time
import zlib
from statistics import median

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from pahq.v1 import generation_pb2, model_pb2, patching_pb2, server_pb2, task_pb2
from pahq.v1 import jobs_pb2 as pb

from .conftest import Figures
from .http2 import RawClient, Stream, framed
from .secured import SecuredServer, evaluation

LIMIT_MIB = 16
MIB = 1 << 20
METHODS = ("CreateJob", "WatchJob", "EvaluateCircuits")  # one answer, a stream of them, computing
REFUSALS = {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], grpc.StatusCode.UNIMPLEMENTED.value[0]}

# Bytes of a call, and how they are said to be compressed.
ATTACKS: dict[str, tuple[bytes, str]] = {
    "one byte too many": (framed(bytes((LIMIT_MIB << 20) + 1)), "identity"),
    "64 MiB": (framed(bytes(64 * MIB)), "identity"),
    "2 GiB, said": (framed(b"x" * 100_000, length=(1 << 31) - 1), "identity"),
    "4 GiB, said": (framed(b"x" * 100_000, length=(1 << 32) - 1), "identity"),
    "gzip bomb": (framed(gzip.compress(bytes(1 << 30), 9), compressed=True), "gzip"),
    "deflate bomb": (framed(zlib.compress(bytes(1 << 30), 9), compressed=True), "deflate"),
    "gzip of a bomb": (framed(gzip.compress(gzip.compress(bytes(1 << 28))), compressed=True), "gzip"),
}


def attack(client: RawClient, method: str, name: str) -> tuple[Stream, float]:
    """What came, and after how many seconds."""
    data, encoding = ATTACKS[name]
    begin = time.monotonic()
    stream = client.open(f"pahq.v1.JobService/{method}", grpc_encoding=encoding)
    # The rest of what was said to come does not: a refusal must not wait for it.
    client.send(stream, data, end=False)
    return client.wait(stream), time.monotonic() - begin


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_too_large_takes_no_memory(name: str, secured: SecuredServer, figures: Figures) -> None:
    with RawClient(secured) as client, secured.peak() as peak:
        found = [attack(client, method, name)[0] for method in METHODS]
    for stream in found:
        assert stream.status in REFUSALS, stream
    secured.assert_alive()
    assert peak[0] <= 2 * LIMIT_MIB
    figures(peak_mib=round(peak[0], 1))


@pytest.mark.long
def test_what_is_too_large_is_refused_at_once(secured: SecuredServer, figures: Figures) -> None:
    slowest = {}
    for name in ATTACKS:
        with RawClient(secured) as client:
            slowest[name] = max(
                median(attack(client, method, name)[1] for _ in range(5)) for method in METHODS
            )
    figures(**{f"seconds of {name!r}": round(taken, 3) for name, taken in slowest.items()})
    assert max(slowest.values()) < 1.0


def test_strangers_message_is_read(secured: SecuredServer, figures: Figures) -> None:
    """A caller who is not known can send what he likes: it is not even taken in."""
    data = framed(bytes(LIMIT_MIB * MIB - 5))
    stranger = RawClient(secured)
    stranger._token = "pahq_nobody"
    with stranger as client, secured.peak() as peak:
        for _ in range(20):
            stream = client.open("pahq.v1.JobService/CreateJob")
            client.send(stream, data, end=False)
            assert client.wait(stream).status == grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert peak[0] <= 2 * LIMIT_MIB
    figures(peak_mib=round(peak[0], 1))


def test_a_compressed_flag_without_an_encoding(secured: SecuredServer) -> None:
    bomb = framed(gzip.compress(bytes(1 << 28)), compressed=True)
    with RawClient(secured) as client, secured.peak() as peak:
        for encoding in ("identity", "br", "gzip, gzip", ""):
            stream = client.open("pahq.v1.JobService/GetJob", grpc_encoding=encoding)
            client.send(stream, bomb)
            assert client.wait(stream).status not in (None, 0)
    secured.assert_alive()
    assert peak[0] <= 2 * LIMIT_MIB


def test_a_message_that_never_comes(secured: SecuredServer) -> None:
    """Whoever does not send what was announced holds a call, and nothing else."""
    with RawClient(secured) as client, secured.peak() as peak:
        for _ in range(50):
            stream = client.open("pahq.v1.JobService/GetJob")
            client.send(stream, framed(b"x" * 10, length=LIMIT_MIB * MIB), end=False)
        secured.assert_alive()
    assert peak[0] <= 2 * LIMIT_MIB
    secured.assert_alive()


def test_calls_take_no_raw_bytes_but_bits_and_codebooks() -> None:
    """Tensors would be bytes with a shape beside them, to be checked against each other.

    For bits of edges and nodes the shape follows from the served model, which the graph or layout beside them
    must equal. A codebook's bytes are checked against its width (tests/core/test_codebooks.py).
    """
    seen: set[str] = set()
    raw: set[str] = set()

    def walk(message: Descriptor) -> None:
        if message.full_name in seen:
            return
        seen.add(message.full_name)
        for field in message.fields:
            if field.type == FieldDescriptor.TYPE_BYTES:
                raw.add(field.full_name)
            if field.message_type is not None:
                walk(field.message_type)

    for file in (pb, generation_pb2, model_pb2, patching_pb2, server_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                walk(method.input_type)
    assert "pahq.v1.TokenIds" in seen
    assert raw == {
        "pahq.v1.EdgeSet.bits",
        "pahq.v1.NodeSet.bits",
        "pahq.v1.ConceptCodebook.codes",
        "pahq.v1.ConceptCodebook.encoder",
    }


SHAPES: dict[str, tuple[task_pb2.PromptTask, str]] = {
    "more clean than corrupted": (
        task_pb2.PromptTask(
            clean=[task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=[1, 2]))] * 3,
            corrupted=[task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=[1, 3]))] * 2,
        ),
        "corrupted",
    ),
    "pairs of different length": (
        task_pb2.PromptTask(
            clean=[task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=[1, 2]))],
            corrupted=[task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=[1, 2, 3]))],
        ),
        "corrupted",
    ),
    "positions that no prompt has": (
        task_pb2.PromptTask(
            clean=[task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=[1, 2]))],
            corrupted=[task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=[1, 3]))],
            positions=task_pb2.Positions(indices=[1 << 40]),
        ),
        "positions",
    ),
    "longer than the model reads": (
        task_pb2.PromptTask(clean=[task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=[1] * 1_000_000))]),
        "clean",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_do_not_fit(name: str, secured: SecuredServer) -> None:
    prompts, field = SHAPES[name]
    request = evaluation(task=task_pb2.Task(prompts=prompts))
    with secured.as_user("ada") as ada, secured.peak() as peak, pytest.raises(grpc.RpcError) as caught:
        ada.ask(ada.patching.EvaluateCircuits, request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert field in caught.value.details()  # type: ignore[attr-defined]
    assert peak[0] <= 2 * LIMIT_MIB
