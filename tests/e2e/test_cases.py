"""Circuits with known answers, found over gRPC by a real server: the same edges, verdict by verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pahq_client import Circuit, Client

from .cases import ABSENT, Case, bisect_parameters, grouping_of, load_cases, run_parameters
from .process import ServerProcess


def discover(client: Client, case: Case, run: dict[str, Any], **changes: Any) -> Circuit:
    options = {
        "kv_receivers": run["kv"],
        "ablation": run["ablation"],
        "grouping": grouping_of(run),
    }
    options |= {"metric": case.metric, "threshold": run["tau"]} | changes
    return client.discover(case.model, case.task, **options)


def assert_expected(circuit: Circuit, run: dict[str, Any]) -> None:
    assert [str(edge) for edge in circuit.edges] == run["edges"]
    assert [edge.score for edge in circuit.edges] == close(run["deltas"])
    assert list(circuit.gates_kept) == run["gates_kept"]
    assert circuit.num_evaluations == len(circuit.verdicts) == run["n_evaluations"]
    assert circuit.num_edges_total == run["n_edges_total"]
    assert circuit.metric_value == close(run["final_metric"])
    for verdict in circuit.verdicts:
        assert verdict.kept is not (verdict.delta < run["tau"])


def close(expected: Any) -> Any:
    return pytest.approx(expected, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("expected", list(run_parameters()))
def test_discovery(client: Client, expected: tuple[Case, dict[str, Any]]) -> None:
    case, run = expected
    circuit = discover(client, case, run)
    assert_expected(circuit, run)
    # The file says by how much the closest verdict was decided.
    margin = min(abs(verdict.delta - run["tau"]) for verdict in circuit.verdicts)
    assert margin == close(run["min_margin"])


@pytest.mark.parametrize("expected", list(bisect_parameters()))
def test_grouped_discovery(client: Client, expected: tuple[Case, dict[str, Any]]) -> None:
    case, run = expected
    circuit = discover(client, case, run)
    assert_expected(circuit, run | {"gates_kept": []})
    assert sum(verdict.size for verdict in circuit.verdicts) >= run["n_evaluations"]
    margin = min(abs(verdict.delta - run["tau"]) for verdict in circuit.verdicts)
    assert margin == close(run["min_margin"])
    signed = case.metric == "logit_difference"
    assert any("have signs, and cancel" in warning for warning in circuit.warnings) is signed


# No head of these models shares its keys and values: their files know one mode only.
SINGLE_MODE = [c for c in load_cases() if {run["kv"] for run in c.runs} == {"query"}]


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in SINGLE_MODE])
def test_both_kv_modes_are_one_where_every_head_has_its_own(client: Client, case: Case) -> None:
    run = case.runs[0]
    assert_expected(discover(client, case, run, kv_receivers="group"), run)


@pytest.fixture(scope="module")
def literal_client() -> Iterator[Client]:
    models = {case.model: case.model_directory for case in load_cases()}
    with ServerProcess(models, "--executor", "literal") as process, Client(process.address) as connected:
        yield connected


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "expected", [p for p in run_parameters() if p.id == "tinytalk_ioi-resample-query-gates-0.05"] or [ABSENT]
)
def test_a_real_model_through_the_literal_executor(
    literal_client: Client, expected: tuple[Case, dict[str, Any]]
) -> None:
    case, run = expected
    assert_expected(discover(literal_client, case, run), run)
