"""Models on other devices than the CPU: simulated, and real where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.jobs import SPECS, Spec
from helpers.simulated import simulated_device
from helpers.zoo import NAMES, Zoo

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import Objective, Work
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.operations import ScorePasses
from pahq_server.core.task import PromptTask
from pahq_server.engine import devices
from pahq_server.engine.backends import make_backend
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.models.architecture import Model
from pahq_server.models.building import ToDevice, cast
from pahq_server.models.folding import FOLDING, fold
from pahq_server.models.loading import LoadedModel, load
from pahq_server.models.streaming import load_rounded
from pahq_server.precision.policy import POLICIES

on_cuda = pytest.param(
    "cuda:0", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
)


# How far a policy's scores may be from the CPU's: kernels sum in other orders and formats.
TOLERANCES = {"bf16": 5e-2, "pahq-int8": 1e-4, "pahq-int8-weight": 1e-4, "pahq-fp8": 1e-2}


@pytest.fixture(params=["simulated", on_cuda])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param != "simulated":
        yield torch.device(request.param)
        return
    with simulated_device() as device:
        yield device


def backend_on(device: torch.device | str, model: Model, policy: str) -> SparseBackend:
    placed = cast(fold(model), model.dtype, device)
    memory = DeviceMemory(1 << 27, 4096, device)
    return SparseBackend(placed, memory, b"test", QuantizedModel.of(placed, POLICIES[policy]))


@pytest.mark.parametrize("spec", SPECS[:6], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_literal_twins(device: torch.device, zoo: Zoo, name: str, spec: Spec) -> None:
    model, passes = zoo[name], spec.passes(zoo[name], 1)[:30:3]
    job = spec.open(backend_on(device, model, "fp32"), model)
    twin = LiteralExecutor(
        model, model.architecture.graph(spec.kv), spec.task(model), spec.metric, spec.ablation
    )
    assert np.allclose(job.score(passes), twin.score(passes), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("policy", list(TOLERANCES))
@pytest.mark.parametrize("name", ["gpt2", "llama", "hooked attention only"])
def test_policies_give_what_they_give_on_the_cpu(
    device: torch.device, zoo: Zoo, name: str, policy: str
) -> None:
    model, spec = cast(zoo[name], torch.float32), SPECS[0]
    passes = spec.passes(model, 1)[:30:5]
    found, expected = (
        spec.open(backend_on(place, model, policy), model).score(passes) for place in (device, "cpu")
    )
    assert np.allclose(found, expected, rtol=TOLERANCES[policy], atol=1e-6)


@pytest.mark.parametrize("policy", ["fp32", "bf16", "pahq-int8", "pahq-fp8"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "hooked attention only"])
def test_a_score_has_the_same_bits_in_any_company(
    device: torch.device, zoo: Zoo, name: str, policy: str
) -> None:
    """Passes alone, all passes of a job, and jobs that differ in everything."""
    model = cast(zoo[name], torch.float32)
    backend = backend_on(device, model, policy)
    jobs = [(spec.open(backend, model), spec.passes(model, 2)[:24:4]) for spec in SPECS[:5]]
    together = backend.score(jobs)
    for (job, passes), found in zip(jobs, together, strict=True):
        assert job.score(passes) == found
        assert [job.score([patched_pass])[0] for patched_pass in passes] == found


@pytest.mark.parametrize("precision", ["fp32", "pahq-int8"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_rounded_models(device: torch.device, zoo: Zoo, name: str, precision: str) -> None:
    """Weights in full precision come from files."""
    source, spec = str(zoo.path(name)), SPECS[0]

    def scores(loaded: LoadedModel, place: torch.device | str) -> list[float]:
        backend = make_backend(loaded, "sparse", precision, DeviceMemory(1 << 27, 4096, place), b"test")
        job = spec.open(backend, loaded.model)  # type: ignore[arg-type]
        found: list[float] = job.score(spec.passes(loaded.model, 1)[:30:5])
        return found

    rounded = load_rounded(source, POLICIES["pahq-int8"], device)
    assert rounded.model.device == device
    found, expected = scores(rounded, device), scores(load(source, FOLDING), "cpu")
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("policy", ["paper", "rtn-int8", "rtn-fp8", "rtn-int8-weight"])
def test_literal_policies(device: torch.device, zoo: Zoo, policy: str) -> None:
    source, spec = str(zoo.path("llama")), SPECS[0]

    def scores(loaded: LoadedModel) -> list[float]:
        backend = make_backend(loaded, "sparse", policy, DeviceMemory(1 << 27), b"test")
        job = spec.open(backend, loaded.model)  # type: ignore[arg-type]
        found: list[float] = job.score(spec.passes(loaded.model, 1)[:30:5])
        return found

    found, expected = scores(load(source, ToDevice(FOLDING, device))), scores(load(source, FOLDING))
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_the_engine_serves_models_where_they_are(device: torch.device, zoo: Zoo) -> None:
    """Prepared, opened and scored as the server does it, and what it says about memory."""
    source = str(zoo.path("gpt2"))
    task = PromptTask(((1, 2, 3), (4, 5)), ((1, 9, 3), (4, 7)))
    asked = Objective("mine", task, "kl_divergence", "resample", "group", "fp32")

    def scores(loaded: LoadedModel) -> list[float]:
        engine = ModelEngine({"mine": loaded}, memory_bytes=1 << 27)
        resolved = engine.resolve(asked)
        assert engine.estimate(resolved).least_seconds > 0
        full = BaseCircuit(Circuit.full(resolved.graph))
        passes = [PatchedPass(full, (edge,)) for edge in range(0, resolved.graph.num_edges, 9)]
        state = engine.open(resolved)
        (found,) = engine.run([Work(state, ScorePasses(passes))])
        assert not isinstance(found, Exception)
        assert engine.memory_usage().used > 0
        engine.close(state)
        return found

    found, expected = scores(load(source, ToDevice(FOLDING, device))), scores(load(source, FOLDING))
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "meta", "cpu:1"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="there is cpu") as caught:
        devices.find(name)
    assert caught.value.field == "device"
    assert repr(name) in str(caught.value)


def test_devices_that_are_there() -> None:
    assert devices.find("cpu") == torch.device("cpu")
    for name in devices.available():
        assert str(devices.find(name)) == name
        assert devices.memory_bytes(devices.find(name)) > 0
        assert devices.title(devices.find(name))
