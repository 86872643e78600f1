"""Precision policies through a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pahq_client import Circuit, Client, InvalidRequest, Task, compare

from .process import ServerProcess

KNOWN = ("fp32", "pahq-int8", "pahq-int8-weight")


@pytest.fixture(scope="module")
def rounded_client() -> Iterator[Client]:
    """Of a server that keeps int8 weights only."""
    with ServerProcess({}, "--weights", "int8") as process, Client(process.address) as connected:
        yield connected


@pytest.fixture(scope="module")
def found(server: ServerProcess) -> Circuit:
    """The demo's circuit in full precision."""
    with Client(server.address) as client:
        return client.discover("demo", Task.ioi(), 0.05)


@pytest.mark.parametrize("precision", ["bf16", "pahq-int8", "pahq-int8-weight", "pahq-fp8"])
def test_a_policy_finds_nearly_the_same_circuit(client: Client, found: Circuit, precision: str) -> None:
    circuit = client.discover("demo", Task.ioi(), 0.05, precision=precision)
    assert circuit.provenance["request"]["policy"] == precision
    assert compare(circuit, found).jaccard > 0.9
    assert circuit.metric_value == pytest.approx(found.metric_value, rel=0.05)
    assert [edge.score for edge in circuit.edges] != [edge.score for edge in found.edges]


@pytest.mark.parametrize("precision", ["fp32", "pahq-int8"])
def test_a_server_of_rounded_weights_finds_the_same(
    client: Client, rounded_client: Client, precision: str
) -> None:
    same = [
        c.discover("demo", Task.ioi(4, seed=1), 0.1, precision=precision) for c in (client, rounded_client)
    ]
    assert same[0].canonical_bytes() == same[1].canonical_bytes()


def test_a_server_says_which_policies_it_has(client: Client, rounded_client: Client) -> None:
    assert rounded_client.server_info().precisions == KNOWN
    assert set(client.server_info().precisions) > {*KNOWN, "bf16", "pahq-fp8", "rtn-int8", "paper"}


def test_pahq_as_published(client: Client) -> None:
    task = Task(clean=[[1, 2, 3], [4, 5, 6]], corrupted=[[1, 7, 3], [4, 8, 6]])
    exact, found = (client.discover("plain", task, 0.01, precision=name) for name in ("fp32", "paper"))
    assert found.provenance["request"]["policy"] == "paper"
    assert [verdict.delta for verdict in found.verdicts] != [verdict.delta for verdict in exact.verdicts]
    assert found.metric_value == pytest.approx(exact.metric_value, rel=0.2)


@pytest.mark.parametrize("precision", ["pahq-fp8", "rtn-int8", "paper", "int8"])
def test_a_policy_that_a_server_cannot_run_is_refused_with_those_it_can(
    rounded_client: Client, precision: str
) -> None:
    with pytest.raises(InvalidRequest, match="one of") as caught:
        rounded_client.discover("demo", Task.ioi(), 0.05, precision=precision)
    assert caught.value.field == "precision"
    for name in KNOWN:
        assert name in caught.value.detail
