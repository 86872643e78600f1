"""Messages survive the way through bytes, and bytes can make nothing else."""

from __future__ import annotations

import os
import pickle
import random
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.random_passes import random_circuit, random_passes

from pahq_server.core import errors
from pahq_server.core.activations import (
    CaptureStates,
    DescribeNeurons,
    NeuronDetails,
    NeuronSums,
    ScoreContinuations,
    Span,
    Steering,
    SumNeurons,
    TopTokensOfNeurons,
)
from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import CleanRun, EngineStateId, MemoryUsage, Objective, ResolvedObjective
from pahq_server.core.generation import (
    Decode,
    Decoded,
    DecodedSample,
    DecodeUnderCircuit,
    DecodeUsage,
    GenerationOffer,
    SampleRequest,
    Sampling,
    TokenSignal,
)
from pahq_server.core.graph import Graph
from pahq_server.core.operations import (
    BackwardRule,
    EdgeGradients,
    GradientPoint,
    LikeliestTokens,
    MeasureAccuracy,
    TaskAccuracy,
    TopTokens,
)
from pahq_server.core.task import BuiltinTask, PromptTask, TokenTask
from pahq_server.engine.catalogue import ServedModel
from pahq_server.engine.generation.backend import GeneratorFailedError
from pahq_server.models.architecture import Architecture
from pahq_server.workers import codec
from pahq_server.workers.codec import EXCEPTIONS, TABLE, MessageError, decode, encode
from pahq_server.workers.messages import (
    CheckWorker,
    CloseState,
    Opened,
    OpenState,
    Ran,
    RunOperations,
    WorkerInfo,
)
from pahq_server.workers.passes import SentBases

GRAPH = Graph(2, 4, 2, parallel=True)
STATE = EngineStateId(7)
OFFER = GenerationOffer("pahq", "1", 64, 1024, 16, 8, True, False, (0, 1))
ARCHITECTURE = Architecture(
    "gpt2", 2, 4, 2, 16, 4, 32, 99, 99, 64, "layer", 1e-5, "gelu_tanh", (0.5, 0.5), (None, 4)
)
TASK = TokenTask(((1, 2), (3,)), ((2, 1), (4,)), (5, 6), (7, 8))
RESOLVED = ResolvedObjective(
    Objective("demo", BuiltinTask("ioi", 2, 1), "kl_divergence", "resample", "group", "fp32"),
    TASK,
    GRAPH,
    "abc",
    True,
    prompts=PromptTask(("a", (1, 2)), answers=("é",)),
    warnings=("look",),
    clean_run=CleanRun((0.1, -3.0)),
    generation=OFFER,
)
SPANS = [Span(0, 1, 2), Span(1, 0, 1)]
STEERING = Steering(np.arange(2), np.array([0.5, 0.25]), np.arange(2, 5))
REQUEST = SampleRequest(1, (2, 3), 2**63 - 1, Sampling(5, 0.5, stop=("\n",)), (4,), steering=STEERING)
MESSAGES = [
    OpenState(STATE, RESOLVED),
    Opened((0.1, float("-inf")), MemoryUsage(1, 2, 3, 4, 5, 6, 7)),
    Ran([[0.5], ValueError(3).args], MemoryUsage(1, 2, 3, 4, 5, 6, 7)),
    CloseState(STATE),
    CheckWorker(),
    MemoryUsage(1, 2, 3, 4, 5, 6, 7),
    RunOperations(((STATE, SentBases().send(random_passes(GRAPH, 0))),)),
    RunOperations(((STATE, EdgeGradients(0, 2, 2, 9, BackwardRule(True), (GradientPoint(0.5, 1.0),))),)),
    RunOperations(((STATE, LikeliestTokens(2, 5)), (STATE, MeasureAccuracy(True)))),
    RunOperations(((STATE, Decode([REQUEST], 16, 9)),)),
    RunOperations(((STATE, DecodeUnderCircuit([REQUEST], 16, 9, random_circuit(GRAPH, 0.5, 1), [(2, 2)])),)),
    RunOperations(((STATE, SumNeurons(SPANS, 64, 3)), (STATE, CaptureStates(SPANS, (0, 2), 16, 3)))),
    RunOperations(((STATE, DescribeNeurons(SPANS, np.arange(3), 4, 3)),)),
    RunOperations(tuple((STATE, ScoreContinuations(SPANS, each, 3)) for each in (None, STEERING))),
    [
        NeuronSums(2, np.arange(3), np.arange(3.0), np.ones(3)),
        NeuronDetails(
            np.ones((1, 301), dtype=np.int64),
            TopTokensOfNeurons(np.array([[1.0, -np.inf]]), np.array([[1, -1]]), np.array([[0, -1]])),
        ),
        np.ones((2, 1, 3), dtype=np.float32),
    ],
    [[0.1, 0.2], np.arange(5.0), TopTokens(np.arange(4).reshape(2, 2), np.eye(2), np.zeros((2, 2)))],
    [
        [TaskAccuracy(0.5, 0.25, -1.0)],
        Decoded((DecodedSample((1,), (-0.5,), (TokenSignal(-1.0, 2.0),)),), DecodeUsage(1, 2, 3, 4)),
    ],
    WorkerInfo(
        "host",
        "cpu",
        {"torch": "2", "threads": "1"},
        (ServedModel("demo", ARCHITECTURE, "abc", 10, ("fp32",), generation=OFFER, no_generation=""),),
        1.5e9,
        {"demo": 1e8},
        1 << 30,
        MemoryUsage(1, 2, 3, 4, 5, 6, 7),
    ),
    {"numbers": {1, 2}, "more": frozenset({3}), "bytes": b"\0", "none": None, "large": 2**100},
]


def same(one: Any, other: Any) -> bool:
    """Compares messages field by field: the slow, obvious way."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if is_dataclass(one):
        return all(same(getattr(one, each.name), getattr(other, each.name)) for each in fields(one))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_come_back_as_they_were(message: object) -> None:
    assert same(decode(encode(message)), message)


def test_circuits_travel_as_bits() -> None:
    graph = Graph(12, 12, 12)
    circuit = random_circuit(graph, 0.5, 3)
    content = encode(circuit)
    assert len(content) < graph.num_edges / 8 + 500
    assert same(decode(content), circuit)
    assert "offsets" not in vars(decode(encode(Objective("", BuiltinTask("", 1, 1), "", "", "", ""))))


@pytest.mark.parametrize(
    "array",
    [
        np.array(1.5),
        np.zeros(0),
        np.zeros((2, 0, 3), np.int32),
        np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(10)[::-2],
        np.array([True, False]),
        np.array([1, 2], ">i4"),
        np.float32([np.nan, np.inf, -0.0]),
        np.float64(0.1),
        np.int64(-3),
        np.bool_(True),
    ],
    ids=repr,
)
def test_arrays_and_numbers_come_back(array: np.ndarray[Any, Any]) -> None:
    found = decode(encode(array))
    assert same(found, np.ascontiguousarray(array) if array.ndim else array)
    if isinstance(found, np.ndarray):
        found[...] = 0  # can be written to


# Errors


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequestError("task.clean", "must not be empty"),
        errors.OtherModelError("one", "another", "within"),
        errors.NotFoundError("job 'x'", "look elsewhere"),
        errors.QuotaExceededError("queued_jobs", "users/ada", "too many", 3.5),
        errors.ResourceExhaustedError("full", 10.0),
        errors.StorageError("broken", damaged=True),
        errors.WorkerFailedError("the end"),
        errors.NonFiniteMetricError("nan"),
        MessageError("odd"),
        MemoryError("none left"),
        KeyError("x"),
        ValueError(1, "two"),
        RuntimeError(),
    ],
    ids=repr,
)
def test_errors_come_back_with_all_that_they_carry(error: Exception) -> None:
    error.add_note("a note")
    found = decode(encode([error, error]))
    assert isinstance(found, list)
    assert found[0] is found[1]
    assert type(found[0]) is type(error)
    assert (str(found[0]), found[0].args, vars(found[0])) == (str(error), error.args, vars(error))


def test_all_our_errors_are_in_the_table() -> None:
    ours = {each for each in vars(errors).values() if isinstance(each, type)}
    assert len(ours) > 10
    assert ours <= EXCEPTIONS


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (GeneratorFailedError("it hangs"), RuntimeError, "GeneratorFailedError: it hangs"),
        (torch.OutOfMemoryError("none left"), RuntimeError, "OutOfMemoryError: none left"),
        (FileNotFoundError(2, "gone", "x"), RuntimeError, "FileNotFoundError: [Errno 2] gone: 'x'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ValueError, "UnicodeDecodeError: 'utf-8' codec"),
        (KeyboardInterrupt(), RuntimeError, "KeyboardInterrupt: "),
        (ValueError(Path("x")), ValueError, "x"),
        (type("Ours", (errors.ConflictError,), {})("busy"), errors.ConflictError, "busy"),
    ],
    ids=repr,
)
def test_other_errors_become_what_is_known(error: BaseException, kind: type, text: str) -> None:
    found = decode(encode(error))
    assert type(found) is kind
    assert str(found).startswith(text)


# What is refused


class Stranger:
    pass


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (Stranger(), "Stranger"),
        (Stranger, "Stranger"),
        (Path("x"), "pathlib"),
        (os.system, "system"),
        (lambda: None, "lambda"),
        (object(), "builtins.object"),
        (torch.zeros(1), "torch"),
        (np.array([object()]), r"arrays of \|O"),
        (np.array(["text"]), "arrays of <U4"),
        (CloseState(Stranger()), "Stranger"),  # type: ignore[arg-type]
        (1j, "complex"),
        (type("Circuit", (Circuit,), {})(GRAPH, np.zeros(GRAPH.num_edges, bool)), "Circuit"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_no_message_is_not_encoded(message: object, name: str) -> None:
    with pytest.raises(MessageError, match=name):
        encode([message])


def sealed(pickled: bytes) -> bytes:
    """Makes a message of somebody else's pickle."""
    return codec._checksum(pickled) + pickled


class Harmful:
    """Unpickled, would make a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("protocol", range(6))
def test_bytes_cannot_run_code(tmp_path: Path, protocol: int) -> None:
    made = tmp_path / "made"
    with pytest.raises(MessageError, match=r"mkdir, which is not in the table"):
        decode(sealed(pickle.dumps(((), Harmful(made)), protocol)))
    assert not made.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("builtins", "object"),
        ("copyreg", "_reconstructor"),
        ("numpy", "ndarray"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("pahq_server.workers.codec", "decode"),
        ("pahq_server.workers.codec", "pickle.loads"),
        ("pahq_server.core.circuit", "np.load"),
        ("pahq_server.core.errors", "ServerError.__init__"),
    ],
)
def test_nothing_but_the_table_is_found(module: str, name: str) -> None:
    content = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(each)]) + each.encode() for each in (module, name))
    with pytest.raises(MessageError, match="not in the table"):
        decode(sealed(content + b"\x93."))


def test_the_table_holds_values_errors_and_four_functions() -> None:
    others = [
        each
        for each in TABLE.values()
        if not is_dataclass(each) and not (isinstance(each, type) and issubclass(each, BaseException))
    ]
    assert {each.__name__ for each in others} == {"_circuit", "_array", "_number", "_exception"}
    assert all(each.__module__ == codec.__name__ for each in others)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (codec._exception, (CloseState, (), {})),
        (codec._exception, ([], (), {})),
        (codec._array, ("O", (1,), bytearray(8))),
        (codec._array, ("<f8", (2,), bytearray(8))),
        (codec._number, ("<f8", b"")),
        (codec._circuit, (GRAPH, b"")),
        (codec._circuit, (GRAPH, bytes(GRAPH.num_edges))),
    ],
)
def test_functions_of_the_table_refuse_nonsense(function: Any, arguments: tuple[Any, ...]) -> None:
    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return function, arguments

    with pytest.raises(MessageError):
        decode(sealed(pickle.dumps(((), Call()), 5)))


def test_damaged_bytes_are_refused() -> None:
    content = encode(MESSAGES)
    for length in range(len(content)):
        with pytest.raises(MessageError):
            decode(content[:length])
    rng = random.Random(0)
    for _ in range(2000):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
        with pytest.raises(MessageError):
            decode(bytes(damaged))


@pytest.mark.parametrize("content", [b"", b".", b"N.", b"pickle", sealed(b"")])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(MessageError):
        decode(content)
