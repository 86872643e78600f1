"""Parameters of methods: what is allowed, and how what is not is refused."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from pahq_server.core.engine import Objective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.methods.registry import METHODS, find


def refused(method: str, values: dict[str, Any]) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        METHODS[method].read(values)
    return caught.value


@pytest.mark.parametrize("method", ["acdc", "single_edge"])
@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf, -1e-9, -5.0, "3", True, [1.0]])
def test_thresholds_that_are_no_thresholds(threshold: object, method: str) -> None:
    error = refused(method, {"threshold": threshold})
    assert error.field == "threshold"
    assert error.detail == f"must be a finite number >= 0, got {threshold!r}"


@pytest.mark.parametrize("threshold", [0.0, 1e-300, 1e300, 3])
@pytest.mark.parametrize("method", ["acdc", "single_edge"])
def test_good_thresholds(threshold: float, method: str) -> None:
    assert METHODS[method].read({"threshold": threshold}).threshold == threshold


def test_acdc_needs_a_threshold_and_the_sweep_does_not() -> None:
    error = refused("acdc", {"gates": True})
    assert (error.field, error.detail) == ("threshold", "method 'acdc' needs a threshold")
    assert METHODS["single_edge"].read({}).threshold is None
    assert METHODS["single_edge"].read({"threshold": None}).threshold is None


def test_gates_are_asked_for_or_not() -> None:
    assert METHODS["acdc"].read({"threshold": 1.0}).gates is False
    assert METHODS["acdc"].read({"threshold": 1.0, "gates": True}).gates is True
    assert refused("acdc", {"threshold": 1.0, "gates": 1}).field == "gates"


def test_unknown_parameters_and_methods() -> None:
    error = refused("single_edge", {"gates": True})
    assert (error.field, error.detail) == (
        "gates",
        "is no parameter of method 'single_edge', which has ['threshold']",
    )
    with pytest.raises(InvalidRequestError, match="unknown method 'nothing'; one of"):
        find("nothing")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_parameters_have_names_of_their_own(name: str) -> None:
    """They stand beside those of the objective in an artifact's provenance."""
    method = METHODS[name]
    taken = {field.name for field in fields(Objective)} | {"method"}
    assert method.name == name
    assert taken.isdisjoint(field.name for field in fields(method.parameters))
