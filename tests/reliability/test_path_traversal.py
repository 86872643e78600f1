"""Strings of clients that look like paths: none of them leads to a file.

What Python does with paths is heard from inside the server (an audit hook). SQLite and safetensors open their
files without Python; for them, nothing may have changed on disk outside the data directory.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2_grpc
from pahq.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    jobs_pb2_grpc,
    methods_pb2,
    model_pb2_grpc,
    patching_pb2_grpc,
    server_pb2_grpc,
    task_pb2,
)

from pahq_server.demo import model_path

from .conftest import Figures
from .crashing import CrashingServer
from .secured import LIMITS
from .test_fuzz import seeds

STUBS = {
    "GenerationService": generation_pb2_grpc.GenerationServiceStub,
    "JobService": jobs_pb2_grpc.JobServiceStub,
    "ModelService": model_pb2_grpc.ModelServiceStub,
    "PatchingService": patching_pb2_grpc.PatchingServiceStub,
    "ServerService": server_pb2_grpc.ServerServiceStub,
    "Health": health_pb2_grpc.HealthStub,
}
MARK = "canary"
GENERATE = generation_pb2.GenerateSamplesRequest(
    model="demo",
    prompts=[task_pb2.Prompt(text="The dog")],
    parameters=methods_pb2.GenerateParameters(max_tokens=2),
)
# A string of a message: where it is, from the message on.
Slot = tuple[str, tuple[str | int, ...]]


def payloads(outside: Path) -> list[str]:
    """500 strings, all of which contain a mark."""
    targets = [f"{MARK}.txt", f"{MARK}/config.json", f"{MARK}.sqlite3", f"etc/{MARK}", f"{MARK}\0.json"]
    climbs = ["../" * n for n in (1, 2, 3, 8)] + ["..\\" * n for n in (1, 4)]
    climbs += ["..%2f" * 4, "%2e%2e/" * 4, "..%c0%af" * 3, "....//" * 4, ".../" * 4, "..;/" * 4, "．．/" * 4]
    roots = ["/", "//", "~/", "~root/", "file:///", "\\\\host\\share\\", "C:\\", "./", "", "/proc/self/cwd/"]
    roots += [
        "/proc/self/root/",
        "/dev/fd/",
        f"{outside}/",
        f"{outside}/data/../",
        "users/local/jobs/",
    ]
    roots += ["hf://", "$HOME/", "`pwd`/", "models--x--y/snapshots/", "\u202e/", "-", "--data-dir="]
    found = [
        root + climb + target for root, climb, target in itertools.product(roots, ["", *climbs], targets)
    ]
    return found[:: len(found) // 500][:500]


def slots(message: Message, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the strings of a message are."""
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            repeated = isinstance(getattr(message, field.name), str) is False
            yield (*before, field.name, 0) if repeated else (*before, field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            value = getattr(message, field.name)
            if isinstance(value, Message):
                if message.HasField(field.name):
                    yield from slots(value, (*before, field.name))
            else:
                for number, item in enumerate(value):
                    yield from slots(item, (*before, field.name, number))


def filled(message: Message, slot: tuple[str | int, ...], text: str) -> Message:
    """The message with a string in one place; a oneof of which it is part changes to it."""
    copy = type(message)()
    copy.CopyFrom(message)
    place = copy
    *way, last = slot
    if isinstance(last, int):
        *way, name = way
    for step in way:
        place = place[step] if isinstance(step, int) else getattr(place, step)
    if isinstance(last, int):
        del getattr(place, name)[:]
        getattr(place, name).append(text)
    else:
        setattr(place, last, text)
    return copy


def tree(folder: Path) -> dict[str, int]:
    """Every file below, with its time of change."""
    files = (Path(where) / name for where, _, names in os.walk(folder) for name in names)
    return {str(file): file.stat().st_mtime_ns for file in files}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("each", [2, pytest.param(1000, marks=pytest.mark.long)])
def test_no_string_leads_to_a_file(each: int, tmp_path: Path, figures: Figures) -> None:
    """Sends each of 500 strings in every place there is, or in the short form in so many in turn."""
    home = tmp_path / "home"
    data = home / "server" / "data"
    (home / MARK).mkdir(parents=True)
    (home / MARK / "config.json").write_text("{}")
    audit, messages = tmp_path / "audit", seeds()
    places = [
        (path, slot)
        for path, message in messages.items()
        if path.split("/")[0].split(".")[-1] in STUBS and path.rpartition("/")[2] != "Watch"
        for slot in slots(message)
    ]
    texts = payloads(home)
    codes: Counter[grpc.StatusCode] = Counter()
    with CrashingServer(data, audit=audit, options=LIMITS) as server:
        with grpc.insecure_channel(server.address) as channel:
            # What generates text is loaded with the first call.
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            assert len(list(stub.GenerateSamples(GENERATE))) == 3
            before, started = tree(home), audit.read_text("utf-8").count("\n")
            turn = itertools.cycle(places)
            sent = [(text, next(turn)) for text in texts for _ in range(min(each, len(places)))]
            for text, (path, slot) in sent:
                codes[send(channel, path, filled(messages[path], slot, text))] += 1
        assert server.process.poll() is None
        after = tree(home)
        assert "Traceback" not in server.log()
    changed = {file for file in before.keys() | after.keys() if before.get(file) != after.get(file)}
    assert all(Path(file).parent == data for file in changed), "files outside the data directory changed"
    opened = [json.loads(line) for line in audit.read_text("utf-8").splitlines()]
    assert any(str(data) in path for _, paths in opened[:started] for path in paths), "the hook hears"
    strange = {path for _, paths in opened[started:] for path in paths if not allowed(path, data)}
    assert not strange
    assert {slot[1][0] for slot in places} >= {"name", "request_id", "spec", "objective", "circuits"}
    assert codes[grpc.StatusCode.INTERNAL] == codes[grpc.StatusCode.UNKNOWN] == 0
    figures(strings=len(texts), places=len(places), calls=len(sent), opened_meanwhile=len(opened) - started)


def send(channel: grpc.Channel, path: str, message: Message) -> grpc.StatusCode:
    service, _, method = path.rpartition("/")
    call = getattr(STUBS[service.rpartition(".")[2]](channel), method)
    try:
        answer = call(message, timeout=60)
        if isinstance(answer, grpc.Call):
            with suppress(StopIteration):
                next(answer)
            answer.cancel()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def allowed(path: str, data: Path) -> bool:
    """Data, models, and the code of the server itself, parts of which are loaded when they are needed."""
    if MARK in path or "\0" in path or ".." in path:
        return False
    code = {sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), *sys.path[1:]}
    roots = [str(data), str(model_path()), "/proc/self", "/sys", "/dev/null", "/usr", "/etc/localtime", *code]
    return not path.startswith("/") or any(path.startswith(root) for root in roots if root)
