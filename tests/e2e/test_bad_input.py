"""Requests that cannot be served: a clear error at the client, nothing lost, and the server goes on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.unchecked_tasks import unchecked_task
from pahq import __version__

import pahq_client
from pahq_client import (
    Client,
    InvalidRequest,
    JobFailed,
    JobHandle,
    NotFound,
    PahqError,
    Task,
    Unavailable,
    VersionMismatch,
)
from pahq_client.cli import main
from pahq_client.retries import Backoff

from .process import ServerProcess

CLEAN = [
    " Lily and Tom went to the park. Lily gave the ball to",
    " Sam met Mia at the zoo. Sam gave a toy to",
]
CORRUPTED = [
    " Max and Sara went to the park. Ben gave the ball to",
    " Max met Ben at the zoo. Tom gave a toy to",
]
SHORTER = " Max met Ben at the zoo. Tom gave a toy"
LENGTHS = 13, 12
VOCABULARY, CONTEXT = 749, 64

PLAIN: dict[str, Any] = {"model": "plain", "task": Task([[1, 2, 3]], [[4, 5, 3]]), "threshold": 0.01}


def prompts(**changes: Any) -> Task:
    return Task(**({"clean": CLEAN, "corrupted": CORRUPTED} | changes))


def ids(*prompt: int) -> Task:
    return Task(clean=[[1, 2], prompt], corrupted=[[1, 2], [1] * len(prompt)])


def differing(**answers: Any) -> dict[str, Any]:
    return {"metric": "logit_difference", "task": prompts(**answers)}


TWO = [" Tom", " Mia"]

# What is wrong: changes of a good request, the error's field, words of its message.
INVALID: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "task": ({"task": "nonsense"}, "task", ("'nonsense'", "ioi")),
    "method": ({"method": "magic"}, "method", ("'magic'", "acdc", "single_edge")),
    "metric": ({"metric": "accuracy"}, "metric", ("'accuracy'", "kl_divergence")),
    "precision": ({"precision": "fp7"}, "precision", ("'fp7'", "fp32")),
    "ablation": ({"ablation": "noise"}, "ablation", ("'noise'", "resample")),
    "kv_receivers": ({"kv_receivers": "head"}, "kv_receivers", ("'head'", "group")),
    "no threshold": ({"threshold": None}, "threshold", ("acdc",)),
    "threshold nan": ({"threshold": float("nan")}, "threshold", ("nan",)),
    "threshold infinite": ({"threshold": float("inf")}, "threshold", ("inf",)),
    "threshold negative": ({"threshold": -0.5}, "threshold", ("-0.5",)),
    "no prompt": ({"task": unchecked_task(clean=[])}, "task.clean", ("at least one",)),
    "empty text": ({"task": prompts(clean=["", CLEAN[1]])}, "task.clean[0]", ("empty",)),
    "no token": ({"task": ids()}, "task.clean[1]", ("empty",)),
    "pair of unequal length": (
        {"task": prompts(corrupted=[CORRUPTED[0], SHORTER])},
        "task.corrupted[1]",
        ("pair 1", str(LENGTHS[1]), str(LENGTHS[1] - 1)),
    ),
    "pair incomplete": (
        {"task": unchecked_task(clean=CLEAN, corrupted=CORRUPTED[:1])},
        "task.corrupted",
        ("1 prompts for 2",),
    ),
    "nothing to resample from": ({"task": prompts(corrupted=None)}, "task.corrupted", ("resample",)),
    "token too large": ({"task": ids(3, VOCABULARY)}, "task.clean[1]", (str(VOCABULARY),)),
    "token negative": ({"task": ids(3, -1)}, "task.clean[1]", ("-1", str(VOCABULARY))),
    "prompt too long": (
        {"task": ids(*[1] * (CONTEXT + 1))},
        "task.clean[1]",
        (f"{CONTEXT + 1} tokens", str(CONTEXT)),
    ),
    "position too large": (
        {"task": prompts(positions=[0, LENGTHS[1]])},
        "task.positions",
        (f"position {LENGTHS[1]}", "prompt 1"),
    ),
    "position negative": ({"task": prompts(positions=[-1])}, "task.positions", ("-1", "prompt 0")),
    "no position": ({"task": prompts(positions=[])}, "task.positions", ("at least one",)),
    "no answers": (differing(wrong_answers=TWO), "task.answers", ("logit_difference",)),
    "no wrong answers": (differing(answers=TWO), "task.wrong_answers", ("logit_difference",)),
    "too few answers": (
        {
            "metric": "logit_difference",
            "task": unchecked_task(clean=CLEAN, corrupted=CORRUPTED, answers=TWO[:1], wrong_answers=TWO),
        },
        "task.answers",
        ("1 answers for 2",),
    ),
    "long answer": (
        differing(answers=TWO, wrong_answers=[" Tom", " Lily and"]),
        "task.wrong_answers[1]",
        ("' Lily and'", "2 tokens", "exactly one"),
    ),
    "answer out of range": (
        differing(answers=[1, VOCABULARY], wrong_answers=TWO),
        "task.answers[1]",
        (str(VOCABULARY),),
    ),
    "text without a tokenizer": ({"model": "plain", "task": prompts()}, "task.clean[0]", ("no tokenizer",)),
    "built-in without a tokenizer": ({"model": "plain", "task": "ioi"}, "task", ("no tokenizer",)),
    "no prompts of a built-in": ({"task": Task.ioi(num_prompts=0)}, "task.num_prompts", ("at least 1", "0")),
}


@pytest.fixture(scope="module")
def earlier(server: ServerProcess) -> Iterator[JobHandle]:
    """A discovery that has ended before all the bad requests."""
    with Client(server.address) as client:
        job = client.submit(**PLAIN)
        job.result()
        yield job


@pytest.fixture(autouse=True)
def _nothing_is_lost(client: Client, earlier: JobHandle) -> Iterator[None]:
    """After every test the server still has its old results and makes new ones."""
    jobs = {job.name for job in client.jobs()}
    yield
    assert jobs <= {job.name for job in client.jobs()}
    assert client.discover(**PLAIN) == earlier.result()


@pytest.mark.parametrize("case", INVALID)
def test_invalid_requests_name_field_and_value(client: Client, case: str) -> None:
    changes, field, words = INVALID[case]
    with pytest.raises(InvalidRequest) as error:
        client.submit(**{"model": "demo", "task": prompts(), "threshold": 0.05} | changes)
    assert error.value.field == field
    assert not [word for word in words if word not in error.value.detail], error.value.detail


@pytest.mark.parametrize("model", ["nonsense", "", "gpt2/../demo"])
def test_an_unknown_model(client: Client, model: str) -> None:
    with pytest.raises(NotFound) as error:
        client.submit(model, "ioi", 0.05)
    assert repr(model) in str(error.value)
    assert "served models: " in str(error.value)
    assert "demo" in str(error.value)


def test_values_of_any_length(client: Client) -> None:
    """Errors travel in headers, which must not burst."""
    with pytest.raises(NotFound, match="'üüü"):
        client.submit("ü" * 5000, "ioi", 0.05)
    with pytest.raises(InvalidRequest, match="exactly one token") as error:
        client.submit("demo", prompts(answers=[" Tom" * 5000, " Mia"]), 0.05)
    assert error.value.field == "task.answers[0]"


@pytest.mark.parametrize("kind", [Path, str])
def test_a_path_is_no_model_of_a_remote_server(server: ServerProcess, plain_model: Path, kind: Any) -> None:
    """Clients choose among what is served; nothing makes the server read its disk."""
    with pytest.raises(NotFound, match="served models: ") as error:
        pahq_client.discover(kind(plain_model), PLAIN["task"], 0.01, server=server.address)
    assert str(plain_model) in str(error.value)


def test_an_unknown_edge(client: Client) -> None:
    for edge, words in (("a0.h0->a9.h0<q>", "a9.h0<q>"), ("a1.h0->m0", "a1.h0->m0"), ("x", "'x'")):
        with pytest.raises(InvalidRequest) as error:
            client.evaluate("plain", PLAIN["task"], [edge])
        assert words in str(error.value)


def test_a_metric_that_is_not_finite_fails_the_job(client: Client) -> None:
    job = client.submit("overflowing", PLAIN["task"], 0.01, metric="l2")
    with pytest.raises(JobFailed, match=r"the metric is (inf|nan)") as error:
        job.result()
    assert error.value.name == job.name
    assert job.state == "FAILED"
    *_, last = job.watch()
    assert "the metric is" in last.error
    with pytest.raises(JobFailed, match=r"the metric is (inf|nan)"):
        client.evaluate("overflowing", PLAIN["task"], [], metric="l2")


@pytest.mark.parametrize("version", ["99.0.0", "0.0.9"])
def test_another_version(server: ServerProcess, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("pahq_client.connection.__version__", version)
    with Client(server.address) as client, pytest.raises(VersionMismatch) as error:
        client.submit(**PLAIN)
    assert (error.value.client, error.value.server) == (version, __version__)
    assert version in str(error.value)
    assert __version__ in str(error.value)


def test_another_patch_level_fits(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pahq_client.connection.__version__", ".".join([*__version__.split(".")[:2], "999"]))
    with Client(server.address) as client:
        assert client.server_info().version == __version__


def test_an_unreachable_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening, and nobody else can
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Client(address, backoff=Backoff(0)) as client, pytest.raises(Unavailable) as error:
            client.submit(**PLAIN)
    assert error.value.address == address
    assert address in str(error.value)
    assert f"pahq-server serve --listen {address}" in str(error.value)


def test_exit_codes(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tmp_path / "task.json"
    task.write_text('{"clean": [[1, 2, 3]], "corrupted": [[4, 5, 3]]}')

    def run(model: str = "plain", *options: str) -> tuple[int, str]:
        asked = ["discover", "--model", model, "--task", str(task), "--threshold", "0.01", "--quiet"]
        code = main([*asked, "--server", server.address, *options])
        return code, capsys.readouterr().err

    assert run() == (0, "")
    code, message = run("overflowing", "--metric", "l2")
    assert (code, "the metric is" in message) == (1, True)
    code, message = run("nonsense")
    assert (code, "'nonsense'" in message) == (2, True)
    code, message = run("plain", "--threshold", "-1")
    assert (code, message.startswith("pahq: error: threshold: ")) == (2, True)
    code, message = run("plain", "--server", "127.0.0.1:1")
    assert (code, "pahq-server serve --listen 127.0.0.1:1" in message) == (3, True)
    monkeypatch.setattr("pahq_client.connection.__version__", "99.0.0")
    code, message = run()
    assert (code, "99.0.0" in message) == (3, True)


def test_errors_are_of_one_family() -> None:
    names = [getattr(pahq_client, name) for name in pahq_client.__all__]
    errors = [kind for kind in names if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(errors) > 10
    assert all(issubclass(kind, PahqError) for kind in errors)
