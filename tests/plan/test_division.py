"""How several workers share a machine: every byte is somebody's, and what does not fit is said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers.zoo import Zoo

from pahq_server import assembly
from pahq_server.assembly import divide
from pahq_server.cli import main
from pahq_server.config.server import ModelOptions, ServerConfig, WorkerOptions
from pahq_server.engine import devices
from pahq_server.plan.division import RAY_BYTES, RAY_HOST_BYTES, RAY_WORKER_BYTES, SERVER_BYTES, Division
from pahq_server.plan.planning import PROCESS_BYTES, DoesNotFitError, plan_models
from pahq_server.plan.text import as_json, text

from .test_planning import run

GIB = 1 << 30
HERE = Division(workers=3, joined=False, device="cpu", machine=16 * GIB, threads=2)


@pytest.fixture
def sources(zoo: Zoo) -> dict[str, str]:
    return {name: str(zoo.path(name)) for name in ("gpt2", "llama")}


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("machine", [4 * GIB, 16 * GIB + 1])
def test_workers_of_one_machine_get_equal_shares_of_what_server_and_ray_leave(
    workers: int, machine: int
) -> None:
    division = replace(HERE, workers=workers, machine=machine)
    beside = SERVER_BYTES + RAY_BYTES + workers * RAY_WORKER_BYTES
    assert division.server + division.ray == beside
    left = machine - beside - workers * division.share
    assert 0 <= left < workers


def test_a_host_of_a_cluster_has_one_worker_and_no_server() -> None:
    division = replace(HERE, joined=True)
    assert (division.on_this_device, division.server) == (1, 0)
    assert division.share == 16 * GIB - RAY_HOST_BYTES - RAY_WORKER_BYTES
    assert division.has_place


def test_a_machine_too_small_for_the_server_leaves_nothing() -> None:
    assert replace(HERE, machine=GIB // 2).share == 0


@pytest.mark.parametrize(
    ("gpus", "gpus_here", "workers", "share", "place"),
    [
        (1.0, 2, 2, 16 * GIB, True),
        (1.0, 2, 3, 16 * GIB, False),
        (0.5, 2, 4, 8 * GIB, True),
        (0.5, 2, 5, 8 * GIB, False),
        (0.4, 1, 2, 8 * GIB, True),  # a third one of .4 would be on two devices
        (0.4, 1, 3, 8 * GIB, False),
        (0.6, 2, 2, 16 * GIB, True),
    ],
)
def test_workers_on_gpus(gpus: float, gpus_here: int, workers: int, share: int, place: bool) -> None:
    division = replace(HERE, device="cuda", workers=workers, gpus=gpus, gpus_here=gpus_here)
    assert (division.share, division.has_place) == (share, place)
    assert replace(division, joined=True).has_place  # its devices are elsewhere


def test_a_worker_is_planned_as_a_server_on_its_share(sources: dict[str, str]) -> None:
    shared = plan_models(sources, division=HERE, machine=1)
    alone = plan_models(sources, machine=HERE.share)
    assert replace(shared, division=None) == alone
    assert shared.fits
    assert PROCESS_BYTES + shared.weights + shared.memory <= HERE.share


def test_workers_fit_to_the_byte(sources: dict[str, str]) -> None:
    needed = plan_models(sources, GIB, machine=0).serving
    beside = HERE.server + HERE.ray
    machine = beside + 3 * needed
    assert plan_models(sources, GIB, division=replace(HERE, machine=machine)).fits
    tight = plan_models(sources, GIB, division=replace(HERE, machine=machine - 1))
    assert not tight.fits
    assert "this does NOT fit into a worker's" in text(tight)


def test_the_plan_says_what_one_worker_gets(sources: dict[str, str]) -> None:
    found = text(plan_models(sources, GIB, division=HERE))
    assert "this fits into a worker's 4.9 GiB" in found
    assert "3 workers, of which all this is one: an equal part of the machine's 16.0 GiB" in found
    assert "and 2 threads" in found
    assert "all together: " in found
    joined = text(plan_models(sources, division=replace(HERE, joined=True, threads=None, workers=1)))
    assert "1 worker, of which all this is one: a host like this one, with 16.0 GiB" in joined
    assert "as many threads as its host has cores" in joined
    assert "all together" not in joined


def test_gpus_that_are_not_there_do_not_fit(sources: dict[str, str]) -> None:
    division = replace(HERE, device="cuda", gpus=1.0, gpus_here=1)
    found = plan_models(sources, GIB, device="cuda:0", division=division)
    assert not found.fits
    assert "the machine's GPUs have room for 1 such workers" in text(found)


def test_json_has_the_share_and_where_it_comes_from(sources: dict[str, str]) -> None:
    found = as_json(plan_models(sources, division=HERE))
    assert found["machine_bytes"] == HERE.share
    assert found["workers"] == {
        "number": 3,
        "joined": False,
        "threads": 2,
        "gpus": 0.0,
        "device_bytes": 16 * GIB,
        "server_bytes": SERVER_BYTES,
        "ray_bytes": RAY_BYTES + 3 * RAY_WORKER_BYTES,
        "on_device": 3,
        "share_bytes": HERE.share,
        "has_place": True,
    }
    assert json.loads(json.dumps(found)) == found


def test_the_options_of_a_server_say_how_it_is_divided() -> None:
    device = devices.find("cpu")
    assert divide(WorkerOptions(), device, 16 * GIB, 5) is None
    assert divide(WorkerOptions(workers=3), device, 16 * GIB, 2) == HERE
    joined = divide(WorkerOptions(workers=3, ray_address="head:6379"), device, 16 * GIB, None)
    assert joined == replace(HERE, joined=True, threads=None)


def test_workers_that_share_a_gpu_share_all_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "total_bytes", lambda device: 80 * GIB)
    gpu, half = torch.device("cuda", 0), WorkerOptions(workers=2, gpus_per_worker=0.5)
    shared = divide(half, gpu, 30 * GIB, gpus_here=1)  # the first worker has taken the rest
    assert shared is not None
    assert (shared.share, shared.has_place) == (40 * GIB, True)
    whole = divide(WorkerOptions(workers=2), gpu, 30 * GIB)
    assert whole is not None
    assert (whole.share, whole.has_place) == (30 * GIB, True)


def test_a_server_with_more_workers_than_memory_loads_nothing(
    sources: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(assembly, "load", fail)
    config = ServerConfig(
        ModelOptions(model=tuple(sources.items())), workers=WorkerOptions(workers=5), machine_bytes=4 * GIB
    )
    with pytest.raises(DoesNotFitError, match="5 workers, of which all this is one"):
        run(config)


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "machine_bytes", lambda: 16 * GIB)
    options = ["plan", "--gflops", "100", "--workers", "3"]
    assert main([*options, "--threads", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["workers"]["share_bytes"] == HERE.share
    assert main([*options, "--memory", "5GiB"]) == 1
    assert "this does NOT fit into a worker's" in capsys.readouterr().out
    assert main([*options, "--gpus-per-worker", "1"]) == 2
    assert "gpus_per_worker: needs --device cuda" in capsys.readouterr().err
