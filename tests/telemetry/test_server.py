"""What a real server process tells: what happened to whom, and never prompts or tokens."""

from __future__ import annotations

import base64
import json
import re
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import grpc
import pytest
from e2e.process import ServerProcess
from helpers.scrape import Samples, scrape, value
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import jobs_pb2_grpc, methods_pb2, task_pb2

from pahq_client import Circuit, Client, PahqError, Task
from pahq_server.cli import main

MARK = "Zanzibar"  # no name and no word of the demo's corpus
WRONG_TOKEN = "pahq_wrong_Zanzibar_secret"
PAIR = {
    "clean": [" When Mary and John went, John gave it to"],
    "corrupted": [" When Mary and John went, Mary gave it to"],
}
CREATE = "pahq.v1.JobService/CreateJob"


@dataclass(frozen=True)
class Told:
    """What a server told after one discovery, and after calls that failed in many ways."""

    token: str
    name: str
    circuit: Circuit
    metrics: Samples
    metrics_at_the_end: Samples
    lines: list[dict[str, Any]]
    log: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    data: Path = tmp_path_factory.mktemp("data")
    printed = StringIO()
    with redirect_stdout(printed):
        assert main(["token", "create", "ada", "--data-dir", str(data)]) == 0
    token = printed.getvalue().strip()
    options = ("--data-dir", str(data), "--auth", "tokens", "--log-level", "debug", "--log-format", "json")
    with ServerProcess(None, *options, "--metrics-listen", "127.0.0.1:0") as server:
        with Client(server.address, token=token) as client:
            job = client.submit("demo", marked(PAIR), threshold=0.5)
            circuit = job.result(timeout=120)
        metrics = scrape(_metrics_address(server))
        _fail_in_many_ways(server.address, token)
        end = scrape(_metrics_address(server))
        server.stop()
        log = server.log()
    return Told(token, job.name, circuit, metrics, end, [json.loads(line) for line in log.splitlines()], log)


def _metrics_address(server: ServerProcess) -> str:
    found = re.search(r"metrics on http://([^/]+)/metrics", server.log())
    assert found, server.log()
    return found[1]


def marked(task: dict[str, list[str]]) -> Task:
    return Task(**{name: [f"{text} {MARK}" for text in texts] for name, texts in task.items()})


def test_a_discovery_shows_in_the_metrics(told: Told) -> None:
    now = told.metrics
    assert value(now, "pahq_jobs", state="succeeded") == 1
    assert value(now, "pahq_jobs", state="queued") == 0
    assert value(now, "pahq_jobs_ended_total", state="succeeded") == 1
    assert value(now, "pahq_queue_wait_seconds_count") == 1
    assert value(now, "pahq_evaluations_total") == told.circuit.num_evaluations
    passes = sum(value(now, "pahq_search_passes_total", outcome=name) for name in ("accepted", "wasted"))
    # Also the full model and the empty circuit are computed.
    assert told.circuit.num_evaluations <= passes < value(now, "pahq_batch_passes_sum")
    assert value(now, "pahq_batch_duration_seconds_sum") > 0
    assert value(now, "pahq_rpc_duration_seconds_count", method=CREATE, code="OK") == 1
    assert value(now, "pahq_rpcs_in_flight", method=CREATE) == 0
    assert value(now, "pahq_watchers") == 0
    assert value(now, "pahq_data_dir_free_bytes") > 0
    assert value(now, "pahq_workers", state="ready") == value(now, "pahq_available") == 1
    assert value(now, "pahq_worker_restarts_total", worker="0") == 0


def test_refusals_show_in_the_metrics(told: Told) -> None:
    now = told.metrics_at_the_end
    assert value(now, "pahq_rejections_total", reason="auth") >= 2
    assert value(now, "pahq_rpc_duration_seconds_count", method=CREATE, code="UNAUTHENTICATED") >= 2
    assert value(now, "pahq_rpc_duration_seconds_count", method=CREATE, code="INVALID_ARGUMENT") >= 2


def test_lines_say_which_call_and_job_they_are_about(told: Told) -> None:
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in told.lines)
    assert any(line.get("job") == told.name and line.get("user") == "ada" for line in told.lines)
    calls = [line for line in told.lines if line["message"].startswith("call ended")]
    assert CREATE in {line["method"] for line in calls}
    assert all(re.fullmatch(r"[\w.-]+", line["request_id"]) for line in calls)


def test_no_prompt_and_no_token_is_told(told: Told) -> None:
    assert told.name in told.log, "the job is named, so this reads the right log"
    encoded = base64.b64encode(MARK.encode()).decode()
    for secret in (told.token, told.token[-20:], WRONG_TOKEN, MARK, "gave it to", encoded):
        assert secret not in told.log
        assert secret not in str(told.metrics_at_the_end)
    assert "ada" not in str(told.metrics_at_the_end)


def _fail_in_many_ways(address: str, token: str) -> None:
    with Client(address, token=token) as client:
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
            client.job(f"users/ada/jobs/{MARK}").result(timeout=5)
    with Client(address, token=WRONG_TOKEN) as client, suppress(PahqError):
        client.submit("demo", marked(PAIR), threshold=0.5)
    _send_odd_messages(address, token)


def _send_odd_messages(address: str, token: str) -> None:
    """What no client of ours sends."""
    metadata = (
        ("authorization", f"Bearer {token}"),
        ("x-request-id", f"{MARK} {token}"),
        ("pahq-version", MARK),
    )
    prompts = task_pb2.PromptTask(clean=[task_pb2.Prompt(text=MARK)], corrupted=[task_pb2.Prompt(text=MARK)])
    objective = pb.Objective(model="demo", task=task_pb2.Task(prompts=prompts), metric=MARK)
    method = methods_pb2.ExtensionParameters(method=MARK)
    request = pb.CreateJobRequest(spec=pb.JobSpec(objective=objective, extension=method))
    with grpc.insecure_channel(address) as channel:
        stub = jobs_pb2_grpc.JobServiceStub(channel)
        for extra in ((), metadata[:1], metadata[:2], metadata):
            with suppress(grpc.RpcError):
                stub.CreateJob(request, metadata=extra, timeout=30)
        raw = channel.unary_unary("/pahq.v1.JobService/CreateJob")
        with suppress(grpc.RpcError):
            raw(b"\xff" + MARK.encode() + request.SerializeToString()[:20], metadata=metadata[:1], timeout=30)
        with suppress(grpc.RpcError):
            channel.unary_unary(f"/{MARK}/{MARK}")(b"", metadata=metadata[:1], timeout=30)
