"""What may mislead about an answer, case by case, beside what does not and is not to be told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.fake_engine import OBJECTIVE, FakeEngine
from helpers.specs import acdc
from helpers.waiting import result_of, wait_end

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.jobs import warnings
from pahq_server.jobs.service import JobPolicy, JobService

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


# In jobs

SPEC = acdc(1e6, grouping="gates")


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
        assert again.summary == job.summary is not None
    finally:
        service.close()
