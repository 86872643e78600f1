from __future__ import annotations

import math
from dataclasses import replace

import pytest
from helpers.fake_engine import GRAPH, OBJECTIVE

from pahq_server.core.errors import InvalidRequestError
from pahq_server.jobs.spec import METHODS, DiscoverySpec
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.methods.single_edge.method import SingleEdgeSearch

SPEC = DiscoverySpec(OBJECTIVE, "acdc", 0.1, gates=True)


@pytest.mark.parametrize("method", ["", "ACDC", "eap"])
def test_unknown_methods(method: str) -> None:
    _refused(
        replace(SPEC, method=method), "method", f"unknown method {method!r}; one of ['acdc', 'single_edge']"
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf, -1e-9, -5.0])
def test_thresholds_that_are_no_thresholds(threshold: float, method: str) -> None:
    spec = replace(SPEC, method=method, threshold=threshold)
    _refused(spec, "threshold", f"{threshold} is not a finite number >= 0")


def test_acdc_needs_a_threshold_and_the_sweep_does_not() -> None:
    _refused(replace(SPEC, threshold=None), "threshold", "method 'acdc' needs a threshold")
    replace(SPEC, method="single_edge", threshold=None).check()


@pytest.mark.parametrize("threshold", [0.0, 1e-300, 1e300])
def test_good_thresholds(threshold: float) -> None:
    replace(SPEC, threshold=threshold).check()


@pytest.mark.parametrize("gates", [True, False])
def test_the_search_that_was_asked_for(gates: bool) -> None:
    acdc = replace(SPEC, gates=gates).search(GRAPH, window=3)
    assert isinstance(acdc, AcdcSearch)
    assert (acdc.threshold, acdc.window, acdc.graph) == (0.1, 3, GRAPH)
    tests_a_gate = any(
        state.gate
        for state in acdc._acdc.turns  # what else would tell without running it
    )
    assert tests_a_gate is gates
    sweep = replace(SPEC, method="single_edge", threshold=None).search(GRAPH, window=7)
    assert isinstance(sweep, SingleEdgeSearch)
    assert (sweep.threshold, sweep.window) == (None, 7)


def test_parameters_leave_out_what_has_no_effect() -> None:
    assert SPEC.parameters() == {
        "method": "acdc",
        "metric": "kl_divergence",
        "ablation": "resample",
        "kv_receivers": "group",
        "threshold": 0.1,
        "gates": True,
    }
    assert replace(SPEC, method="single_edge").parameters()["gates"] is None


def _refused(spec: DiscoverySpec, field: str, detail: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        spec.check()
    assert (caught.value.field, caught.value.detail) == (field, detail)
