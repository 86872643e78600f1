"""Neurons that carry a value with a made-up engine: what is found, whatever is killed, and what is said."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.toy_activations import ToyActivations

from pahq_server.core import activations
from pahq_server.core.activations import DescribeNeurons, SumNeurons, count_tokens, part_tokens
from pahq_server.core.artifact import unpack
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import TokenTask
from pahq_server.methods.neurons import journal
from pahq_server.methods.neurons.journal import Recorded
from pahq_server.methods.neurons.method import CONTEXTS
from pahq_server.methods.neurons.parameters import NeuronsParameters

from .toy import LAYOUT, METHOD, NEURONS, Run, resolved, texts

ASKED = NeuronsParameters(positive=20)
TASK = texts(0, 20, 15)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MOST_PART", 200)
    monkeypatch.setattr(activations, "LEAST_PART", 200)


@pytest.mark.parametrize("planted", [1, 7, 30])
@pytest.mark.parametrize("seed", range(3))
def test_planted_neurons_are_found_exactly(seed: int, planted: int) -> None:
    toy = ToyActivations(seed, NEURONS, planted)
    header, arrays = unpack(Run(toy, TASK, ASKED).data)
    assert header["raised"] == planted
    assert sorted(arrays["number"][:planted]) == toy.raised.tolist()
    assert sorted(arrays["number"][planted:]) == toy.lowered.tolist()
    assert arrays["delta"].tolist() == [1.0] * planted + [-1.0] * planted


@pytest.mark.parametrize("seed", range(3))
def test_all_that_is_told_is_what_a_dense_table_of_activations_says(seed: int) -> None:
    toy, draw = ToyActivations(seed, NEURONS, 10), np.random.default_rng(seed)
    starts = tuple(int(draw.integers(-len(ids), len(ids))) for ids in TASK.clean)
    asked = replace(ASKED, starts=starts, top_k=8)
    header, arrays = unpack(Run(toy, TASK, asked).data)
    sides = asked.spans(TASK)
    dense = [toy.activations(TASK, spans) for spans in sides]
    share = [(a > 0).mean(0) for a in dense]
    assert header["texts"] == [20, 15]
    assert header["tokens"] == [len(a) for a in dense]
    assert len(arrays["number"]) == 16
    assert arrays["number"][:8].tolist() == toy.raised.tolist()[:8]  # all are equal: the lowest numbers
    for row, number in enumerate(arrays["number"].tolist()):
        side = int(row >= header["raised"])
        own, spans = dense[side][:, number], sides[side]
        assert arrays["positive_share"][row] == share[0][number]
        assert arrays["negative_share"][row] == share[1][number]
        assert arrays["mean"][row] == pytest.approx(own.mean(), abs=1e-12)
        exact = sorted(own)[math.ceil(len(own) * 19 / 20) - 1]
        assert arrays["q95"][row] == pytest.approx(min(3, max(0, exact)), abs=0.0100001)
        places = [(span.text, at) for span in spans for at in range(span.first, span.last)]
        best = sorted(zip(-own, range(len(own)), strict=True))[:CONTEXTS]
        part = slice(row * CONTEXTS, (row + 1) * CONTEXTS)
        assert arrays["context_value"][part].tolist() == [-value for value, _ in best]
        first = 20 * side
        expected = [(places[at][0] - first, places[at][1]) for _, at in best]
        got = zip(arrays["context_text"][part], arrays["context_position"][part], strict=True)
        assert [(int(text), int(at)) for text, at in got] == expected


def test_texts_exchanged_give_the_sides_exchanged() -> None:
    toy = ToyActivations(3, NEURONS, 6)
    header, arrays = unpack(Run(toy, TASK, ASKED).data)
    exchanged = TokenTask(TASK.clean[20:] + TASK.clean[:20])
    _, others = unpack(Run(toy, exchanged, replace(ASKED, positive=15)).data)
    assert header["raised"] == 6
    for name, array in arrays.items():
        first, second = np.split(array, 2)
        sign = -1 if name == "delta" else 1
        name = {"positive_share": "negative_share", "negative_share": "positive_share"}.get(name, name)
        assert (others[name] == sign * np.concatenate([second, first])).all()


@pytest.mark.parametrize("seconds", [0.1, 11.0, 40.0])
def test_whenever_it_is_killed_the_result_is_the_same(seconds: float) -> None:
    toy = ToyActivations(1, NEURONS, 5)
    whole = Run(toy, TASK, ASKED, seconds=seconds)
    assert len(whole.asked) > 15
    for operations in range(1, len(whole.asked)):
        begun = Run(toy, TASK, ASKED, operations=operations, seconds=seconds)
        ended = Run(toy, TASK, ASKED, begun.journal)
        assert ended.data == whole.data
        twice = Run(toy, TASK, ASKED, begun.journal, operations=2, seconds=seconds)
        assert Run(toy, TASK, ASKED, twice.journal).data == whole.data


def test_a_kill_repeats_no_more_than_a_checkpoint_allows() -> None:
    toy = ToyActivations(2, NEURONS, 5)
    whole = Run(toy, TASK, ASKED, seconds=10.0)
    for operations in range(1, len(whole.asked)):
        begun = Run(toy, TASK, ASKED, operations=operations, seconds=10.0)
        ended = Run(toy, TASK, ASKED, begun.journal)
        assert len(whole.asked) - operations <= len(ended.asked) <= len(whole.asked) - operations + 3
    assert Run(toy, TASK, ASKED, whole.journal).asked == []


def test_operations_are_parts_of_the_texts_of_one_side() -> None:
    run = Run(ToyActivations(2, NEURONS, 5), TASK, ASKED)
    assert {type(operation) for operation in run.asked} == {SumNeurons, DescribeNeurons}
    for kind in (SumNeurons, DescribeNeurons):
        spans = [span for each in run.asked if isinstance(each, kind) for span in each.spans]
        assert [span.text for span in spans] == list(range(35))
    for operation in run.asked:
        assert isinstance(operation, SumNeurons | DescribeNeurons)
        assert count_tokens(operation.spans) <= 200
        assert len({span.text < 20 for span in operation.spans}) == 1
    assert sum(operation.weight for operation in run.asked) == pytest.approx(2)


def test_progress_counts_texts_of_both_runs() -> None:
    run = Run(ToyActivations(2, NEURONS, 5), TASK, ASKED)
    done = [progress.done for progress in run.told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, METHOD.total(ASKED, resolved(TASK)))
    assert "positive" in run.told[0].stage
    assert "describing neurons of negative texts" in run.told[-1].stage


@pytest.mark.parametrize("planted", [0, 1])
def test_where_no_neuron_is_found_the_set_is_empty(planted: int) -> None:
    """Or that of one side, as where every neuron of the other is too weak."""
    toy = ToyActivations(0, NEURONS, planted)
    if planted:
        toy._table[:, toy.lowered] = -1
    run = Run(toy, TASK, ASKED)
    header, arrays = unpack(run.data)
    assert header["raised"] == planted
    assert arrays["number"].tolist() == toy.raised.tolist()
    assert run.artifact is not None
    assert ("No neuron was found" in " ".join(run.artifact.warnings)) == (planted == 0)


def test_texts_of_few_tokens_have_fewer_contexts() -> None:
    task = TokenTask(((1,), (2, 3), (60,)))
    header, arrays = unpack(Run(ToyActivations(0, NEURONS, 2), task, replace(ASKED, positive=2)).data)
    assert header["tokens"] == [3, 1]
    assert arrays["context_text"].reshape(4, CONTEXTS)[3].tolist() == [0, -1, -1, -1, -1]
    assert arrays["context_value"].reshape(4, CONTEXTS)[0, 3:].tolist() == [-math.inf] * 2


def test_what_may_mislead_is_said() -> None:
    told = METHOD.warnings(ASKED, resolved(TASK))
    assert told == ()
    few = TokenTask((*TASK.clean[:11], *TASK.clean[:2]))
    told = METHOD.warnings(replace(ASKED, positive=11), resolved(few))
    assert "only 11 positive and 2 negative texts" in told[0]
    assert "2 texts are both positive and negative" in told[1]
    run = Run(ToyActivations(0, NEURONS, 4, largest=20.0), TASK, replace(ASKED, top_k=4))
    assert run.artifact is not None
    told = run.artifact.warnings
    assert "4 neurons of the positive texts were taken" in told[0]
    assert "95th percentile of 8 of 8 neurons is above 3" in told[2]
    assert run.artifact.figures == {"raised": 4.0, "lowered": 4.0}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"positive": 0}, "positive: must be a whole number from 1"),
        ({"positive": -3}, "from 1"),
        ({"positive": True}, "whole number"),
        ({"top_k": -1}, "top_k: must be a whole number from 1 to 10000"),
        ({"top_k": 10_001}, "got 10001"),
        ({"min_delta": 0.0}, "min_delta: must be a number above 0 and at most 1, got 0"),
        ({"min_delta": 1.5}, "at most 1"),
        ({"min_delta": float("nan")}, "finite"),
        ({"min_delta": "much"}, "finite"),
        ({"starts": (0, 1.5)}, r"starts\[1\]: must be a whole number"),
        ({"starts": (2**40,)}, r"starts\[0\]"),
    ],
)
def test_bad_parameters(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        METHOD.read({"positive": 1, **fields})


@pytest.mark.parametrize(
    ("asked", "changes", "words"),
    [
        ({"positive": 35}, {}, "less than the number of texts, which is 35, got 35: without negative"),
        ({"positive": 100}, {}, "got 100"),
        ({"starts": (0,)}, {}, "a position for each of 35 texts, got 1"),
        ({"starts": (10_000,) * 35}, {}, r"starts\[0\]: must be a position in a text of"),
        ({"starts": (-10_000,) * 35}, {}, "got -10000"),
        ({}, {"precision": "int8"}, "rounds activations"),
        ({}, {"layout": NodeLayout(3, 2, 4, 8, 0)}, "'m' has no MLPs"),
    ],
)
def test_requests_that_do_not_fit(asked: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        METHOD.check(replace(ASKED, **asked), resolved(TASK, **changes))


def test_parameters_survive_being_stored() -> None:
    asked = NeuronsParameters(positive=3, starts=(0, -1, 5), top_k=0, min_delta=0.25)
    assert METHOD.read_stored(METHOD.stored(asked)) == asked
    assert asked.top_k == 2000
    described = [
        METHOD.described(replace(asked, starts=starts)) for starts in ((), (0, 0), (-1, -1), (0, 1), (0, 2))
    ]
    assert described[0] == {"positive": 3, "top_k": 2000, "min_delta": 0.25, "counted": "all"}
    assert described[1] == described[0]
    assert described[2]["counted"] == "last"
    assert len({str(each) for each in described}) == 4
    assert len(str(described[3]["counted"])) == 64


# Journal


@pytest.mark.parametrize("damage", ["cut", "stage", "bits", "other model", "other neurons", "many parts"])
def test_what_is_no_journal_is_refused(damage: str) -> None:
    toy = ToyActivations(1, NEURONS, 5)
    written = b"".join(Run(toy, TASK, ASKED).journal)
    asked, task = ASKED, TASK
    match damage:
        case "cut":
            written = written[:-1]
        case "stage":
            written = b"\x09" + written[1:]
        case "bits":
            written = written[:20] + bytes([written[20] ^ 0xFF]) + written[21:]
        case "other neurons":
            asked = replace(asked, top_k=2)
        case "many parts":
            task = TokenTask(TASK.clean[:2])
            asked = replace(asked, positive=1)
    if damage == "other model":
        with pytest.raises(ValueError, match="not one of"):
            Recorded.of([written]).sums(0, NEURONS - 1)
        return
    with pytest.raises(ValueError, match=r"journal|damaged"):
        Run(toy, task, asked, [written])


def test_only_the_last_checkpoint_of_each_stage_is_kept() -> None:
    run = Run(ToyActivations(0, NEURONS, 10), TASK, ASKED, seconds=40.0)
    *before, last = run.journal
    assert not any(before)
    assert sorted(Recorded.of([last]).stages) == [*journal.SUMS, *journal.DETAILS]


def test_stages_are_told_apart() -> None:
    assert len({*journal.SUMS, *journal.DETAILS}) == 4


def test_parts_are_larger_for_smaller_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    large = NodeLayout(32, 32, 128, 4096, 14336)
    found = [part_tokens(layout) for layout in (LAYOUT, NodeLayout(4, 4, 16, 64, 256), large)]
    assert found == [4096, 4096, 256]
