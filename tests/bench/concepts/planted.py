"""Whether planted concepts are found: states around known centres, of one layer and, rotated, of another."""

from __future__ import annotations

import time
from typing import Any

import torch
from helpers.planted_states import adjusted_rand_index, planted

from bench.concepts.methods import codebook
from bench.concepts.states import WINDOW

CASES = ((12, 4096), (400, 20_480))  # concepts, and states
SEEDS, WIDTH, NOISE, STEPS = 5, 64, 0.5, 100


def run(seeds: int = SEEDS, cases: tuple[tuple[int, int], ...] = CASES, steps: int = STEPS) -> list[Any]:
    """Learns as many codes as there are concepts: the adjusted Rand index, case by case and seed by seed."""
    torch.set_num_threads(1)
    found = []
    for concepts, count in cases:
        assert count % WINDOW == 0
        indices, started = [], time.process_time()
        for seed in range(seeds):
            states = planted(seed, count, WIDTH, concepts, NOISE)
            codes, _ = codebook(states.x, states.y, codes=concepts, steps=steps, seed=seed)
            indices.append(adjusted_rand_index(codes, states.concepts))
        seconds = (time.process_time() - started) / seeds
        found.append({"concepts": concepts, "states": count, "rand": indices, "seconds": seconds})
    return found
