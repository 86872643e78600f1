"""Node pruning of models with known nodes, by the engine and the method in this process."""

from __future__ import annotations

from typing import Any

import pytest
from bench.pruning.tasks import recovered
from helpers.planted import PlantedCircuit, planted_circuits

from .cases import ABSENT

SEEDS = 10
# Those that are trained in seconds; the others take up to half a minute each.
QUICK = ("gate_and-resample", "gate_or-zero", "tracr_xproportion-zero")
LONG = (pytest.mark.long, pytest.mark.timeout(3600))


def _parameters(long: bool) -> list[Any]:
    named = {f"{each.name}-{each.ablation}": each for each in planted_circuits()}
    chosen = list(named) if long else [name for name in QUICK if name in named]
    return [pytest.param(named[n], id=n, marks=LONG if long else ()) for n in chosen] or [ABSENT]


@pytest.mark.parametrize("circuit", _parameters(long=False))
def test_known_nodes_are_found(circuit: PlantedCircuit) -> None:
    found = recovered(circuit, [0])
    assert found["polished"] == 1
    assert found["within"] == 1


@pytest.mark.parametrize("circuit", _parameters(long=True))
def test_known_nodes_are_found_whatever_the_seed(circuit: PlantedCircuit) -> None:
    found = recovered(circuit, range(SEEDS))
    assert found["polished"] == SEEDS
    assert found["within"] == SEEDS
