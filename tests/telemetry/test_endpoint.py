from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from helpers.scrape import scrape, value
from prometheus_client import CollectorRegistry, Gauge

from pahq_server.telemetry.endpoint import READERS, MetricsEndpoint


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "Of all.", registry=registry).set(42)
    return registry


@pytest.fixture
def endpoint(registry: CollectorRegistry) -> Iterator[MetricsEndpoint]:
    endpoint = MetricsEndpoint(registry, "127.0.0.1:0")
    yield endpoint
    endpoint.close()


def test_it_tells_the_metrics(endpoint: MetricsEndpoint) -> None:
    assert value(scrape(endpoint.address), "answer") == 42


def test_it_listens_over_ipv6(registry: CollectorRegistry) -> None:
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    endpoint = MetricsEndpoint(registry, "[::1]:0")
    assert endpoint.address.startswith("[::1]:")
    assert value(scrape(endpoint.address), "answer") == 42
    endpoint.close()


def test_it_only_answers_questions(endpoint: MetricsEndpoint) -> None:
    request = urllib.request.Request(f"http://{endpoint.address}/metrics", b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 405
    refused.value.close()


def test_silent_and_rude_readers_do_not_keep_others_waiting(endpoint: MetricsEndpoint) -> None:
    host, _, port = endpoint.address.rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(5)]
    with socket.create_connection((host, int(port))) as rude:
        rude.sendall(b"\xff" * 100)
    assert value(scrape(endpoint.address), "answer") == 42
    for connection in silent:
        connection.close()


def test_many_readers_at_once_take_no_more_threads_than_there_are(endpoint: MetricsEndpoint) -> None:
    host, _, port = endpoint.address.rpartition(":")
    before = threading.active_count()
    silent = [socket.create_connection((host, int(port))) for _ in range(3 * READERS)]
    # Those beyond the limit are sent away at once.
    for connection in silent[READERS:]:
        connection.settimeout(30)
        assert connection.recv(1) == b""
    assert threading.active_count() <= before + READERS
    for connection in silent:
        connection.close()
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert value(scrape(endpoint.address), "answer") == 42


def test_closing_frees_the_port(registry: CollectorRegistry) -> None:
    endpoint = MetricsEndpoint(registry, "127.0.0.1:0")
    endpoint.close()
    again = MetricsEndpoint(registry, endpoint.address)
    assert again.address == endpoint.address
    again.close()


def test_a_taken_port_is_an_error(registry: CollectorRegistry, endpoint: MetricsEndpoint) -> None:
    with pytest.raises(OSError, match="in use"):
        MetricsEndpoint(registry, endpoint.address)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
