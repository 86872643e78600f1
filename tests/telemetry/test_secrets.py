"""Whatever is logged, and however much: prompts and tokens are not in it."""

from __future__ import annotations

import base64
import json
import re
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from e2e.process import ServerProcess
from helpers.scrape import scrape
from pahq.v1 import discovery_pb2 as pb
from pahq.v1 import discovery_pb2_grpc, task_pb2

from pahq_client import Client, PahqError, Task
from pahq_server.cli import main
from telemetry.test_server import metrics_address

MARK = "Zanzibar"  # no name and no word of the demo's corpus
WRONG_TOKEN = "pahq_wrong_Zanzibar_secret"
PAIR = {
    "clean": [" When Mary and John went, John gave it to"],
    "corrupted": [" When Mary and John went, Mary gave it to"],
}


def marked(task: dict[str, list[str]]) -> Task:
    return Task(**{name: [f"{text} {MARK}" for text in texts] for name, texts in task.items()})


def test_no_prompt_and_no_token_is_ever_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(tmp_path / "data")
    assert main(["token", "create", "ada", "--data-dir", data]) == 0
    token = capsys.readouterr().out.strip()
    options = ("--data-dir", data, "--auth", "tokens", "--log-level", "debug", "--log-format", "json")
    with ServerProcess(None, *options, "--metrics-listen", "127.0.0.1:0") as server:
        name = _use(server.address, token)
        metrics = str(scrape(metrics_address(server)))
        server.stop()
        log = server.log()
    assert name in log, "the job is named, so this reads the right log"
    for secret in (
        token,
        token[-20:],
        WRONG_TOKEN,
        MARK,
        "gave it to",
        base64.b64encode(MARK.encode()).decode(),
    ):
        assert secret not in log
        assert secret not in metrics
    assert "ada" not in metrics
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    assert any(line.get("job") == name and line.get("user") == "ada" for line in lines)
    calls = [line for line in lines if line["message"].startswith("call ended")]
    assert {"pahq.v1.DiscoveryService/CreateDiscovery"} <= {line["method"] for line in calls}
    assert all(re.fullmatch(r"[\w.-]+", line["request_id"]) for line in calls)


def _use(address: str, token: str) -> str:
    """A discovery that works, and requests that fail in many ways. Returns the discovery's name."""
    with Client(address, token=token) as client:
        job = client.submit("demo", marked(PAIR), threshold=0.5)
        job.result(timeout=120)
        client.evaluate("demo", marked(PAIR), ["m3->logits"])
        uneven = {"clean": PAIR["clean"], "corrupted": [" short"]}
        answers = PAIR | {"answers": ["two words"], "wrong_answers": ["other words"]}
        for task in (uneven, answers):
            with suppress(PahqError):
                client.submit("demo", marked(task), threshold=0.5).result(timeout=120)
        for model, edges in (("demo", [MARK]), (MARK, ["m3->logits"])):
            with suppress(PahqError):
                client.evaluate(model, marked(PAIR), edges)
        with suppress(PahqError):
            client.job(f"users/ada/discoveries/{MARK}").result(timeout=5)
    with Client(address, token=WRONG_TOKEN) as client, suppress(PahqError):
        client.submit("demo", marked(PAIR), threshold=0.5)
    _send_odd_messages(address, token)
    return job.name


def _send_odd_messages(address: str, token: str) -> None:
    """What no client of ours sends."""
    metadata = (
        ("authorization", f"Bearer {token}"),
        ("x-request-id", f"{MARK} {token}"),
        ("pahq-version", MARK),
    )
    prompts = task_pb2.PromptTask(clean=[task_pb2.Prompt(text=MARK)], corrupted=[task_pb2.Prompt(text=MARK)])
    measurement = pb.Measurement(model="demo", task=task_pb2.Task(prompts=prompts), metric=MARK)
    request = pb.CreateDiscoveryRequest(spec=pb.DiscoverySpec(measurement=measurement, method=MARK))
    with grpc.insecure_channel(address) as channel:
        stub = discovery_pb2_grpc.DiscoveryServiceStub(channel)
        for extra in ((), metadata[:1], metadata[:2], metadata):
            with suppress(grpc.RpcError):
                stub.CreateDiscovery(request, metadata=extra, timeout=30)
        raw = channel.unary_unary("/pahq.v1.DiscoveryService/CreateDiscovery")
        with suppress(grpc.RpcError):
            raw(b"\xff" + MARK.encode() + request.SerializeToString()[:20], metadata=metadata[:1], timeout=30)
        with suppress(grpc.RpcError):
            channel.unary_unary(f"/{MARK}/{MARK}")(b"", metadata=metadata[:1], timeout=30)
