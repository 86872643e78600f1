"""What a server's config says of itself and hands on to the parts of the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from pahq_server.config.server import (
    ComputeOptions,
    DataDirOptions,
    ListenOptions,
    ModelOptions,
    QuotaOptions,
    ServerConfig,
    SessionOptions,
    SharingOptions,
    StorageOptions,
    WorkerOptions,
    state_directory,
    wants_traces,
)
from pahq_server.core.errors import InvalidRequestError
from pahq_server.demo import model_path
from pahq_server.jobs.quotas import Quotas

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.parametrize(
    ("environment", "traces"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
def test_the_environment_asks_for_traces(environment: dict[str, str], traces: bool) -> None:
    assert wants_traces(environment) is traces


def test_the_built_in_model_is_always_served_and_first() -> None:
    models = ModelOptions(model=(("mine", "/models/mine"), ("gpt2", "gpt2")))
    assert list(models.sources.items()) == [
        ("demo", str(model_path())),
        ("mine", "/models/mine"),
        ("gpt2", "gpt2"),
    ]


@pytest.mark.parametrize(
    ("weights", "policy"), [("fp32", None), ("bf16", "bf16"), ("int8", "pahq-int8"), ("fp8", "pahq-fp8")]
)
def test_weights_are_rounded_by_a_policy(weights: str, policy: str | None) -> None:
    assert ModelOptions(weights=weights).weight_policy == policy


def test_limits_reach_the_parts_they_are_for() -> None:
    connections = ListenOptions(max_connections=7, idle_timeout=5.0).limits
    assert (connections.connections, connections.idle_s) == (7, 5.0)
    sessions = SessionOptions(max_sessions=3, max_user_sessions=2, session_timeout=9.0).limits
    assert (sessions.sessions, sessions.user_sessions, sessions.idle_s) == (3, 2, 9.0)
    quotas = QuotaOptions(max_running_jobs=1, max_queued_jobs=2, max_prompt_tokens=3, max_stored_results=4)
    assert quotas.quotas == Quotas(running_jobs=1, queued_jobs=2, prompt_tokens=3, stored_results=4)
    assert QuotaOptions().quotas == Quotas()


def test_what_is_stored() -> None:
    kept = StorageOptions(Path("/data"), result_cache=False, keep_jobs=5, keep_days=0.5).config
    assert (kept.directory, kept.reuse) == (Path("/data"), False)
    assert (kept.retention.jobs, kept.retention.seconds) == (5, 43_200.0)
    assert StorageOptions(Path("/data")).config.retention.seconds is None
    assert StorageOptions(Path("/data"), ephemeral=True).config.directory is None


def test_the_data_directory_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_directory({"XDG_STATE_HOME": "/state"}) == Path("/state/pahq")
    assert state_directory({"XDG_STATE_HOME": ""}) == Path.home() / ".local/state/pahq"
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    assert DataDirOptions().data_dir == ServerConfig().storage.data_dir == Path("/elsewhere/pahq")


def test_one_worker_is_the_servers_own_process() -> None:
    for options in (WorkerOptions(), WorkerOptions(workers=1)):
        assert (options.count, options.remote, options.on_this_machine) == (1, False, True)
    config = ServerConfig()
    assert (config.slots, config.window, config.threads) == (4, 32, None)


@pytest.mark.parametrize(
    ("options", "here"),
    [
        (WorkerOptions(workers=3), True),
        (WorkerOptions(workers=1, ray_address="local"), True),
        (WorkerOptions(workers=3, ray_address="auto"), False),
        (WorkerOptions(workers=1, ray_address="head:6379"), False),
    ],
)
def test_other_workers_are_processes_of_their_own(options: WorkerOptions, here: bool) -> None:
    assert options.remote
    assert options.on_this_machine is here
    options.check("cpu")
    assert options.gpus("cpu") == 0.0


def test_slots_and_window_grow_with_the_workers_unless_they_are_given() -> None:
    workers = WorkerOptions(workers=3)
    grown = ServerConfig(workers=workers)
    assert (grown.slots, grown.window) == (12, 96)
    given = ServerConfig(workers=workers, sharing=SharingOptions(slots=5), compute=ComputeOptions(window=7))
    assert (given.slots, given.window) == (5, 7)


@pytest.mark.parametrize(
    ("options", "given", "threads"),
    [
        (WorkerOptions(), None, None),
        (WorkerOptions(), 3, 3),
        (WorkerOptions(workers=2), None, 4),
        (WorkerOptions(workers=3), None, 2),
        (WorkerOptions(workers=9), None, 1),
        (WorkerOptions(workers=2), 3, 3),
        (WorkerOptions(workers=1, ray_address="local"), None, 8),
        (WorkerOptions(workers=2, ray_address="head:6379"), None, None),
        (WorkerOptions(workers=2, ray_address="head:6379"), 5, 5),
    ],
)
def test_workers_of_one_machine_divide_its_cores(
    options: WorkerOptions, given: int | None, threads: int | None
) -> None:
    assert options.threads(given, cores=8) == threads


def test_each_worker_has_a_gpu_unless_told_otherwise() -> None:
    assert WorkerOptions(workers=2).gpus("cuda") == 1.0
    shared = WorkerOptions(workers=2, gpus_per_worker=0.5)
    shared.check("cuda")
    assert shared.gpus("cuda") == 0.5


@pytest.mark.parametrize(
    ("options", "device", "field", "message"),
    [
        (WorkerOptions(ray_address="head:6379"), "cpu", "ray_address", "needs --workers"),
        (WorkerOptions(gpus_per_worker=1.0), "cuda", "gpus_per_worker", "needs --workers 2 or more"),
        (WorkerOptions(workers=2, gpus_per_worker=1.0), "cpu", "gpus_per_worker", "needs --device cuda"),
        (WorkerOptions(workers=2), "cuda:1", "device", "'cuda:1' names one device"),
        (WorkerOptions(workers=1, ray_address="auto"), "cuda:0", "device", "names one device"),
    ],
)
def test_workers_that_cannot_be(options: WorkerOptions, device: str, field: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as raised:
        options.check(device)
    assert raised.value.field == field
    config = ServerConfig(ModelOptions(device=device), workers=options)
    assert config.refusal() == str(raised.value)
