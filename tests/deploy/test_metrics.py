"""Dashboards and alerts ask for metrics that exist, by labels and values that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from deploy.files import DEPLOY, load_yaml
from pahq_server.core.engine import MemoryUsage, WorkerState, WorkerStatus
from pahq_server.jobs.job import JobState
from pahq_server.telemetry.metrics import CODES, Metrics, PulledMetrics, Sources

DASHBOARD = DEPLOY / "grafana" / "dashboards" / "pahq.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
METHODS = ("pahq.v1.JobService/CreateJob", "pahq.v1.JobService/WatchJob")
# What Prometheus adds to every sample, and the variables of the dashboard.
ADDED = {"job", "instance", "le"}
# From the library's collector of the process, and from Prometheus itself.
OUTSIDE = {"up", "process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}


def samples() -> dict[str, dict[str, set[str]]]:
    """Values of the labels of all samples that a server tells, by name."""
    metrics = Metrics(METHODS)
    for method in METHODS:
        metrics.call_started(method)
        for code in CODES:
            metrics.call_ended(method, code, 0.1)
    usage = MemoryUsage(1, 2, 1, 0, 1, 1, 0)
    states = {state.name.lower(): 0 for state in JobState}
    registry = CollectorRegistry()
    metrics.worker_ready(0)
    workers = [WorkerStatus(0, WorkerState.READY)]
    sources = Sources(lambda: usage, lambda: states, lambda: 0, lambda: workers, str, Path("/"))
    registry.register(PulledMetrics(sources))
    found: dict[str, dict[str, set[str]]] = {name: {} for name in OUTSIDE}
    found["pahq_build_info"] = {"version": set(), "torch": set()}
    for family in (*metrics.registry.collect(), *registry.collect()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


KNOWN = samples()


def panels() -> Iterator[tuple[str, str]]:
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def rules() -> Iterator[tuple[str, str]]:
    for group in load_yaml(ALERTS)["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


EXPRESSIONS = [*panels(), *rules()]


def selectors(expression: str) -> list[tuple[str, str]]:
    """Names of metrics with what is in braces after them."""
    return re.findall(r"\b((?:pahq|process)_[a-z_]+|up\b)(?:\{([^}]*)\})?", expression)


def test_there_is_something_to_check() -> None:
    assert len(list(panels())) >= 25
    assert len(list(rules())) >= 10


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS, ids=[title for title, _ in EXPRESSIONS])
def test_queries_ask_for_what_there_is(title: str, expression: str) -> None:
    found = selectors(expression)
    assert found
    for name, braces in found:
        assert name in KNOWN, name
        labels = KNOWN[name]
        for label, operator, text in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', braces):
            assert label in ADDED | labels.keys(), f"{name} has no label {label}"
            if label in labels and "*" not in text:
                values = text.split("|") if "~" in operator else [text]
                assert set(values) <= labels[label], f"{name}: {label} is never {values}"
        for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            used = {label.strip() for label in grouped.split(",")}
            assert used <= ADDED | {label for known, _ in found for label in KNOWN[known]}


def test_every_metric_of_the_server_is_shown() -> None:
    shown = {_family(name) for _, expression in EXPRESSIONS for name, _ in selectors(expression)}
    assert {_family(name) for name in KNOWN if not name.endswith("_created")} <= shown


def _family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (of Prometheus) is not on PATH")
def test_promtool_finds_nothing_wrong() -> None:
    subprocess.run(["promtool", "check", "rules", str(ALERTS)], check=True, capture_output=True)
    config = DEPLOY / "prometheus" / "prometheus.yaml"
    subprocess.run(["promtool", "check", "config", str(config)], check=True, capture_output=True)
    cases = Path(__file__).with_name("alerts_test.yaml")
    done = subprocess.run(
        ["promtool", "test", "rules", str(cases)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
