"""Benchmarks that need a machine of their own: they run in small here, so that they can be relied on."""

from __future__ import annotations

import math

from bench import gpu
from helpers.simulated import simulated_device


def test_the_benchmark_for_gpus_measures_what_it_says() -> None:
    with simulated_device() as device:
        results = gpu.run(device, gpu.SMALL)
    assert len(results) == 6
    for name, figures in results.items():
        rate = figures["rows_per_second"]
        assert all(math.isfinite(value) for value in figures.values()), name
        assert rate > 0
        assert figures["times_needed_at_fp32_rate"] > 0
    table = gpu.markdown(results, "nowhere")
    assert table.count("\n| ") == sum(map(len, results.values()))
    assert "| Llama 8B shape, pahq-fp8 | resident of fp32 | 0.2" in table
