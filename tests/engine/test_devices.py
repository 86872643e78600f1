"""Models on other devices than the CPU: simulated, and real where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.jobs import SPECS, Spec
from helpers.simulated import simulated_device
from helpers.zoo import NAMES, Zoo

from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.maps import Rounded
from pahq_server.engine.sparse.shared import DeviceMemory
from pahq_server.models.architecture import Model
from pahq_server.models.casting import cast
from pahq_server.models.folding import fold
from pahq_server.precision.policy import POLICIES


@pytest.fixture
def device() -> Iterator[torch.device]:
    with simulated_device() as device:
        yield device


def backend_on(device: torch.device | str, model: Model, policy: str) -> SparseBackend:
    placed = cast(fold(model), model.dtype, device)
    memory = DeviceMemory(1 << 27, 4096, device)
    return SparseBackend(placed, memory, b"test", Rounded.of(placed, POLICIES[policy]))


@pytest.mark.parametrize("spec", SPECS[:6], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_literal_twins(device: torch.device, zoo: Zoo, name: str, spec: Spec) -> None:
    model, rows = zoo[name], spec.rows(zoo[name], 1)[:30:3]
    job = spec.open(backend_on(device, model, "fp32"), model)
    twin = LiteralExecutor(
        model, model.architecture.graph(spec.kv), spec.task(model), spec.metric, spec.ablation
    )
    assert np.allclose(job.score(rows), twin.score(rows), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("policy", ["bf16", "pahq-int8", "pahq-int8-weight", "pahq-fp8"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "hooked attention only"])
def test_policies_give_what_they_give_on_the_cpu(
    device: torch.device, zoo: Zoo, name: str, policy: str
) -> None:
    model, spec = cast(zoo[name], torch.float32), SPECS[0]
    rows = spec.rows(model, 1)[:30:5]
    found, expected = (
        spec.open(backend_on(place, model, policy), model).score(rows) for place in (device, "cpu")
    )
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-7)
