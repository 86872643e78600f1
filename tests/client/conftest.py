from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers.api_server import RunningServer

from pahq_client import AsyncClient, Circuit, CircuitMetric, Client, Edge, Graph, Verdict
from pahq_client.retries import Backoff

from .blocking import Blocking
from .fake_server import FakeServer

BACKOFF = Backoff(attempts=3, first_s=0.01)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def threads_client(server: FakeServer) -> Iterator[Client]:
    with Client(server.address, backoff=BACKOFF) as connected:
        yield connected


@contextmanager
def _of_kind(kind: str, address: str) -> Iterator[Any]:
    if kind == "threads":
        with Client(address, backoff=BACKOFF) as connected:
            yield connected
        return
    with (
        asyncio.Runner() as runner,
        Blocking(AsyncClient(address, backoff=BACKOFF), runner) as connected,
    ):
        yield connected


@pytest.fixture(params=["threads", "asyncio"])
def client(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Any]:
    """Both kinds of clients, with the same surface: everything is to be true of both."""
    with _of_kind(request.param, server.address) as connected:
        yield connected


@pytest.fixture(params=["threads", "asyncio"])
def speaker(request: pytest.FixtureRequest, running: RunningServer) -> Iterator[Any]:
    """Both kinds of clients of the real server that the test's module has as ``running``."""
    with _of_kind(request.param, f"127.0.0.1:{running.port}") as connected:
        yield connected


@pytest.fixture
def circuit() -> Circuit:
    """Grouped keys and values, an MLP, an untested edge."""
    return Circuit(
        edges=(
            Edge("m1", "logits", 0.75),
            Edge("a0.h1", "a1.h2<q>", 0.1),
            Edge("a0.h1", "a1.g1<v>", 1 / 3),
            Edge("input", "m0"),
        ),
        graph=Graph(layers=2, heads=4, kv_heads=2, kv_receivers="group", parallel=False, mlps=True),
        metric=CircuitMetric("kl_divergence", 0.03, 0.0, 2.5),
        num_evaluations=3,
        num_edges_total=81,
        gates_kept=("a1.h2<q>",),
        verdicts=(
            Verdict("m1->logits", 0.75, True),
            Verdict("a1.h2<q>", 0.2, True, gate=True),
            Verdict("a0.h0->m1", -1e-9, False),
        ),
        provenance={
            "request": {"parameters": {"ablation": "mean", "threshold": 0.1}, "policy": "fp32"},
            "run": {"model": "tinytalk", "seconds": 3.5},
        },
    )
