"""Benchmarks that need a machine of their own: they run in small here, so that they can be relied on."""

from __future__ import annotations

import math

from bench import attribution, gpu
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


def test_the_table_of_attribution_says_what_holds() -> None:
    figures = {"floor_seconds_one_gradient": 2.0, "floor_seconds_mean_of_five": 8.0}
    for name in attribution.FLOORS:
        figures |= {f"seconds_{name}": 3.0, f"times_floor_{name}": 1.5, f"peak_gib_{name}": 0.25}
    slow, large = figures | {"times_floor_eap_ig": 2.2}, figures | {"peak_gib_gim": 0.7}
    ends = [
        [line.split(" | ")[-1] for line in attribution.table(each)[2:]] for each in (figures, slow, large)
    ]
    assert ends[0] == ["yes |"] * 5
    assert ends[1] == ["yes |", "yes |", "yes |", "no |", "yes |"]
    assert ends[2] == ["yes |", "yes |", "no |", "yes |", "yes |"]
    assert attribution.table(None)[2].startswith("| `eap` | - | - | - | 2.5 |")
