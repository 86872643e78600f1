"""Codes of texts with a made-up model: against all distances at once, through kills, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from helpers.method_run import MethodRun
from numpy.typing import NDArray

from pahq_server.core import activations
from pahq_server.core.activations import CaptureStates, Span
from pahq_server.core.artifact import Artifact, unpack
from pahq_server.core.codebooks import GivenCodebook
from pahq_server.core.concepts import CodebookSettings
from pahq_server.core.errors import InvalidRequestError, OtherModelError
from pahq_server.core.operations import Operation
from pahq_server.core.task import TokenTask
from pahq_server.methods.concepts.assigning import AssignConcepts, AssignParameters

from .toy import LAYOUT, ToyStates, resolved, texts

METHOD = AssignConcepts()
TOY = ToyStates(3)
WIDTH = LAYOUT.d_model


def codebook(seed: int, codes: int = 7, low: int = 1, revision: str = "revision") -> GivenCodebook:
    draw = np.random.default_rng(seed)
    encoder = draw.normal(0, 0.5, CodebookSettings(WIDTH, codes, 1).encoder_weights).astype("<f4")
    vectors = draw.normal(0, 1, (codes, WIDTH)).astype("<f4")
    return GivenCodebook(LAYOUT.layers, WIDTH, low, revision, encoder.tobytes(), vectors.tobytes())


def dense(book: GivenCodebook, task: TokenTask, skip: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The slow, obvious twin: every state against every code, in float64."""
    spans = [Span(text, skip, len(ids)) for text, ids in enumerate(task.clean) if len(ids) > skip]
    x = TOY.states(CaptureStates(spans, (book.low,), WIDTH, task.num_tokens), task)[:, 0].astype(np.float64)
    numbers = np.frombuffer(book.encoder, "<f4").astype(np.float64)
    alpha, w = numbers[0], numbers[1 : 1 + WIDTH**2].reshape(WIDTH, WIDTH)
    b, scale, shift = numbers[1 + WIDTH**2 :].reshape(3, WIDTH)
    m = 0.5 / (1 + np.exp(-alpha))
    rows = []
    for row in x:
        new = w @ row + b
        new = (new - new.mean()) / np.sqrt(new.var() + 1e-5) * scale + shift
        rows.append((1 - m) * row + m * new)
    codes = np.frombuffer(book.codes, "<f4").astype(np.float64).reshape(-1, WIDTH)
    distances = ((np.stack(rows)[:, None] - codes[None]) ** 2).sum(2)
    return distances.argmin(1), distances.min(1)


def run(
    task: TokenTask, asked: AssignParameters, journal: Sequence[bytes] = (), operations: int | None = None
) -> tuple[Artifact | None, list[bytes], list[Operation]]:
    """Runs the method, until its end or for some operations."""
    found = MethodRun(METHOD, resolved(task), asked, lambda each: TOY.answer(each, task), journal, operations)
    if found.artifact is not None:
        assert found.context.progress.done == METHOD.total(asked, resolved(task))
    return found.artifact, found.journal, found.asked


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MOST_PART", 200)
    monkeypatch.setattr(activations, "LEAST_PART", 200)


@pytest.mark.parametrize(("seed", "skip", "low"), [(0, 1, 1), (1, 0, 0), (2, 5, 3)])
def test_codes_and_distances_are_those_of_all_distances(seed: int, skip: int, low: int) -> None:
    task, book = texts(seed, 30), codebook(seed, low=low)
    artifact, _, asked = run(task, AssignParameters(book, skip))
    assert artifact is not None
    header, arrays = unpack(artifact.data)
    codes, distances = dense(book, task, skip)
    assert arrays["codes"].tolist() == codes.tolist()
    np.testing.assert_allclose(arrays["distances"], distances, rtol=1e-4, atol=1e-4)
    assert arrays["lengths"].tolist() == [len(ids) for ids in task.clean]
    assert arrays["ids"].tolist() == [token for ids in task.clean for token in ids]
    assert header["names"] == [f"t{token}" for token in arrays["named"].tolist()]
    assert (header["codes"], header["low"], header["skip"]) == (7, low, skip)
    assert len([each for each in asked if isinstance(each, CaptureStates)]) > 3
    assert artifact.figures["used"] == len(set(codes.tolist()))


def test_whenever_it_is_killed_the_result_is_the_same() -> None:
    task, asked = texts(4, 12), AssignParameters(codebook(4))
    whole, _, operations = run(task, asked)
    assert whole is not None
    for killed in range(len(operations)):
        _, journal, _ = run(task, asked, operations=killed)
        artifact, _, left = run(task, asked, journal)
        assert artifact is not None
        assert artifact.data == whole.data
        # Done again is at most what was not told yet, and the capture of a part that was not assigned.
        assert len(left) <= len(operations) - killed + 2


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-8], lambda data: data + data[:8], lambda data: data[1:]]
)
def test_journals_that_cannot_be_right(damage: Any) -> None:
    task, asked = texts(4, 12), AssignParameters(codebook(4))
    _, journal, _ = run(task, asked)
    with pytest.raises(ValueError, match=r"the journal tells of|buffer size"):
        run(task, asked, [damage(b"".join(journal))])


def test_what_is_stored_is_read_again() -> None:
    asked = AssignParameters(codebook(0), 3)
    assert METHOD.read_stored(METHOD.stored(asked)) == asked
    other = AssignParameters(codebook(1), 3)
    assert METHOD.described(asked) != METHOD.described(other)
    assert len(str(METHOD.described(asked))) < 400


def test_what_does_not_fit_is_refused() -> None:
    task = texts(0, 5, longest=20)
    longest = max(map(len, task.clean))
    with pytest.raises(InvalidRequestError, match=f"the longest text, {longest}, got {longest}") as caught:
        METHOD.check(AssignParameters(codebook(0), longest), resolved(task))
    assert caught.value.field == "skip"
    with pytest.raises(OtherModelError):
        METHOD.check(AssignParameters(codebook(0, revision="other")), resolved(task))
    with pytest.raises(InvalidRequestError, match="rounds activations"):
        METHOD.check(AssignParameters(codebook(0)), resolved(task, "fp8"))
    for wrong in ({"codebook": "text"}, {"codebook": codebook(0), "skip": -1}, {}):
        with pytest.raises(InvalidRequestError):
            METHOD.read(wrong)
