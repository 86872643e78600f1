from __future__ import annotations

import re

import pytest
from helpers.scrape import scrape, value

from pahq_server.cli.command import make_parser
from pahq_server.cli.options import telemetry as options
from pahq_server.core.engine import MemoryUsage
from pahq_server.core.errors import InvalidRequestError
from pahq_server.telemetry.pulled import Sources
from pahq_server.telemetry.telemetry import Telemetry, TelemetryConfig

BUILD = {"version": "1.2.3", "torch": "9"}
USAGE = MemoryUsage(page_bytes=16, pages=7, used=6, shared=5, peak_used=6, scratch_bytes=4, preemptions=3)


def address_of(caplog: pytest.LogCaptureFixture) -> str:
    found = re.search(r"metrics on http://(\S+)/metrics", caplog.text)
    assert found
    return found[1]


def test_everything_is_on_one_page(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        telemetry = Telemetry(TelemetryConfig("127.0.0.1:0"), ["S/M"], BUILD)
    telemetry.read(Sources(lambda: USAGE, lambda: {"queued": 1}, lambda: 0))
    telemetry.observer.call_started("S/M")
    telemetry.observer.call_ended("S/M", "OK", 0.1)
    now = scrape(address_of(caplog))
    telemetry.close()
    telemetry.close()
    assert value(now, "pahq_build_info", **BUILD) == 1
    assert value(now, "process_start_time_seconds") > 0
    assert value(now, "process_resident_memory_bytes") > 0
    assert value(now, "pahq_jobs", state="queued") == 1
    assert value(now, "pahq_rpc_duration_seconds_count", method="S/M", code="OK") == 1


def test_two_servers_in_one_process_count_for_themselves(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        first = Telemetry(TelemetryConfig("127.0.0.1:0"), [], BUILD)
        address = address_of(caplog)
        second = Telemetry(TelemetryConfig("127.0.0.1:0"), [], BUILD)
    second.observer.preempted()
    assert value(scrape(address), "pahq_job_preemptions_total") == 0
    first.close()
    second.close()


def test_nothing_listens_unless_asked_to(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry(TelemetryConfig(), [], BUILD)
    telemetry.observer.batch(1, 0.1)
    telemetry.close()
    assert "metrics on" not in caplog.text


def test_a_taken_address_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        telemetry = Telemetry(TelemetryConfig("127.0.0.1:0"), [], BUILD)
    with pytest.raises(InvalidRequestError, match="metrics_listen"):
        Telemetry(TelemetryConfig(address_of(caplog)), [], BUILD)
    telemetry.close()


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
    given = make_parser().parse_args(["serve", "--metrics-listen", "127.0.0.1:7301"])
    assert options.config(given, environment) == TelemetryConfig("127.0.0.1:7301", traces)


@pytest.mark.parametrize("text", ["7301", ":7301", "host:", "host:x", "::1:7301", "[host]:1", "host:70000"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["serve", "--metrics-listen", text])


@pytest.mark.parametrize("text", ["127.0.0.1:7301", "[::1]:0", "0.0.0.0:65535", "metrics.lab:80"])
def test_addresses(text: str) -> None:
    assert make_parser().parse_args(["serve", "--metrics-listen", text]).metrics_listen == text
