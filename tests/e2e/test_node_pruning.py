"""Node pruning of models with known nodes, by the engine and the method in this process."""

from __future__ import annotations

from typing import Any

import pytest
from bench.pruning.tasks import recovered
from helpers.planted import PlantedCircuit, planted_circuits

from .cases import ABSENT

SEEDS = 10


def _parameters(long: bool) -> list[Any]:
    marks = (pytest.mark.long, pytest.mark.timeout(3600)) if long else ()
    found = [
        pytest.param(each, id=f"{each.name}-{each.ablation}", marks=marks) for each in planted_circuits()
    ]
    return found or [ABSENT]


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
