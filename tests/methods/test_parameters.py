"""Parameters of methods: what is allowed, and how what is not is refused."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from pahq_server.core.circuit import EdgeSet
from pahq_server.core.engine import Objective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.order import GROUPINGS
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


def test_the_sweep_needs_no_threshold() -> None:
    assert METHODS["single_edge"].read({}).threshold is None
    assert METHODS["single_edge"].read({"threshold": None}).threshold is None


@pytest.mark.parametrize(
    ("values", "field", "got"),
    [
        ({}, "threshold", "none of them"),
        ({"grouping": "none"}, "threshold", "none of them"),
        ({"threshold": 1.0, "edges": 3}, "threshold", "threshold and edges"),
        ({"edges": 3, "faithfulness": 0.5}, "edges", "edges and faithfulness"),
    ],
)
def test_acdc_needs_exactly_one_aim(values: dict[str, Any], field: str, got: str) -> None:
    error = refused("acdc", values)
    needs = "method 'acdc' needs exactly one of threshold, edges and faithfulness"
    assert (error.field, error.detail) == (field, f"{needs}, got {got}")


@pytest.mark.parametrize("edges", [0, -3, 2.0, True, "3"])
def test_numbers_of_edges_that_are_none(edges: object) -> None:
    error = refused("acdc", {"edges": edges})
    assert (error.field, error.detail) == ("edges", f"must be an integer >= 1, got {edges!r}")


@pytest.mark.parametrize("faithfulness", [0, -0.5, 1.0000001, 90, math.nan, math.inf, True, "0.9"])
def test_faithfulnesses_that_are_none(faithfulness: object) -> None:
    assert refused("acdc", {"faithfulness": faithfulness}).field == "faithfulness"


def test_groupings() -> None:
    read = METHODS["acdc"].read
    assert {name: read({"threshold": 1.0, "grouping": name}).grouping for name in GROUPINGS} == {
        name: name for name in ("none", "gates", "bisect")
    }
    assert read({"threshold": 1.0}).grouping == read({"threshold": 1.0, "grouping": ""}).grouping == "gates"
    error = refused("acdc", {"threshold": 1.0, "grouping": "halves"})
    assert (error.field, error.detail) == (
        "grouping",
        "must be one of 'none', 'gates', 'bisect', got 'halves'",
    )


@pytest.mark.parametrize(("gates", "grouping"), [(True, "gates"), (False, "none")])
def test_what_earlier_versions_called_gates(gates: bool, grouping: str) -> None:
    method = METHODS["acdc"]
    read = method.read_stored({"threshold": 1.0, "gates": gates})
    assert read == method.read({"threshold": 1.0, "grouping": grouping})
    # Equal jobs of both versions are known as equal.
    assert method.identity(read) == {"threshold": 1.0, "gates": gates}
    with pytest.raises(InvalidRequestError, match="gates: must be true or false"):
        method.read_stored({"threshold": 1.0, "gates": 1})
    assert refused("acdc", {"threshold": 1.0, "gates": gates}).field == "gates"


def test_a_circuit_to_start_from_is_stored_whole_and_told_briefly() -> None:
    method, graph = METHODS["acdc"], Graph(2, 2, 1)
    bits = np.packbits(np.arange(graph.num_edges) % 3 == 0, bitorder="little").tobytes()
    within = EdgeSet(graph, "c0ffee", bits)
    parameters = method.read({"threshold": 1.0, "within": within})
    stored = json.loads(json.dumps(method.stored(parameters)))
    assert method.read_stored(stored) == parameters
    other = replace(parameters, within=replace(within, bits=bytes(len(bits))))
    assert method.described(parameters) != method.described(other)
    assert len(json.dumps(method.described(parameters))) < 200
    assert refused("acdc", {"threshold": 1.0, "within": "a0.h0->logits"}).field == "within"
    for broken in ({"within": 3}, {"within": {"bits": "!"}}, {"within": stored["within"] | {"bits": "!"}}):
        with pytest.raises((ValueError, TypeError, LookupError)):
            method.read_stored(stored | broken)


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
