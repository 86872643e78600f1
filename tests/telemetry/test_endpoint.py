from __future__ import annotations

import select
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from helpers.scrape import scrape, value
from prometheus_client import CollectorRegistry, Gauge

from pahq_server.telemetry.endpoint import MAX_CONNECTIONS, MetricsEndpoint


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
    silent = [socket.create_connection((host, int(port))) for _ in range(3 * MAX_CONNECTIONS)]
    # Those beyond the limit are sent away at once.
    for connection in silent[MAX_CONNECTIONS:]:
        connection.settimeout(30)
        assert connection.recv(1) == b""
    assert threading.active_count() <= before + MAX_CONNECTIONS
    for connection in silent:
        connection.close()
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert value(scrape(endpoint.address), "answer") == 42


class Drip:
    """A reader that sends a byte of its request now and then, and never all of it."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.connection = socket.create_connection((host, int(port)), timeout=30)
        self.connection.sendall(b"GET /metrics HTTP/1.1\r\nX: ")

    def drip(self) -> bool:
        """Whether the connection is still there."""
        try:
            self.connection.sendall(b"x")
        except OSError:
            return False
        return not select.select([self.connection], [], [], 0)[0]


def test_dripping_readers_do_not_keep_others_out(endpoint: MetricsEndpoint) -> None:
    """As many as there are threads: the oldest makes room for a scrape."""
    drips = [Drip(endpoint.address) for _ in range(MAX_CONNECTIONS)]
    try:
        value_found, end = None, time.monotonic() + 30
        while value_found is None and time.monotonic() < end:
            for drip in drips:
                drip.drip()
            try:
                value_found = value(scrape(endpoint.address), "answer")
            except OSError:  # too early to send somebody away
                time.sleep(0.05)
        assert value_found == 42
        # Only as many were sent away as had to be.
        assert sum(drip.drip() for drip in drips) >= MAX_CONNECTIONS // 2
    finally:
        for drip in drips:
            drip.connection.close()


def test_a_request_has_a_limit_in_all_not_from_byte_to_byte(
    endpoint: MetricsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pahq_server.telemetry.endpoint.REQUEST_S", 0.5)
    before = threading.active_count()
    drip = Drip(endpoint.address)
    end = time.monotonic() + 30
    while drip.drip():
        assert time.monotonic() < end, "it went on"
        time.sleep(0.05)
    drip.connection.close()
    while threading.active_count() > before:
        assert time.monotonic() < end, "its thread stayed"
        time.sleep(0.01)


def test_a_reader_that_takes_in_nothing_has_the_same_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    family = Gauge("long", "More than any buffer holds.", ["label"], registry=registry)
    for number in range(2000):
        family.labels(f"{number}{'x' * 10_000}").set(1)
    monkeypatch.setattr("pahq_server.telemetry.endpoint.REQUEST_S", 1.0)
    endpoint = MetricsEndpoint(registry, "127.0.0.1:0")
    before = threading.active_count()
    host, _, port = endpoint.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as deaf:
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        end = time.monotonic() + 30
        while threading.active_count() == before:
            assert time.monotonic() < end, "no thread began"
            time.sleep(0.001)
        while threading.active_count() > before:
            assert time.monotonic() < end, "its thread stayed"
            time.sleep(0.01)
    endpoint.close()


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
