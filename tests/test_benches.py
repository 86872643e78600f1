"""Benchmarks run in small here, so that those that take long or need another machine can be relied on."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
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
from bench.neurons import capture, planted, pronouns
from bench.neurons import tables as neurons_tables
from bench.pruning import cost
from bench.pruning import tables as pruning_tables
from bench.pruning import tasks as pruning_tasks
from bench.sampling import simulated
from bench.sampling import tables as sampling_tables
from bench.workers import costs, real
from bench.workers import tables as workers_tables
from bench.workers.scores import Effects, Scorer
from bench.workers.simulation import AS_BUILT, Costs, Setting, SimulatedSearch, simulate
from helpers.simulated import simulated_device

from pahq_client import BuiltinTask, Evaluation
from pahq_client.curve import FRACTIONS
from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.task import BuiltinTask as ServerTask
from pahq_server.demo import model_path
from pahq_server.engine.cost import forward_operations
from pahq_server.methods.verdicts import Verdict

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
    assert sampling_tables.targets({}) == lines[:2], "what was not measured has no rows"


def test_the_table_of_sampling_tells_what_models_gave() -> None:
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
    replayed = {
        "fifo": {"over_bound": 1.1, "peak_of_whole": 0.34},
        "rounds": {"over_bound": 2.0, "peak_of_whole": 0.3},
    }
    measured = {
        "auto": "fifo",
        "runs": runs,
        "replayed": replayed,
        "groups": 10,
        "differ": 1,
        "compared": 160,
    }
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
    assert "| toy, vllm | **fifo** | 1.100 (1.100) | 0.340 (0.340) | 40 | 200 | 2.50 |" in (
        sampling_tables.by_model(results)
    )


def test_a_simulated_search_finds_the_edges_whose_effects_are_large() -> None:
    graph = Graph(3, 2, 2)
    start, costs = Circuit.full(graph), _costs(graph)
    effects = Effects(1.0, 0.5, 0.5, kept=0.05).draw(graph, 1)
    assert (effects >= 1).mean() == pytest.approx(0.05, abs=1 / graph.num_edges)
    for setting in (
        Setting(1),
        Setting(3),
        Setting(5, both_verdicts=False, sends_once=False),
        Setting(5, knows_workers=False),
    ):
        search = SimulatedSearch(start, setting)
        steps, scorer = search.decide(), Scorer(effects)
        passes = next(steps)
        while passes:
            passes = _following(steps, scorer(passes))
        assert search.circuit.kept.tolist() == (effects >= 1).tolist()
        run = simulate(start, [effects], costs, setting)
        assert run.verdicts == graph.num_edges, "no edge goes without a test"
        assert run.spent.total == pytest.approx(setting.workers * run.seconds), "nothing is lost but counted"
        # However the passes are shared, those that are used take the same.
        alone = simulate(start, [effects], costs, Setting(1, window=1))
        assert run.spent.used == pytest.approx(alone.spent.used, rel=0.2)
        assert alone.spent.wasted == 0


def test_simulated_workers_share_what_can_be_shared() -> None:
    """Jobs as many as workers, with nothing to predict and nothing to pay: every worker is always busy."""
    graph = Graph(3, 2, 2)
    free = replace(_free(graph), worker_batch=0.0)
    start, nothing = Circuit.full(graph), np.zeros(graph.num_edges)
    alone = simulate(start, [nothing] * 4, free, Setting(1, jobs=4))
    shared = simulate(start, [nothing] * 4, free, Setting(4, jobs=4))
    assert alone.seconds == pytest.approx(4 * shared.seconds)
    assert shared.spent.repeated_bases == shared.spent.waiting == shared.spent.head == 0
    busy = replace(free, head_batch=0.02)
    waits = simulate(start, [nothing] * 4, busy, Setting(4, jobs=4))
    # Four workers wait for each step, in which four operations begin.
    assert waits.spent.head == pytest.approx(0.02 * waits.batches)
    assert waits.spent.waiting == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="effects of 4 jobs, got 1"):
        simulate(start, [nothing], free, Setting(4, jobs=4))


def test_simulated_jobs_do_not_wait_for_each_other() -> None:
    """On workers of their own two jobs take no longer than the longer one alone."""
    graph = Graph(3, 2, 2)
    free = _free(graph)
    start = Circuit.full(graph)
    effects = [Effects(1.0, 0.5, 0.5, kept=kept).draw(graph, 1) for kept in (0.02, 0.3)]
    alone = [simulate(start, [each], free, Setting(1)).seconds for each in effects]
    both = simulate(start, effects, free, Setting(2, jobs=2))
    # When one has ended, its worker helps, and computes base circuits of the other once more.
    assert both.seconds <= max(alone) + both.spent.repeated_bases


def test_effects_are_drawn_as_they_were_found() -> None:
    """A search over drawn effects gives about the variances that they were drawn with."""
    graph, drawn = Graph(6, 6, 6), Effects(1.0, 0.5, 0.25, kept=0.5)
    effects = drawn.draw(graph, 3)
    verdicts = [Verdict(False, edge, delta, delta, delta >= 1) for edge, delta in enumerate(effects)]
    found = Effects.of_search(graph, verdicts, 1.0)
    assert found.kept == pytest.approx(0.5, abs=0.001)
    assert found.of_senders == pytest.approx(1.0, rel=0.5)
    assert found.of_receivers == pytest.approx(0.5, rel=0.5)
    assert found.rest == pytest.approx(0.25, rel=0.5)


def _following(steps: Generator[Sequence[PatchedPass], Sequence[float]], scores: Sequence[float]) -> Any:
    """The passes after these scores; none at the end."""
    try:
        return steps.send(scores)
    except StopIteration:
        return ()


def _costs(graph: Graph) -> Costs:
    return Costs(
        passes=np.linspace(0.03, 0.01, graph.num_receivers),
        base_passes=2.0,
        scratch=0.1,
        worker_batch=0.001,
        head_batch=0.002,
        head_pass=1e-5,
        head_piece=0.001,
        head_piece_known=0.0005,
    )


def _free(graph: Graph) -> Costs:
    """Costs of which the server has no part."""
    return replace(_costs(graph), head_batch=0.0, head_pass=0.0, head_piece=0.0, head_piece_known=0.0)


def test_the_costs_of_the_large_model_grow_with_depth() -> None:
    effects = Effects(1.0, 1.0, 1.0, 0.01)
    constants = costs.Constants(0.1, 2.0, 8.0, 0.5, 100.0, 20.0, 1e-3, 1e-5, 1e-4, 1e-6, 1e-3, 5e-4, effects)
    assert costs.Constants.of_stored(json.loads(json.dumps(constants.stored()))) == constants
    graph = costs.GRAPH
    assert graph.num_edges == 1_592_881
    slow, fast = (costs.costs(constants, costs.DEVICES[name]) for name in ("float32", "bfloat16"))
    by_layer = slow.passes[[graph.receiver_of("q", layer) for layer in reversed(range(graph.layers))]]
    assert (np.diff(by_layer) > 0).all()
    assert slow.passes[graph.logits] == slow.passes.min()
    assert (fast.passes < slow.passes).all()
    # With everything alive and every token computed, the deepest pass is nearly a plain forward pass.
    least, most = (costs.pass_operations(costs.LLAMA_8B, 0, live, 100, 15) for live in (0.0, 1.0))
    assert least < 0.1 * most
    assert most == pytest.approx(forward_operations(costs.LLAMA_8B, 100, 15), rel=0.05)


def test_the_tables_of_workers_tell_what_holds_and_where_not() -> None:
    seconds = dict(zip(real.SERVERS, ([10.0, 20.0], [6.0, 12.0], [5.0, 12.5], [10.2, 22.0]), strict=True))
    own = {"seconds": seconds, "different": 1, "tests": 5}
    spent = dict.fromkeys(workers_tables.PARTS, 0.1) | {"used": 0.4}
    run = {"device": "float32", "step": AS_BUILT, "passes": 30, "batches": 3, "verdicts": 25, "lost": spent}
    runs = [
        run | {"workers": workers, "jobs": jobs, "seconds": wall}
        for workers, jobs, wall in ((1, 1, 64.0), (64, 1, 4.0), (1, 8, 512.0), (64, 8, 10.0))
    ]
    results = {
        "real": {"figures": {"toy": own}, "measured_on": "nowhere"},
        "simulation": {"figures": {"runs": runs, "devices": {"float32": "a GPU"}}, "measured_on": "nowhere"},
    }
    lines = [line.split(" | ")[1:] for line in workers_tables.targets(results)[2:]]
    assert lines == [
        ["1.80", "≥ 1.7", "≥ 1.9", "yes |"],
        ["1.08", "≥ 1.1", "-", "no |"],
        ["1.06", "≤ 1.1", "≤ 1.03", "yes |"],
        ["1", "0", "-", "no |"],
        ["0.25", "-", "≥ 0.7", "no |"],
        ["0.80", "-", "≥ 0.7", "yes |"],
    ]
    assert workers_tables.by_workers(results)[3].startswith("| a GPU | 64 | 0.25 | 16.0 | 10 | 40% | 10% |")
    assert len(workers_tables.by_step(results)) == 4
    assert workers_tables.markdown({}).count("\n|--") == 4, "what was not measured has no rows"


@pytest.mark.skipif(
    not real.TINYTALK.is_dir(), reason="needs ../shared/models, which is not part of the repository"
)
def test_the_benchmark_of_workers_compares_servers() -> None:
    work = real.tinytalk(jobs=2, prompts=1, threshold=0.5)
    found = real.compare(work, (real.LOCAL,), 2)
    assert found["different"] == 0 < found["tests"]
    assert len(found["seconds"][real.LOCAL]) == 2


def test_the_benchmark_of_node_pruning_measures_what_it_says() -> None:
    task = ServerTask("ioi", 4, 0)
    tight, loose = pruning_tasks.budgets_of(str(model_path()), task, (0.001, 5.0), steps=60, seed=1)
    for own in (tight, loose):
        assert own["kl"] <= own["max_kl"]
        assert own["parameters"] <= own["all_parameters"]
        assert own["stochastic_kl"] > 0
        assert own["cpu_seconds"] > 0
        assert own["full_accuracy"] == 1
    assert loose["parameters"] < tight["parameters"]
    budgets = {"demo ioi": [tight, loose]}
    results = {"budgets": {"figures": budgets, "measured_on": "nowhere"}}
    what, measured, must, *_, holds = pruning_tables.targets(results)[2].split(" | ")
    assert "2 runs" in what
    assert (measured, must, holds) == ("2", "2", "yes |")
    tight["kl"] = 0.002
    assert pruning_tables.targets(results)[2].endswith("| no |")
    assert len(pruning_tables.by_budget(results)) == 4


def test_the_benchmark_of_node_pruning_measures_what_a_step_costs() -> None:
    figures = cost.run(layers=1, rounds=1)
    assert all(value > 0 for value in figures.values())
    assert figures["senders_bytes"] == 14 * 32 * 16 * 768 * 4
    assert figures["times_floor"] == pytest.approx(figures["step_seconds"] / figures["floor_seconds"])
    lines = pruning_tables.targets({"cost": {"figures": figures, "measured_on": "nowhere"}})
    assert len(lines) == 5


def test_the_benchmark_of_neurons_measures_what_it_says() -> None:
    figures = capture.gpt2(layers=1, rounds=1)
    assert all(value > 0 for value in figures.values())
    assert figures["reducer_bytes"] == 3 * 8 * 3072
    assert figures["times_floor"] == pytest.approx(figures["seconds"] / figures["floor_seconds"])
    figures |= {"times_floor": 1.0, "times_floor_peak": 1.3}
    lines = neurons_tables.targets({"gpt2": {"figures": figures, "measured_on": "nowhere"}})
    assert [line.split(" | ")[1:] for line in lines[2:]] == [
        ["1.00", "≤ 1.3", "yes |"],
        ["1.30", "≤ 1.2", "no |"],
    ]
    assert neurons_tables.targets({})[2:] == [], "what was not measured has no rows"


@pytest.mark.filterwarnings("ignore::pahq_client.PahqWarning")
def test_the_benchmark_of_neurons_finds_planted_ones_and_steers_by_them() -> None:
    figures = planted.run((1, 5))
    results = {"planted": {"figures": figures, "measured_on": "nowhere"}}
    lines = [line.split(" | ")[1:] for line in neurons_tables.targets(results)[2:]]
    assert lines[:3] == [["1.00", "1", "yes |"], ["1.00", "1", "yes |"], ["2", "2", "yes |"]]
    assert lines[3][1:] == ["≤ 10%", "yes |"]
    assert len(neurons_tables.by_size(results)) == 3  # 5 is none of the sizes that are shown
    one, five = figures["1"], figures["5"]
    one["recall"], five["values"] = 0.5, [*one["values"][:4], one["values"][3]]
    five["controls"][4] = [0.0, 0.0, 0.0, 0.0, -1.0]
    failing = [line.split(" | ")[1:] for line in neurons_tables.targets(results)[2:]]
    assert [line[-1] for line in failing] == ["yes |", "no |", "no |", "no |"]
    assert (failing[1][0], failing[2][0]) == ("0.50", "1")


@pytest.mark.filterwarnings("ignore::pahq_client.PahqWarning")
@pytest.mark.skipif(
    not pronouns.TINYTALK.is_dir(), reason="needs ../shared/models, which is not part of the repository"
)
def test_the_benchmark_of_neurons_tries_settings_and_measures_the_best_on_other_prompts() -> None:
    one = pronouns.Setting("all", 1)
    figures = pronouns.run((pronouns.USUAL, one), 16, 5, pronouns.TRIED, singles=1)
    assert (figures["best"], set(figures["held_out"])) == (one.name, {pronouns.USUAL.name, one.name})
    own = figures["held_out"][one.name]
    assert own["neurons"] == [1, 1]
    assert own["she"]["values"][1] > 0 > own["he"]["values"][1], "prompts lean towards their names' pronouns"
    assert pronouns.least_of(figures["tried"][one.name]) > 1
    results = {"pronouns": {"figures": figures, "measured_on": "nowhere"}}
    assert len(neurons_tables.targets(results)) == 2 + 4
    assert len(neurons_tables.by_strength(results)) == 2 + 2 * 2 * 2
    assert len(neurons_tables.by_setting(results)) == 2 + 2
    assert [each["neurons"] for each in figures["singles"]] == [[1, 0], [0, 1]]
    assert [each["strength"] * each["delta"] > 0 for each in figures["singles"]] == [True, True]
    assert len(neurons_tables.by_neuron(results)) == 2 + 2


def test_movements_count_towards_the_pronoun_that_is_meant() -> None:
    she = {"values": [1.0, 2.0, 5.0], "controls": [[2.0, 2.0, 3.0], [1.5, 2.0, 1.0]]}
    he = {"values": [-2.0, -1.0, -2.0], "controls": [[-1.0, -1.0, -1.0], [-0.5, -1.0, 0.0]]}
    figures = {"strengths": [-1.0, 0.0, 1.0], "she": she, "he": he}
    both, lowered = pronouns.movement(figures, 1.0), pronouns.movement(figures, -1.0)
    assert (both.own, both.mean, both.largest) == (1.0, 0.25, 0.5)
    assert (lowered.own, lowered.mean, lowered.largest) == (1.0, 0.0, 0.0)
    wrong = pronouns.movement(figures, 1.0, ["he"])
    assert (wrong.own, wrong.mean, wrong.times) == (-1.0, 0.5, -2.0)
    assert pronouns.movement(figures, -1.0, ["he"]).own == 1.0


def test_stories_differ_in_names_and_pronouns_alone() -> None:
    she, he = pronouns.told(20)
    assert len(set(she)) == len(set(he)) == 20
    words = {"she": "he", "her": "his", "girl": "boy"}
    for one, other in zip(she, he, strict=True):
        assert not {"he", "his", "him", "boy"} & set(one.lower().split())
        assert not {"she", "her", "girl"} & set(other.lower().split())
        pairs = zip(one.lower().split(), other.lower().split(), strict=True)
        for a, b in pairs:
            a, b = a.strip(".,"), b.strip(".,")
            names = (a.title() in pronouns.NAMES["she"][0], b.title() in pronouns.NAMES["he"][0])
            assert a == b or words.get(a) == b or (a, b) == ("her", "him") or names == (True, True)
        shortened = pronouns.cut(one)
        assert one.startswith(shortened)
        assert one[len(shortened) :].startswith(" she") or not shortened
    given = [set(" ".join(side[i] for side in pronouns.NAMES.values()).split()) for i in range(3)]
    assert len(set.union(*given)) == sum(map(len, given)), "names of stories are in no prompt"
    assert not set(pronouns.CHOOSING) & set(pronouns.HELD_OUT)


def test_tests_that_the_table_of_neurons_names_are_there() -> None:
    for _, _, modules in neurons_tables.EQUALITIES:
        for module, names in modules.items():
            text = (Path(__file__).parent / module).read_text("utf-8")
            assert all(f"def {name}(" in text for name in names), module


def test_the_tables_of_node_pruning_tell_what_holds_and_where_not() -> None:
    case = {"seeds": 10, "trained": 9, "polished": 10, "within": 10, "max_kl": 0.01, "cpu_seconds": 2.0}
    run = {"max_kl": 0.5, "kl": 0.4, "parameters": 60, "accuracy": 0.9, "full_accuracy": 0.95}
    run |= {"stochastic_kl": 0.7, "trained_kl": 0.6, "trained_parameters": 80, "all_parameters": 200}
    figures = {
        "planted": {"one, zero": case, "other, mean": case | {"polished": 9}},
        "tinytalk": {"max_kl": 0.5, "acdc_parameters": 100, "runs": [run | {"cpu_seconds": 3.0}]},
    }
    results = {name: {"figures": own, "measured_on": "nowhere"} for name, own in figures.items()}
    lines = [line.split(" | ")[1:] for line in pruning_tables.targets(results)[2:]]
    assert lines == [
        ["19", "20", "-", "no |"],
        ["18", "-", "20", "yes |"],
        ["0.60", "≤ 1", "≤ 0.5", "yes |"],
        ["0.050", "≤ 0.02", "-", "no |"],
        ["1", "1", "-", "yes |"],
    ]
    assert "| other, mean | 0.01 | 9 of 10 | 9 of 10 | 10 of 10 | 2.0 |" in pruning_tables.by_case(results)
    (row,) = pruning_tables.by_budget(results)[2:]
    assert (
        row
        == "| tinytalk IOI, answers in the loss | 0.5 | 0.7 | 0.6 | 0.4 | 40.0% | 30.0% | 0.90 (0.95) | 3 |"
    )
    assert pruning_tables.markdown({}).count("\n|--") == 3, "what was not measured has no rows"
