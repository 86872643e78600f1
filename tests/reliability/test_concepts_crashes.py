"""``kill -9`` of a server that learns concepts: the codebook is that of no kill, and no files are left."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import jobs_pb2_grpc

from pahq_client import AssignedConcepts, Client, Codebook, JobHandle, Task
from pahq_client._requests import texts_spec
from pahq_client.assigning import AssignRequest

from .crashing import CrashingServer, wait_for

DRAW = np.random.default_rng(0)
TASK = Task(clean=[DRAW.integers(1, 200, 40).tolist() for _ in range(40)])


def submitted(client: Client) -> JobHandle:
    parameters: dict[str, Any] = {"low": 1, "high": 2, "codes": 20, "steps": 120, "seed": 3}
    return client.submit("demo", TASK, method="concepts", parameters={**parameters, "decoder_layers": 2})


def test_codebooks_outlive_the_server(tmp_path: Path) -> None:
    draw, name = random.Random(7), ""
    with CrashingServer(tmp_path / "undisturbed") as server, Client(server.address) as client:
        begun = time.monotonic()
        undisturbed = submitted(client).result()
        seconds = time.monotonic() - begun
    for _ in range(2):
        with CrashingServer(tmp_path / "data") as server, Client(server.address) as client:
            job = client.job(name) if name else submitted(client)
            name = job.name
            wait_for(lambda: job.state.name != "QUEUED", "the start of the job")  # noqa: B023
            time.sleep(draw.uniform(0, seconds / 2))
            server.kill()
    with CrashingServer(tmp_path / "data") as server, Client(server.address) as client:
        disturbed = client.job(name).result()
    assert isinstance(undisturbed, Codebook)
    assert isinstance(disturbed, Codebook)
    assert disturbed.codes.tobytes() == undisturbed.codes.tobytes()
    assert disturbed.history.tobytes() == undisturbed.history.tobytes()
    assert disturbed.concepts == undisturbed.concepts
    assert list((tmp_path / "data" / "files").iterdir()) == []


def test_codes_of_texts_outlive_the_server(tmp_path: Path) -> None:
    texts = [DRAW.integers(1, 200, 60).tolist() for _ in range(2000)]
    with CrashingServer(tmp_path / "data") as server, Client(server.address) as client:
        codebook = submitted(client).result()
        assert isinstance(codebook, Codebook)
        begun = time.monotonic()
        undisturbed = client.assign_concepts("demo", codebook, texts)
        seconds = time.monotonic() - begun
    with CrashingServer(tmp_path / "other") as server, Client(server.address) as client:
        message = texts_spec(
            "demo",
            [tuple(text) for text in texts],
            "fp32",
            assign_concepts=AssignRequest("demo", codebook, texts).checked().parameters(),
        )
        with grpc.insecure_channel(server.address) as channel:
            name = jobs_pb2_grpc.JobServiceStub(channel).CreateJob(pb.CreateJobRequest(spec=message)).job.name
        wait_for(lambda: client.job(name).state.name != "QUEUED", "the start of the job")
        time.sleep(seconds / 3)
        server.kill()
    with CrashingServer(tmp_path / "other") as server, Client(server.address) as client:
        disturbed = client.job(name).result()
    assert isinstance(disturbed, AssignedConcepts)
    for one, other in zip(disturbed, undisturbed, strict=True):
        assert one.codes.tobytes() == other.codes.tobytes()
        assert one.distances.tobytes() == other.distances.tobytes()
