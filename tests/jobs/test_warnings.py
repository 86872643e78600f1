"""What may mislead about an answer, case by case, beside what does not and is not to be told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.fake_engine import OBJECTIVE, FakeEngine
from helpers.waiting import result_of, wait_end

from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.engine import CleanRun, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.core.verdict import SearchResult, Verdict
from pahq_server.jobs import warnings
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.jobs.spec import DiscoverySpec

GRAPH = Graph(layers=2, heads=2, kv_heads=2)
GOOD = TokenTask(
    clean=((1, 2, 3), (4, 5, 6), (7, 8)),
    corrupted=((1, 9, 3), (4, 9, 6), (9, 8)),
    answers=(1, 2, 3),
    wrong_answers=(4, 5, 6),
)


def of_task(task: TokenTask, ablation: str = "resample", causal: bool = True) -> list[str]:
    asked = replace(OBJECTIVE, ablation=ablation)
    return list(warnings.of_request(ResolvedObjective(asked, task, GRAPH, "c0ffee", causal=causal)))


def told(texts: list[str] | tuple[str, ...], *parts: str) -> None:
    """Exactly one warning, with these parts, that ends like a sentence."""
    (text,) = texts
    for part in parts:
        assert part in text
    assert text.endswith(".")


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_a_good_task(ablation: str) -> None:
    assert of_task(GOOD, ablation) == []
    assert of_task(replace(GOOD, answers=None, wrong_answers=None), ablation) == []
    assert of_task(replace(GOOD, positions=(1,)), ablation) == []


def test_prompts_that_are_not_corrupted() -> None:
    told(of_task(replace(GOOD, corrupted=GOOD.clean)), "are the same in all 3 pairs", "no edge can matter")
    assert GOOD.corrupted is not None
    one = replace(GOOD, corrupted=(GOOD.corrupted[0], GOOD.clean[1], GOOD.corrupted[2]))
    told(of_task(one), "are the same in 1 of 3 pairs (first in task.clean[1])")
    single = TokenTask(((1, 2),), ((1, 2),))
    told(of_task(single), "are the same in the only pair")
    for ablation in ("zero", "mean"):  # corrupted prompts are not looked at
        assert of_task(replace(GOOD, corrupted=GOOD.clean), ablation) == []


def test_prompts_that_are_corrupted_too_late() -> None:
    at_start = replace(GOOD, positions=(1,), corrupted=((1, 2, 9), (4, 5, 9), (7, 8)))
    told(
        [text for text in of_task(at_start) if "only after" in text],
        "is read in 2 of 3 pairs (first in task.clean[0])",
    )
    late = TokenTask(((1, 2, 3), (4, 5, 6)), ((1, 2, 9), (4, 5, 9)), positions=(0, 1))
    told(of_task(late), "only after the last position", "in all 2 pairs")
    assert of_task(late, causal=False) == []  # there, what comes later matters
    assert of_task(replace(late, positions=(2,))) == []


def test_positions_before_the_corruption() -> None:
    task = TokenTask(((1, 2, 3), (4, 5, 6)), ((1, 9, 3), (4, 9, 6)), positions=(2, 0))
    told(of_task(task), "is read (0)")
    assert of_task(task, causal=False) == []
    assert of_task(replace(task, positions=(2, 1))) == []


def test_a_mean_that_is_no_other_value() -> None:
    told(of_task(TokenTask(((1, 2, 3),)), "mean"), "since there is one prompt")
    assert of_task(TokenTask(((1, 2, 3),)), "zero") == []
    same_start = TokenTask(((1, 2, 3), (1, 2, 4)), positions=(1,))
    told(of_task(same_start, "mean"), "do not differ at any position of the metric")
    assert of_task(replace(same_start, positions=(2,)), "mean") == []
    assert of_task(same_start, "mean", causal=False) == []
    # Beyond the shorter prompt, the longer one is its own mean.
    told(of_task(TokenTask(((1, 2), (1, 2, 3))), "mean"), "mean ablation changes nothing")


def test_answers_that_are_wrong_answers() -> None:
    told(of_task(replace(GOOD, wrong_answers=GOOD.answers)), "same token in all 3 prompts")
    told(of_task(replace(GOOD, wrong_answers=(4, 5, 3))), "in 1 of 3 prompts (first in task.clean[2])")
    assert of_task(replace(GOOD, wrong_answers=None)) == []


def test_repeated_prompts() -> None:
    task = TokenTask(((1, 2), (3, 4), (1, 2)), ((1, 5), (3, 5), (1, 5)))
    told(of_task(task), "repeated in 1 of 3 prompts (first in task.clean[2])")
    assert of_task(replace(task, corrupted=((1, 5), (3, 5), (1, 6)))) == []
    assert of_task(replace(task, answers=(1, 1, 2))) == []


def test_nothing_but_first_tokens() -> None:
    told(of_task(TokenTask(((1,), (2,)), ((3,), (4,)))), "first token in all 2 prompts")
    some = TokenTask(((1,), (2, 3)), ((3,), (4, 5)))
    told(of_task(some), "first token in 1 of 2 prompts (first in task.clean[0])")
    told(of_task(replace(GOOD, positions=(0,), corrupted=((9, 2, 3), (8, 5, 6), (9, 8)))), "in all 3 prompts")
    assert of_task(replace(some, clean=((1, 2), (2, 3)), corrupted=((3, 2), (4, 5)))) == []


def test_what_an_engine_found_comes_first() -> None:
    resolved = ResolvedObjective(
        OBJECTIVE, replace(GOOD, corrupted=GOOD.clean), GRAPH, "r", warnings=("Tokens.",)
    )
    assert warnings.of_request(resolved)[0] == "Tokens."
    assert len(warnings.of_request(resolved)) == 2


# The full model and the empty circuit


def of_ends(full: float, empty: float, margins: tuple[float, ...] | None = None) -> list[str]:
    return list(warnings.of_baseline(warnings.Ends("l2", full, empty), CleanRun(margins)))


@pytest.mark.parametrize(
    ("full", "empty", "close"),
    [
        (0.0, 0.0, True),
        (0.0, 9e-7, True),
        (0.0, 1.1e-6, False),
        (-3.0, -2.98, True),
        (-3.0, -2.96, False),
        (-3.0, 3.0, False),
        (-1e-7, 1e-7, True),
        (1e30, 1.02e30, False),
    ],
)
def test_ends_that_are_close(full: float, empty: float, close: bool) -> None:
    found = of_ends(full, empty)
    if close:
        told(found, f"the same l2 ({full + 0.0:.6g} and {empty:.6g})")
    else:
        assert found == []
    assert ("almost" in "".join(found)) is (close and full != empty)


def test_an_empty_circuit_that_is_better() -> None:
    told(of_ends(3.0, -1.0), "The empty circuit has a lower, that is better, l2")
    told(of_ends(3.0, -1.0, (-3.0,)), "does not do the task")  # which says why


def test_models_that_do_not_do_the_task() -> None:
    told(of_ends(0.0, 1.0, (-1.0, 0.5)), "is -0.25 on the clean", "at 1 of 2 positions")
    told(of_ends(0.0, 1.0, (0.0, 0.0)), "is 0 on the clean", "at 0 of 2 positions")
    told(of_ends(0.0, 1.0, (-0.1, -0.1, 9.0)), "mostly does not do the task", "at 1 of 3 positions")
    assert of_ends(0.0, 1.0, (-0.1, 9.0)) == []
    assert of_ends(0.0, 1.0, (1.0,)) == []


# Results

BELOW = ["input->m0", "m0->m1", "m1->logits"]


def of_result(
    names: list[str], value: float, full: float = 0.0, empty: float = 2.0, threshold: float | None = 0.5
) -> list[str]:
    circuit = Circuit.from_names(GRAPH, names)
    verdicts = (Verdict(False, 0, 0.0, 0.25, False),)
    scores = np.full(GRAPH.num_edges, np.nan)
    result = SearchResult(circuit, scores, verdicts, value, full, empty)
    return list(warnings.of_search(ResolvedObjective(OBJECTIVE, GOOD, GRAPH, "r"), threshold, result))


def test_a_good_result() -> None:
    assert of_result(BELOW, 0.4) == []
    assert of_result(BELOW, 1.79) == []  # a faithfulness of .105
    assert of_result(BELOW, -5.3, full=-4.5, empty=0.0) == []  # of 1.18


def test_circuits_without_effect() -> None:
    nothing, unfaithful = of_result([], 2.0)
    told([nothing], "No edge is kept", "by the threshold 0.5", "change was 0.25", "Use a smaller threshold")
    told([unfaithful], "The faithfulness is 0: the circuit has lost the behaviour", "kl_divergence 2, of the")
    pathless, _ = of_result(["m0->m1", "m1->logits"], 2.0)
    told([pathless], "None of the 2 kept edges is on a path from input to logits")
    told(of_result(["m1->logits"], 0.1), "The only kept edge is not on a path")


def test_circuits_that_keep_nearly_everything() -> None:
    names = [GRAPH.edge_name(edge) for edge in range(GRAPH.num_edges)]
    told(of_result(names, 0.0), f"{GRAPH.num_edges} of {GRAPH.num_edges} edges are kept", "larger threshold")
    told(of_result(names[1:], 0.0), f"{GRAPH.num_edges - 1} of {GRAPH.num_edges} edges are kept")
    assert of_result(names, 0.0, threshold=None) == []  # as was asked for
    assert of_result([*names[: int(0.9 * len(names))], "input->logits"], 0.0) == []


def test_unfaithful_circuits() -> None:
    told(of_result(BELOW, 1.82), "The faithfulness is 0.09: the circuit has lost the behaviour")
    told(of_result(BELOW, 3.0), "The faithfulness is -0.5: the circuit does worse than the empty circuit")
    told(of_result(BELOW, -3.7, full=-3.0, empty=0.0), "The faithfulness is 1.23: the circuit goes beyond")
    told(of_result(BELOW, 5.0, full=1.0, empty=1.0), "have the same kl_divergence")  # and no faithfulness


def test_given_circuits() -> None:
    resolved = ResolvedObjective(
        OBJECTIVE, replace(GOOD, corrupted=GOOD.clean), GRAPH, "r", clean_run=CleanRun((-1.0,))
    )
    ends = warnings.Ends("l2", 0.0, 2.0)
    found = warnings.of_evaluation(resolved, Circuit.empty(GRAPH), 2.0, ends)
    words = (
        "are the same in all",
        "does not do the task",
        "The circuit has no edges",
        "The faithfulness is 0",
    )
    assert len(found) == len(words)
    for text, part in zip(found, words, strict=True):
        assert part in text
    pathless = Circuit.from_names(GRAPH, ["m1->logits"])
    (text,) = warnings.of_evaluation(ResolvedObjective(OBJECTIVE, GOOD, GRAPH, "r"), pathless, 0.1, ends)
    assert "not on a path" in text


# In jobs

SPEC = DiscoverySpec(OBJECTIVE, "acdc", 1e6, gates=True)


class Warned(FakeEngine):
    """Serves a model that cannot do the task."""

    def open(self, resolved: ResolvedObjective) -> object:  # type: ignore[override]
        resolved.clean_run.margins = (-1.0,)
        return super().open(resolved)


def test_a_job_gathers_them() -> None:
    def score(row: PatchedPass) -> float:
        return float(2 * row.circuit.graph.num_edges - row.circuit.num_kept)

    engine = Warned(score=score)
    engine.request_warnings = ("Look at the tokens.",)
    service = JobService(engine, "1.2.3", JobPolicy(reuse=True))
    service.start()
    try:
        checked, _ = service.check(SPEC, "")
        assert checked.warnings == ("Look at the tokens.",)
        job = service.create(SPEC, "")
        assert job.facts.warnings == ("Look at the tokens.",)
        result = result_of(service, job)
        parts = ("Look at the tokens.", "does not do the task", "No edge is kept", "The faithfulness is 0")
        listed, found = service.page(None, 10)[0][0], service.find(job.name)
        for texts in (result.warnings, listed.warnings, found.warnings, job.warnings):
            assert len(texts) == len(parts)
            assert all(part in text for part, text in zip(parts, texts, strict=True))
        assert "warnings" not in result.request
        # A job that takes over the result is told the same at once.
        again = service.create(SPEC, "")
        assert wait_end(again).ended is not None
        assert again.warnings == job.warnings
        assert again.outcome == job.outcome is not None
    finally:
        service.close()
