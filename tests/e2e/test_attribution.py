"""Attribution over gRPC: the scores of all public cases, by every method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pahq_client import Client, InvalidRequest, Task

from .cases import ABSENT, METRICS, Case, attribution_parameters

TASK = Task(clean=[[1, 2, 3], [4, 5]], corrupted=[[1, 6, 3], [7, 5]], answers=[1, 2], wrong_answers=[3, 4])


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("expected", list(attribution_parameters()) or [ABSENT])
def test_scores_of_the_public_cases(client: Client, expected: tuple[Case, list[str], dict[str, Any]]) -> None:
    case, names, entry = expected
    options = {"ablation": entry["ablation"], "kv_receivers": entry["kv"], "steps": entry.get("steps")}
    method = "single_edge" if entry["method"] == "single" else entry["method"]
    scores = client.attribute(case.model, case.task, method, metric=METRICS[entry["metric"]], **options)
    assert scores.method == method
    assert len(scores.scores) == case.attribution["n_edges_total"][entry["kv"]]
    by_name = dict(zip(scores.graph.edge_names(), scores.scores.tolist(), strict=True))
    found, largest = [by_name[name] for name in names], entry["max_abs"]
    tolerance = max(1e-4, 10 * entry.get("float32_error", 0.0))
    np.testing.assert_allclose(found, entry["scores"], rtol=0, atol=tolerance * largest)
    assert np.abs(scores.scores).max() == pytest.approx(largest, rel=tolerance)


@pytest.mark.parametrize("method", ["eap", "eap_ig", "clean_corrupted", "relp", "gim"])
def test_the_ends_are_those_of_a_search(client: Client, method: str) -> None:
    scores = client.attribute("plain", TASK, method)
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


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_wrong_steps_are_refused(client: Client, steps: int) -> None:
    with pytest.raises(InvalidRequest, match=f"integer from 1 to 100, got {steps}"):
        client.attribute("plain", TASK, "eap_ig", steps=steps)
