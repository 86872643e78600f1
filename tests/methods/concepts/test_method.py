"""Concepts with made-up states: what is found, whatever is killed or lost, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.planted_states import adjusted_rand_index

from pahq_server.core.activations import CaptureStates, count_tokens
from pahq_server.core.artifact import unpack
from pahq_server.core.concepts import StartCodebook, TrainCodebook
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import TokenTask
from pahq_server.methods.concepts.journal import Recorded, checkpoint_record, part_record
from pahq_server.methods.concepts.parameters import ConceptsParameters
from pahq_server.methods.concepts.tokens import WINDOW, ChosenTokens

from .toy import METHOD, Run, ToyStates, resolved, texts

ASKED = ConceptsParameters(
    low=1, high=3, codes=6, neighbours=3, steps=40, batch=128, decoder_layers=1, learning_rate=3e-3
)
TASK = texts(0, 30)


@pytest.mark.parametrize("asked", [ASKED, replace(ASKED, low=2, high=2), replace(ASKED, memory="continuous")])
def test_planted_concepts_are_found_and_told(asked: ConceptsParameters, tmp_path: Path) -> None:
    toy = ToyStates(1)
    asked = replace(asked, steps=80)
    run = Run(toy, TASK, asked, tmp_path)
    header, arrays = unpack(run.data)
    states = sum(len(ids) - 1 for ids in TASK.clean)
    assert header["tokens"] == arrays["sizes"].sum() == states
    tokens, codes, counts = (arrays[f"top_{name}"] for name in ("tokens", "codes", "counts"))
    every = np.repeat(toy.concepts[tokens], counts), np.repeat(codes, counts)
    assert adjusted_rand_index(*every) >= 0.95
    # What is counted of tokens is what there is of them.
    real = np.bincount(np.concatenate([ids[1:] for ids in TASK.clean]), minlength=60)
    found = np.zeros(60, np.int64)
    np.add.at(found, tokens, counts)
    assert (found == real).all()
    assert header["decoded_error"] < 0.3 * header["variance"]
    names = dict(zip(arrays["named"].tolist(), header["names"], strict=True))
    assert all(names[token] == f"t{token}" for token in tokens.tolist())
    assert run.artifact is not None
    assert run.artifact.figures["perplexity"] == pytest.approx(header["perplexity"])
    assert arrays["history"].shape == (240,)


def test_contexts_are_where_concepts_occur(tmp_path: Path) -> None:
    toy = ToyStates(2)
    _, arrays = unpack(Run(toy, TASK, ASKED, tmp_path).data)
    codes, at, offsets = (arrays[f"context_{name}"] for name in ("codes", "at", "offsets"))
    assert (np.bincount(codes, minlength=6) == 8).all()
    concept_of: dict[int, set[int]] = {}
    for number, code in enumerate(codes.tolist()):
        text, position = (int(arrays[f"context_{name}"][number]) for name in ("texts", "positions"))
        ids = arrays["context_ids"][offsets[number] : offsets[number + 1]].tolist()
        first = position - int(at[number])
        assert tuple(ids) == TASK.clean[text][first : first + len(ids)]
        concept_of.setdefault(code, set()).add(int(toy.concepts[TASK.clean[text][position]]))
    assert all(len(concepts) == 1 for concepts in concept_of.values())


@pytest.mark.parametrize("lost", ["nothing", "files", "states", "checkpoints"])
def test_whenever_it_is_killed_the_result_is_the_same(lost: str, tmp_path: Path) -> None:
    toy, folder = ToyStates(3), tmp_path / "job"
    whole = Run(toy, TASK, ASKED, tmp_path / "whole", seconds=11.0)
    for operations in range(1, len(whole.asked), 3):
        begun = Run(toy, TASK, ASKED, folder, operations=operations, seconds=11.0)
        if lost == "files":
            shutil.rmtree(folder)
        elif lost == "states":
            with (folder / "states").open("r+b") as file:
                file.seek(1000)
                file.write(b"\xff" * 8)
        elif lost == "checkpoints":
            for path in folder.glob("checkpoint-*"):
                path.write_bytes(path.read_bytes()[:-1])
        ended = Run(toy, TASK, ASKED, folder, begun.journal, seconds=0.02)
        assert ended.data == whole.data
        shutil.rmtree(folder)


def test_a_kill_repeats_no_more_than_a_checkpoint_allows(tmp_path: Path) -> None:
    toy = ToyStates(4)
    begun = Run(toy, TASK, ASKED, tmp_path, operations=35, seconds=10.0)
    ended = Run(toy, TASK, ASKED, tmp_path, begun.journal, seconds=10.0)
    assert not ended.of(CaptureStates)
    assert not ended.of(StartCodebook)
    again = ended.of(TrainCodebook)[0]
    last = begun.of(TrainCodebook)[-1]
    assert isinstance(again, TrainCodebook)
    assert isinstance(last, TrainCodebook)
    assert 0 < last.training.step - again.training.step <= 3
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2


def test_files_are_no_larger_than_was_said(tmp_path: Path) -> None:
    run = Run(ToyStates(5), TASK, ASKED, tmp_path, seconds=31.0)
    (said,) = run.sizes
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= said


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    run = Run(ToyStates(6), TASK, ASKED, tmp_path)
    done = [told.done for told in run.told]
    assert done == sorted(done)
    assert done[-1] == METHOD.total(ASKED, resolved(TASK))
    assert any({"loss", "perplexity"} <= told.figures.keys() for told in run.told)


def test_of_too_many_tokens_some_texts_are_drawn(tmp_path: Path) -> None:
    asked = replace(ASKED, max_states=300)
    chosen = ChosenTokens.of(asked, TASK)
    assert chosen.count == 300
    assert [span.text for span in chosen.spans] == sorted({span.text for span in chosen.spans})
    assert ChosenTokens.of(replace(asked, seed=1), TASK).spans != chosen.spans
    run = Run(ToyStates(7), TASK, asked, tmp_path)
    captured = [operation for operation in run.asked if isinstance(operation, CaptureStates)]
    assert sum(count_tokens(operation.spans) for operation in captured) == 300
    assert unpack(run.data)[0]["tokens"] == 300


def test_windows_cover_every_token_once_and_stay_within_texts() -> None:
    task = TokenTask((tuple(range(200)), (1, 2), tuple(range(65))))
    chosen = ChosenTokens.of(replace(ASKED, skip=0), task)
    rows, lengths = chosen.rows(np.arange(len(chosen.windows)))
    assert (rows == np.arange(267)).all()
    assert max(lengths) <= WINDOW
    texts_of_rows, positions = chosen.places
    first = 0
    for length in lengths:
        assert len(set(texts_of_rows[first : first + length].tolist())) == 1
        assert (np.diff(positions[first : first + length]) == 1).all()
        first += length
    groups = chosen.in_groups(chosen.drawn(10**6))
    assert np.concatenate(groups).tolist() == list(range(len(chosen.windows)))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("high", {"low": 2, "high": 1}),
        ("high", {"high": 4}),
        ("low", {"low": 4, "high": 4}),
        ("low", {"low": -1}),
        ("codes", {"codes": 1}),
        ("codes", {"codes": 5000}),
        ("codes", {"skip": 100}),
        ("neighbours", {"neighbours": 7}),
        ("max_states", {"max_states": 5}),
        ("temperature", {"temperature": 0.0}),
        ("temperature", {"temperature": float("nan")}),
        ("learning_rate", {"learning_rate": -1.0}),
        ("memory", {"memory": "all"}),
        ("decoder_heads", {"decoder_heads": 3}),
        ("steps", {"steps": -1}),
        ("seed", {"seed": -1}),
        ("codes", {"codes": True}),
    ],
)
def test_what_cannot_be_is_refused(field: str, change: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        METHOD.check(replace(ASKED, **change), resolved(TASK))  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_decoder_that_is_too_large_is_refused() -> None:
    wide = NodeLayout(layers=3, heads=32, d_head=128, d_model=4096, d_mlp=100)
    with pytest.raises(InvalidRequestError, match="use fewer layers or codes") as caught:
        METHOD.check(replace(ASKED, decoder_layers=6), resolved(TASK, layout=wide))
    assert caught.value.field == "decoder_layers"
    METHOD.check(replace(ASKED, decoder_layers=1), resolved(TASK, layout=wide))


def test_precisions_that_round_activations_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="rounds activations"):
        METHOD.check(ASKED, resolved(TASK, "pahq-int8-act"))


def test_absent_fields_of_a_message_are_the_defaults() -> None:
    absent = ConceptsParameters(0, 0, codes=0, neighbours=0, steps=0, batch=0, max_states=0, decoder_heads=0)
    assert absent == ConceptsParameters(0, 0)
    assert replace(absent, memory="").memory == "quantized"  # type: ignore[arg-type]


def test_few_states_are_warned_of() -> None:
    small = texts(1, 3, longest=20)
    (told,) = METHOD.warnings(replace(ASKED, codes=6, neighbours=1), resolved(small))
    assert "single tokens" in told
    assert METHOD.warnings(ASKED, resolved(TASK)) == ()


@pytest.mark.parametrize(
    "journal", [b"x" * 37, b"S", part_record(1, 5), part_record(0, 5) + b"S", checkpoint_record(0, b"")]
)
def test_a_journal_that_is_none_is_refused(journal: bytes) -> None:
    with pytest.raises(ValueError, match="journal"):
        Recorded.of([journal])
