"""Benchmarks run in small here, so that those that take long or need another machine can be relied on."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench import attribution, gpu
from bench.methods import judging
from bench.methods import tables as methods_tables
from bench.methods.__main__ import compare, quietly
from bench.methods.finding import FINDERS, PLAIN, Chance, Scoring, Search
from bench.methods.subjects import Subject
from bench.methods.tables import WITHIN_GIM
from bench.sampling import simulated
from bench.sampling import tables as sampling_tables
from helpers.simulated import simulated_device

from pahq_client import BuiltinTask, Evaluation
from pahq_client.curve import FRACTIONS

CPRS = ("cpr", "cpr_log")


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


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    """A short comparison: the references, a search within scores, scores and chance."""
    subject = Subject("demo ioi", "demo", BuiltinTask("ioi", 4, 0), 0.2, gim_share=0.05)
    unknown = Subject("demo docstring", "demo", BuiltinTask("docstring", 4, 0), 0.2)
    gim = Scoring("gim")
    finders = (
        *FINDERS[:3],
        Search("bisect", gim),
        gim,
        Scoring("eap_ig"),
        Scoring("eap"),
        Chance(),
    )
    with quietly():
        return compare([subject, unknown], finders, apart=False)


def test_the_comparison_of_methods_measures_what_it_says(compared: dict[str, Any]) -> None:
    own = compared["demo ioi"]
    methods, about = own["methods"], own["about"]
    plain, exact, within = methods[PLAIN], methods["single_edge (KL)"], methods[WITHIN_GIM]
    assert about["edges"] == exact["evaluations"] == methods["single_edge"]["evaluations"]
    assert plain["edges"] == about["circuit"] == about["sizes"][1] == plain["sizes"][1]
    assert sorted(about["sizes"]) == about["sizes"], "lower thresholds keep more"
    # Against themselves, the references are perfect.
    assert plain["auc_acdc"] == exact["auc_exact"] == exact["spearman"] == pytest.approx(1.0)
    assert 0.4 < methods["random"]["auc_exact"] < 0.6
    assert abs(methods["random"]["spearman"]) < 0.1
    # Whatever knows something is better than chance, and costs something.
    for name, figures in methods.items():
        assert all(0 <= a <= size for a, size in zip(figures["sizes"], about["sizes"], strict=True)), name
        if name != "random":
            assert figures["auc_exact"] > methods["random"]["auc_exact"], name
            assert figures["kl_divergence"]["cpr"] > methods["random"]["kl_divergence"]["cpr"], name
            assert figures["cpu_seconds"] > 0, name
    assert methods["gim"]["evaluations"] == 1 < within["evaluations"] < plain["evaluations"]
    assert plain["kl"] == sorted(plain["kl"], reverse=True)


def test_a_task_that_the_model_does_not_have_is_left_out_with_a_reason(compared: dict[str, Any]) -> None:
    assert "docstring" in compared["demo docstring"]["skipped"]
    assert compared["demo docstring"]["skipped"] in methods_tables.markdown(compared)


def test_the_curve_of_a_search_has_steps_at_its_circuits() -> None:
    """Of 1,000 edges, circuits of 15, 3 and 90: none fits up to .002, and all of the model is at 1."""
    values = {15: 0.5, 3: 0.9, 90: 0.125}
    circuits: Any = [SimpleNamespace(edges=range(size)) for size in values]
    client: Any = SimpleNamespace(
        evaluate_many=lambda model, task, given, metric: [
            Evaluation(metric, values[len(each.edges)], full=0.0, empty=1.0) for each in given
        ]
    )
    areas = judging._areas(client, Subject("", "demo", BuiltinTask("ioi"), 0.1), circuits, "l2", 1000)
    faithful = [0, 0, 0.1, 0.1, 0.5, 0.5, 0.875, 0.875, 0.875, 1]
    assert areas["cpr"] == pytest.approx(np.trapezoid(faithful, FRACTIONS))
    assert areas["cpr_log"] == pytest.approx(np.trapezoid(faithful, np.log10(FRACTIONS)) / 3)
    assert areas["cmd"] == pytest.approx(np.trapezoid(1 - np.array(faithful), FRACTIONS))


def test_tables_of_methods_tell_what_holds_and_where_not(compared: dict[str, Any]) -> None:
    row, _ = methods_tables.orders(compared)[2:]
    own = compared["demo ioi"]["methods"]
    better = [
        own["gim"]["logit_difference"][area] >= own["eap_ig"]["logit_difference"][area] for area in CPRS
    ]
    assert row.count("1 of 1") >= sum(better)
    assert ("demo ioi" in row) == ("0 of 1" in row)
    tinytalk = {methods_tables.TINYTALK: compared["demo ioi"]}
    share = own[WITHIN_GIM]["evaluations"] / own[PLAIN]["evaluations"]
    row = next(line for line in methods_tables.targets(tinytalk) if "gim's 5%: evaluations" in line)
    assert row.endswith("| yes |" if share <= 1 / 15 else "| no |")
    assert all(line.endswith("| - |") for line in methods_tables.targets({})[2:])


def test_the_benchmark_of_sampling_measures_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {*sampling_tables.MOST_OVER_BOUND, "n 4, m 4"}
    monkeypatch.setattr(simulated, "KINDS", [each for each in simulated.KINDS if each.name in some])
    parts = {"known": simulated.known_steps(3), "kinds": simulated.kinds(3), "plans": simulated.plans(40)}
    results = {name: {"figures": own, "measured_on": "nowhere"} for name, own in parts.items()}
    lines = sampling_tables.targets(results)
    assert len(lines) == 2 + len(sampling_tables.KNOWN) + 1 + len(sampling_tables.MOST_OVER_BOUND) + 4
    plans = [line for line in lines if line.startswith("| plans, 40 random")]
    assert len(plans) == 2
    assert all(line.endswith("| yes |") for line in plans)
    steps = parts["known"]["steps"]
    assert parts["known"]["lower_bound"] <= steps["fptas"][0] <= steps["longest_first"][0] < steps["fifo"][0]
    steps["fifo"][2] *= 1.5
    own = parts["kinds"]["noise .3"]
    assert own["over_bound"]["longest_first"] == min(own["over_bound"].values())
    own["over_bound"]["fifo"] = 0.9
    failing = sampling_tables.targets(results)
    assert [line.startswith("| simulated steps, fifo") for line in failing if line.endswith("| no |")].count(
        True
    ) == 1
    assert any(line.startswith("| auto / best policy, worst kind of run (noise .3)") for line in failing)
    assert sampling_tables.markdown(results).count("**") == 4 * len(parts["kinds"])
    peaks = own["peak_of_whole"]
    assert 0.1 < peaks["rounds"] < peaks["fifo"] < peaks["longest_first"] < 1
    assert parts["kinds"]["n 4, m 4"]["peak_of_whole"]["fifo"] == 1
    runs = {
        name: {
            "steps": [steps],
            "lower_bound": [100],
            "peak_kv_tokens": [peak],
            "prompt_tokens_computed": [40],
            "tokens": [400],
            "seconds": [2.0],
            "cpu_seconds": [1.0],
        }
        for name, steps, peak in (("whole group", 50, 1000), ("rounds", 200, 300), ("fifo", 110, 340))
    }
    replayed = {"fifo": {"over_bound": 1.06, "peak_of_whole": 0.33}}
    measured = {"auto": "fifo", "runs": runs, "replayed": replayed, "differ": 1, "compared": 160}
    plain = {"ours": [9.0, 8.0, 1.0], "plain": [10.0] * 3, "ours_cpu": [1.0], "plain_cpu": [2.0]}
    results = {
        "transformers": {"figures": {"toy": measured}, "measured_on": "nowhere"},
        "vllm": {"figures": {"toy": measured | {"plain": plain}}, "measured_on": "nowhere"},
    }
    ours = [line.split(" | ")[1:] for line in sampling_tables.targets(results)[2:]]
    assert ours[:4] == [
        ["0.340", "-", "≤ 0.35", "yes |"],
        ["0.550", "-", "≤ 0.7", "yes |"],
        ["1.100", "-", "≤ 1.08", "no |"],
        ["1", "-", "0", "no |"],
    ]
    assert ours[7:] == [["1", "-", "-", "- |"], ["0.80", "-", "≥ 0.9", "no |"], ["0.50", "-", "-", "- |"]]
    assert "| toy, vllm | **fifo** | 1.100 (1.060) | 0.340 (0.330) | 40 | 200 | 2.50 |" in (
        sampling_tables.by_model(results)
    )
    assert sampling_tables.targets({}) == lines[:2], "what was not measured has no rows"
