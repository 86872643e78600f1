"""``eap`` over gRPC: the scores of all public cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pahq_client import Client, EdgeScores, InvalidRequest, Task

from .cases import ABSENT, Case, eap_parameters

TASK = Task(clean=[[1, 2, 3], [4, 5]], corrupted=[[1, 6, 3], [7, 5]], answers=[1, 2], wrong_answers=[3, 4])


@pytest.mark.parametrize("expected", list(eap_parameters()) or [ABSENT])
def test_edge_attribution_patching(client: Client, expected: tuple[Case, list[str], dict[str, Any]]) -> None:
    case, names, entry = expected
    options = {"metric": case.metric, "ablation": entry["ablation"], "kv_receivers": entry["kv"]}
    found = client.discover(case.model, case.task, method="eap", **options)
    assert isinstance(found, EdgeScores)
    assert len(found.scores) == case.attribution["n_edges_total"][entry["kv"]]
    by_name = dict(zip(found.graph.edge_names(), found.scores.tolist(), strict=True))
    tolerance = max(1e-4, 10 * entry["float32_error"])
    scores = np.array([by_name[name] for name in names]) / entry["max_abs"]
    np.testing.assert_allclose(scores, np.array(entry["scores"]) / entry["max_abs"], rtol=0, atol=tolerance)
    assert np.abs(found.scores).max() == pytest.approx(entry["max_abs"], rel=tolerance)


def test_the_ends_are_those_of_a_search(client: Client) -> None:
    scores = client.discover("plain", TASK, method="eap", metric="logit_difference")
    circuit = client.discover("plain", TASK, method="single_edge", metric="logit_difference")
    assert isinstance(scores, EdgeScores)
    assert (scores.full, scores.empty) == (circuit.metric.full, circuit.metric.empty)
    assert (scores.method, scores.metric, scores.partial) == ("eap", "logit_difference", False)


@pytest.mark.parametrize("metric", ["kl_divergence", "l2"])
def test_a_metric_without_slope_is_refused(client: Client, metric: str) -> None:
    with pytest.raises(InvalidRequest, match=r"'logit_difference'.*'eap_ig'"):
        client.discover("plain", TASK, method="eap", metric=metric)
