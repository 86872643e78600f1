"""Attribution over gRPC: the scores of all public cases, by every method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pahq_client import Client, InvalidRequest, Task

from .cases import ABSENT, METRICS, Case, attribution_parameters

TASK = Task(clean=[[1, 2, 3], [4, 5]], corrupted=[[1, 6, 3], [7, 5]], answers=[1, 2], wrong_answers=[3, 4])


@pytest.mark.parametrize("expected", list(attribution_parameters()) or [ABSENT])
def test_scores_of_the_public_cases(client: Client, expected: tuple[Case, list[str], dict[str, Any]]) -> None:
    case, names, entry = expected
    method, steps = entry["method"], entry.get("steps")
    found = client.attribute(case.model, case.task, method, steps=steps, **options(entry))
    assert found.method == entry["method"]
    assert len(found.scores) == case.attribution["n_edges_total"][entry["kv"]]
    assert_expected(dict(zip(found.graph.edge_names(), found.scores.tolist(), strict=True)), names, entry)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("expected", list(attribution_parameters(single=True)) or [ABSENT])
def test_exact_effects_of_the_public_cases(
    client: Client, expected: tuple[Case, list[str], dict[str, Any]]
) -> None:
    case, names, entry = expected
    circuit = client.discover(case.model, case.task, method="single_edge", **options(entry))
    assert_expected({str(edge): edge.score or 0.0 for edge in circuit.edges}, names, entry)


def options(entry: dict[str, Any]) -> dict[str, Any]:
    """What an expected list of scores was asked for with."""
    return {
        "metric": METRICS[entry["metric"]],
        "ablation": entry["ablation"],
        "kv_receivers": entry["kv"],
    }


def assert_expected(found: dict[str, float], names: list[str], entry: dict[str, Any]) -> None:
    """Compares the scores of all edges with those that the file has, relative to the largest of all."""
    largest = entry["max_abs"]
    tolerance = max(1e-4, 10 * entry.get("float32_error", 0.0))
    scores = [found[name] for name in names]
    np.testing.assert_allclose(scores, entry["scores"], rtol=0, atol=tolerance * largest)
    assert max(map(abs, found.values())) == pytest.approx(largest, rel=tolerance)


@pytest.mark.parametrize("method", ["eap", "eap_ig", "clean_corrupted", "relp", "gim"])
def test_the_ends_are_those_of_a_search(client: Client, method: str) -> None:
    scores = client.attribute("plain", TASK, method, metric="logit_difference")
    circuit = client.discover("plain", TASK, method="single_edge", metric="logit_difference")
    assert (scores.full, scores.empty) == (circuit.metric.full, circuit.metric.empty)
    assert (scores.method, scores.metric, scores.partial) == (method, "logit_difference", False)


def test_the_default_of_steps_is_5_and_their_number_matters(client: Client) -> None:
    default, five, six = (
        client.attribute("plain", TASK, "eap_ig", metric="l2", steps=steps).scores for steps in (None, 5, 6)
    )
    assert np.array_equal(default, five)
    assert not np.allclose(five, six)


@pytest.mark.parametrize("method", ["eap", "relp", "gim"])
@pytest.mark.parametrize("metric", ["kl_divergence", "l2"])
def test_a_metric_without_slope_is_refused(client: Client, metric: str, method: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"'{method}'.*'logit_difference'.*'eap_ig'"):
        client.attribute("plain", TASK, method, metric=metric)


@pytest.mark.parametrize("method", ["eap_ig", "clean_corrupted"])
def test_an_input_of_zeros_before_norms_is_refused(client: Client, method: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"'{method}'.*'resample' or 'mean'"):
        client.attribute("plain", TASK, method, metric="l2", ablation="zero")


@pytest.mark.parametrize("steps", [0, -1, 101, 2.5, True])
def test_wrong_steps_are_refused(client: Client, steps: float) -> None:
    with pytest.raises(InvalidRequest, match="steps"):
        client.attribute("plain", TASK, "eap_ig", metric="l2", steps=steps)
