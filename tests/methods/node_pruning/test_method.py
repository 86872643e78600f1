"""Node pruning with a made-up engine: what it finds, whatever is killed, and what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.toy_nodes import LAYOUT, Toy

from pahq_server.core.artifact import unpack
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import (
    NODE_KINDS,
    Mask,
    MaskFigures,
    MeasureMasks,
    NodeLayout,
    TrainMasks,
    consistent,
)
from pahq_server.core.task import TokenTask
from pahq_server.methods.node_pruning.journal import (
    CHECKPOINT_S,
    Recorded,
    checkpoint_record,
    figures_record,
)
from pahq_server.methods.node_pruning.method import RECENT
from pahq_server.methods.node_pruning.parameters import MOST_STEPS, NodePruningParameters
from pahq_server.methods.node_pruning.polish import Bounds, binary, polish

from .toy import METHOD, RESOLVED, Run, masks_of

ASKED = NodePruningParameters(max_kl=0.1, steps=60)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("trains", [0.0, 0.2, 1.0])
def test_what_is_needed_is_found_exactly(seed: int, trains: float) -> None:
    """However badly training does: what it closes wrongly is opened again, what it leaves open goes."""
    toy = Toy(seed, trains=trains)
    run = Run(toy, replace(ASKED, seed=seed))
    assert run.artifact is not None
    header, _ = unpack(run.artifact.data)
    assert header["figures"]["kl"] <= 0.1
    assert header["figures"]["kl"] == toy.kl(run.kept)
    assert (run.kept == toy.planted).all()
    trained = masks_of(run.artifact)["trained"]
    assert header["trained_figures"]["kl"] == toy.kl(trained)
    assert header["repaired"] == (toy.kl(trained) > 0.1)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_more_can_go(seed: int) -> None:
    """Beside every single removal, where missing nodes add up to more than the budget now and then.

    In every other case answers must stay right, too: each needs half of all nodes that matter.
    """
    draw = np.random.default_rng(seed)
    toy = Toy(seed, needed=int(draw.integers(0, 8)))
    answers = [np.flatnonzero(toy.matters * (draw.random(LAYOUT.size) < 0.5)) for _ in range(8)]
    bounds = Bounds(float(draw.uniform(0, 3)), 0.75 if seed % 2 else None)

    def measured(mask: Mask) -> MaskFigures:
        whole = consistent(LAYOUT, mask)
        right = sum(whole[nodes].all() for nodes in answers)
        return MaskFigures(toy.kl(mask), 0.0, None, right / len(answers))

    log_alpha = draw.normal(0, 1, LAYOUT.size).astype(np.float32)
    search = polish(LAYOUT, log_alpha, np.ones(LAYOUT.size, dtype=bool), NODE_KINDS, bounds)
    figures: list[MaskFigures] | None = None
    count = 0
    while True:
        try:
            masks = search.send(figures)  # type: ignore[arg-type]
        except StopIteration as stop:
            found = stop.value
            break
        count += len(masks)
        figures = [measured(mask) for mask in masks]
    assert found.measured == count
    assert bounds.hold(measured(found.kept))
    assert (found.kept == consistent(LAYOUT, found.kept)).all()
    for gate in np.flatnonzero(found.kept):
        less = found.kept.copy()
        less[gate] = False
        assert not bounds.hold(measured(less)) or not (consistent(LAYOUT, less) != found.kept).any()


class Answering(Toy):
    """Right in three quarters of the prompts, and in a half as soon as anything lacks that matters."""

    def answer(self, operation: Operation) -> object:
        if not isinstance(operation, MeasureMasks):
            return super().answer(operation)
        kls = [self.kl(mask) for mask in operation.masks]
        return [MaskFigures(kl, 0.5, 1.0, 0.5 if kl else 0.75) for kl in kls]


@pytest.mark.parametrize("trains", [0.0, 1.0])
def test_answers_that_are_part_of_the_loss_stay_right(trains: float) -> None:
    toy, asked = Answering(1, trains=trains), replace(ASKED, max_kl=1e9)
    run = Run(toy, replace(asked, task_loss=1.0))
    assert run.artifact is not None
    assert unpack(run.artifact.data)[0]["figures"]["accuracy"] == 0.75
    assert (run.kept == toy.planted).all()
    assert not Run(toy, asked).kept.any()


@pytest.mark.parametrize("asked", [ASKED, NodePruningParameters(penalty=0.5, steps=40)])
def test_whenever_it_is_killed_the_result_is_the_same(asked: NodePruningParameters) -> None:
    toy = Toy(1, trains=0.3)
    whole = Run(toy, asked, seconds=11.0)
    assert whole.artifact is not None
    for operations in range(1, len(whole.asked)):
        begun = Run(toy, asked, operations=operations, seconds=11.0)
        ended = Run(toy, asked, begun.journal, seconds=0.02)  # its operations have other numbers of steps
        assert ended.artifact is not None
        assert ended.artifact.data == whole.artifact.data


def test_a_kill_repeats_no_more_than_a_checkpoint_allows() -> None:
    toy, asked = Toy(2), replace(ASKED, steps=100)
    begun = Run(toy, asked, operations=60, seconds=10.0)
    done = begun.told[-1].done
    recorded = Recorded.of(begun.journal, LAYOUT).training
    assert recorded is not None
    steps = [operation.steps for operation in begun.asked if isinstance(operation, TrainMasks)]
    assert set(steps) == {1}  # they take longer than an operation should
    assert 0 <= done - recorded.step < CHECKPOINT_S / 10.0


def test_measured_circuits_are_not_measured_again() -> None:
    toy = Toy(3)
    whole = Run(toy, ASKED)
    again = Run(toy, ASKED, whole.journal)
    assert again.artifact is not None
    assert whole.artifact is not None
    assert again.artifact.data == whole.artifact.data
    assert again.asked == []


def test_quick_steps_are_asked_for_together() -> None:
    run = Run(Toy(0), replace(ASKED, steps=1000), seconds=0.001)
    steps = [operation.steps for operation in run.asked if isinstance(operation, TrainMasks)]
    assert sum(steps) == 1000
    assert max(steps) > 10


def test_progress_counts_steps_and_shows_figures() -> None:
    run = Run(Toy(0), ASKED)
    done = [progress.done for progress in run.told]
    assert done == sorted(done)
    assert done[-1] == METHOD.total(ASKED, RESOLVED) == 60
    training = next(told for told in run.told if told.figures.get("size_heads"))
    assert training.stage == "training"
    assert {"kl", "lambda", "size_heads", "size_layers"} <= training.figures.keys()


def test_without_polish_the_circuit_is_that_of_training() -> None:
    toy = Toy(5)
    run = Run(toy, NodePruningParameters(penalty=1.0, steps=30, no_polish=True))
    assert run.artifact is not None
    header, arrays = unpack(run.artifact.data)
    masks = masks_of(run.artifact)
    assert (masks["kept"] == masks["trained"]).all()
    assert not header["polished"]
    assert (masks["trained"] == binary(LAYOUT, arrays["log_alpha"], NODE_KINDS)).all()


def test_kinds_that_are_not_asked_for_stay() -> None:
    run = Run(Toy(6), replace(ASKED, kinds=("heads",)))
    of = LAYOUT.split(run.kept)
    assert of["mlp_hidden"].all()
    assert of["mlp_outputs"].all()
    neurons = of["attention_neurons"].reshape(2, 3, 4)
    assert (neurons.all(2) == of["heads"]).all()
    assert not of["heads"].all()


def test_a_job_that_was_cancelled_gives_the_circuit_of_its_last_checkpoint() -> None:
    begun = Run(Toy(7), ASKED, operations=20, seconds=10.0)
    assert METHOD.partial(begun.context) is None  # it knows of no journal but that of earlier processes
    begun.context.journal = begun.journal
    found = METHOD.partial(begun.context)
    recorded = Recorded.of(begun.journal, LAYOUT).training
    assert found is not None
    assert recorded is not None
    header, arrays = unpack(found.data)
    assert header["steps"] == recorded.step
    assert header["figures"] is None
    assert (arrays["log_alpha"] == recorded.log_alpha).all()
    assert f"{recorded.step} of 60 steps" in found.warnings[0]


def test_a_budget_that_the_whole_model_exceeds_is_refused_before_training() -> None:
    class Lossy(Toy):
        def kl(self, mask: Any) -> float:
            return 0.2 + super().kl(mask)

    with pytest.raises(InvalidRequestError, match=r"at least the KL.*'fp32', which is 0\.2, got 0\.1"):
        Run(Lossy(0), ASKED)


def test_what_needs_nothing_says_so() -> None:
    run = Run(Toy(0, needed=0), ASKED)
    assert run.artifact is not None
    assert not run.kept.any()
    assert "Nothing is kept" in run.artifact.warnings[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "exactly one of max_kl and penalty is needed, got neither"),
        ({"max_kl": 1.0, "penalty": 1.0}, "got both"),
        ({"max_kl": 0.0}, "above 0"),
        ({"max_kl": -1.0}, ">= 0"),
        ({"max_kl": float("nan")}, "finite"),
        ({"penalty": float("inf")}, "finite"),
        ({"penalty": "much"}, "finite"),
        ({"max_kl": 1.0, "steps": -1}, f"from 1 to {MOST_STEPS}"),
        ({"max_kl": 1.0, "steps": MOST_STEPS + 1}, f"from 1 to {MOST_STEPS}"),
        ({"max_kl": 1.0, "steps": True}, "whole number"),
        ({"max_kl": 1.0, "seed": -1}, "from 0"),
        ({"max_kl": 1.0, "kinds": ("heads", "toes")}, "unknown kind of node 'toes'"),
        ({"max_kl": 1.0, "task_loss": -0.5}, ">= 0"),
        ({"max_kl": 1.0, "no_polish": 1}, "true or false"),
    ],
)
def test_bad_parameters(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        METHOD.read(fields)


def test_parameters_survive_being_stored() -> None:
    asked = NodePruningParameters(penalty=0.5, steps=0, kinds=("layers", "heads"), seed=3, task_loss=0.1)
    assert METHOD.read_stored(METHOD.stored(asked)) == asked
    assert asked.kinds == ("heads", "layers")
    assert asked.steps == 1000


@pytest.mark.parametrize(
    ("changes", "asked", "words"),
    [
        ({"metric": "l2"}, {}, "minimises the KL divergence"),
        ({"precision": "int8"}, {}, "does not run in 'int8'"),
        ({}, {"task_loss": 1.0}, "needs answers"),
        ({"layout": NodeLayout(2, 3, 4, 5, 0)}, {"kinds": ("mlp_hidden",)}, "no mlp_hidden"),
    ],
)
def test_objectives_that_do_not_fit(changes: dict[str, Any], asked: dict[str, Any], words: str) -> None:
    layout = changes.pop("layout", LAYOUT)
    resolved = replace(RESOLVED, objective=replace(RESOLVED.objective, **changes), nodes=layout)
    with pytest.raises(InvalidRequestError, match=words):
        METHOD.check(NodePruningParameters(max_kl=1.0, **asked), resolved)


def test_answers_make_a_task_loss_possible() -> None:
    task = TokenTask(RESOLVED.task.clean, RESOLVED.task.corrupted, (1, 1), (2, 2))
    METHOD.check(replace(ASKED, task_loss=1.0), replace(RESOLVED, task=task))


def test_all_nodes_of_a_kind_cost_what_they_do_in_the_published_model() -> None:
    penalty = ASKED.penalties(LAYOUT)
    heads, neurons = penalty.weights["heads"], penalty.weights["attention_neurons"]
    assert heads * 6 == pytest.approx(144 * 1e-4)
    assert neurons * 24 == pytest.approx(9216 * 2e-4)
    assert penalty.weights.keys() == set(LAYOUT.kinds)


# Journal


def test_a_journal_is_read_as_it_was_written() -> None:
    training = Run(Toy(0), ASKED, operations=9).context
    start = ASKED.start(LAYOUT)
    figures = [MaskFigures(0.1, 0.2, -0.3, 0.4), MaskFigures(1.0, 0.5)]
    data = b"".join([*map(figures_record, figures), checkpoint_record(start, [1.0, 2.0])])
    found = Recorded.of([data[:7], data[7:]], LAYOUT)
    assert found.figures == figures
    assert found.recent == (1.0, 2.0)
    assert found.training is not None
    assert (found.training.log_alpha == start.log_alpha).all()
    assert (found.training.step, found.training.scale, found.training.average) == (0, 2.0, None)
    assert training.counts["circuits"] >= 1


@pytest.mark.parametrize("damage", ["cut", "letter", "other model", "short figures"])
def test_what_is_no_journal_is_refused(damage: str) -> None:
    data = checkpoint_record(ASKED.start(LAYOUT), [])
    layout = LAYOUT
    match damage:
        case "cut":
            data = data[:-1]
        case "letter":
            data = b"X" + data[1:]
        case "other model":
            layout = NodeLayout(2, 3, 4, 5, 7)
        case "short figures":
            data = b"M" + (8).to_bytes(4, "little") + bytes(8)
    with pytest.raises(ValueError, match=r"journal|checkpoint|figures"):
        Recorded.of([data], layout)


def test_only_the_last_checkpoint_is_kept() -> None:
    run = Run(Toy(0), ASKED, seconds=11.0)
    size = len(checkpoint_record(run.context.parameters.start(LAYOUT), [0.0] * RECENT))
    assert sum(map(len, run.journal)) < 2 * size
    found = Recorded.of(run.journal, LAYOUT)
    assert found.training is not None
    assert found.training.step == ASKED.steps
    assert len(found.figures) == run.context.counts["circuits"]


def test_the_method_asks_for_nothing_else() -> None:
    run = Run(Toy(0), ASKED)
    assert {type(operation) for operation in run.asked} == {TrainMasks, MeasureMasks}
