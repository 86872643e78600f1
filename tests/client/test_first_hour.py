"""Mistakes that everybody makes once: each gets an answer that says what was meant."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
import os
import pty
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import model_pb2

import pahq_client
from pahq_client import (
    AsyncClient,
    BuiltinTask,
    Circuit,
    Client,
    Edge,
    InvalidRequest,
    NotFound,
    PahqError,
    Task,
    compare,
    discover,
)
from pahq_client._job_options import JobRequest
from pahq_client._requests import EvaluationRequest, SessionRequest, edge_set
from pahq_client.cli import main
from pahq_client.embedded import EmbeddedServer
from pahq_client.formatting import clock_time, local_time, one_line, printable

from .fake_server import FakeServer

NAME = "users/me/jobs/0"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAHQ_SERVER", "PAHQ_TOKEN"):
        monkeypatch.delenv(name, raising=False)


# Arguments.


@pytest.mark.parametrize(
    ("call", "name", "words"),
    [
        (lambda c: c.submit("m", "ioi", treshold=3), "treshold", "did you mean threshold?"),
        (lambda c: c.discover("m", "ioi", 0.1, groping="none"), "groping", "did you mean grouping?"),
        (lambda c: c.estimate("m", "ioi", ablations="zero"), "ablations", "did you mean ablation?"),
        (lambda c: c.evaluate("m", "ioi", [], metrics="l2"), "metrics", "did you mean metric?"),
        (lambda c: c.session("m", "ioi", kv_receiver="query"), "kv_receiver", "did you mean kv_receivers?"),
        (lambda c: c.session("m", "ioi", threshold=1), "threshold", "there are model, task, metric"),
        (lambda c: c.jobs(limits=3), "limits", "did you mean limit?"),
        (lambda c: discover("m", "ioi", tresh=1), "tresh", "did you mean threshold?"),
        (lambda c: Client("h:1", tokn="x"), "tokn", "did you mean token?"),
        (lambda c: AsyncClient("h:1", tokn="x"), "tokn", "did you mean token?"),
        (lambda c: Task(clean=["a"], corupted=["b"]), "corupted", "did you mean corrupted?"),
        (lambda c: BuiltinTask("ioi", prompts=3), "prompts", "did you mean num_prompts?"),
        (lambda c: Task.ioi(num_prompt=3), "num_prompt", "did you mean num_prompts?"),
    ],
)
def test_unknown_arguments(
    client: Any, server: FakeServer, call: Callable[[Any], Any], name: str, words: str
) -> None:
    """Of this package's kind, and still what Python has for it."""
    with pytest.raises(InvalidRequest) as raised:
        call(client)
    assert isinstance(raised.value, TypeError)
    assert raised.value.field == name
    assert words in str(raised.value)
    assert "is no argument of " in str(raised.value)
    assert server.calls == []


def _defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: p.default for name, p in parameters.items() if name != "self"}


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_signatures_have_the_arguments_of_requests(kind: Any) -> None:
    """What an editor shows is what is asked for: the same names in the same order, with the same defaults."""
    asked = _defaults(JobRequest)
    assert _defaults(kind.submit) == _defaults(kind.estimate) == asked
    assert _defaults(kind.discover) == {**asked, "timeout": None, "progress": None}
    assert _defaults(kind.session) == _defaults(SessionRequest)
    evaluated = _defaults(kind.evaluate)
    assert list(evaluated)[:3] == ["model", "task", "circuit"]
    options = dict(list(evaluated.items())[3:])
    assert {"metric", "ablation", "kv_receivers", "precision"} <= set(options)
    assert all(options[name] is None for name in ("metric", "ablation", "kv_receivers", "precision"))
    assert set(_defaults(EvaluationRequest)) >= {"metric", "ablation", "kv_receivers", "precision"}
    for name in ("submit", "estimate", "discover", "session", "evaluate", "jobs"):
        kinds = {p.kind for p in inspect.signature(getattr(kind, name)).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}, name


def test_the_short_form_has_the_same_arguments() -> None:
    known = _defaults(discover)
    longer = _defaults(Client.discover)
    assert {name: known[name] for name in longer} == longer
    assert [name for name in known if name in longer] == list(longer)


@pytest.mark.parametrize(
    "function",
    [
        *(Client.submit, Client.estimate, Client.discover, Client.session, Client.evaluate),
        *(Client.evaluate_many, Client.attribute, Client.curve, pahq_client.discover),
    ],
)
def test_every_argument_is_described(function: Any) -> None:
    described = re.findall(r"^ {4,12}(\w+): ", inspect.getdoc(function) or "", re.MULTILINE)
    assert set(_defaults(function)) <= set(described)


def test_each_argument_reaches_the_request(client: Any, server: FakeServer) -> None:
    """Explicit signatures pass on what they name."""
    values = {"metric": "l2", "ablation": "zero", "kv_receivers": "query", "precision": "bf16"}
    client.submit("m", "ioi", 0.25, method="single_edge", **values)
    client.discover("m", "ioi", 0.25, method="single_edge", **values)
    client.estimate("m", "ioi", 0.25, method="single_edge", **values)
    client.session("m", "ioi", **values)
    client.evaluate("m", "ioi", ["m0->logits"], **values)
    created = [request.spec for request in server.called("CreateJob")]
    assert [s.WhichOneof("method") for s in created] == ["single_edge"] * 3
    assert [s.single_edge.threshold for s in created] == [0.25] * 3
    asked = [spec.objective for spec in created]
    for method in ("OpenSession", "EvaluateCircuits"):
        asked += [request.objective for request in server.called(method)]
    assert len(asked) == 5
    for objective in asked:
        assert {name: getattr(objective, name) for name in values} == values


def test_edges_have_no_order(client: Any, server: FakeServer) -> None:
    """Sets are as good as lists, and make the same request whatever order they happen to have."""
    names = ["m0->logits", "input->m0", "a0.h1->m0", "input->a0.h0<q>"]
    for edges in (set(names), frozenset(map(Edge.parse, names)), {Edge.parse(n): 1 for n in names}.keys()):
        client.evaluate("m", "ioi", edges)
    sent = [list(request.circuits[0].names.names) for request in server.called("EvaluateCircuits")]
    assert sent == [sorted(names), sorted(names), names]
    assert edge_set("x", set(names)) == sorted(names)
    for wrong in ({"m0->logits": 1}, "m0->logits", 3, None, [3], {3}):
        with pytest.raises(InvalidRequest, match="circuit"):
            client.evaluate("m", "ioi", wrong)
    with pytest.raises(InvalidRequest, match="clean"):
        Task(clean={"a", "b"})  # prompts have one


def test_what_is_no_circuit_is_explained(client: Any, server: FakeServer, tmp_path: Path) -> None:
    for wrong, words in (
        ("m0->logits", r"got str; a single edge is \['m0->logits'\]"),
        ("circuit.json", "got str; read a file with Circuit.load"),
        (tmp_path, "got PosixPath; read a file with Circuit.load"),
    ):
        with pytest.raises(InvalidRequest, match=f"circuit: must be a Circuit or a list of edges, {words}"):
            client.evaluate("m", "ioi", wrong)
    with pytest.raises(InvalidRequest, match=r"score edges with client\.attribute"):
        client.curve("m", "ioi", "gim")
    assert server.calls == []


def test_only_circuits_can_be_compared(circuit: Circuit) -> None:
    for wrong, words in (
        (["m0->logits"], "list; .*set"),
        ({"m0->logits"}, "set"),
        ("c.json", "str; read a file with Circuit.load"),
        (Path("c.json"), "read a file with Circuit.load"),
        (None, "NoneType"),
    ):
        with pytest.raises(InvalidRequest, match=f"a: must be a Circuit, got .*{words}"):
            compare(wrong, circuit)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="b: must be a Circuit"):
            compare(circuit, wrong)  # type: ignore[arg-type]


# Models and addresses.


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gpt2", "did you mean the hub's 'openai-community/gpt2'?"),
        ("gpt2-xl", "'openai-community/gpt2-xl'"),
        ("pythia-70m", "'EleutherAI/pythia-70m'"),
        ("opt-125m", "'facebook/opt-125m'"),
        ("nobody-knows", "give a directory or a hub id such as 'openai-community/gpt2'"),
        ("", "give a directory or a hub id"),
    ],
)
def test_a_model_that_no_server_of_ones_own_has(
    model: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found out before one is started, which takes seconds."""
    monkeypatch.setattr(EmbeddedServer, "__enter__", None)
    with pytest.raises(NotFound) as raised:
        discover(model, "ioi", 0.1)
    assert raised.value.name == model
    assert words in str(raised.value)
    assert "server=" in str(raised.value)
    assert "PAHQ_SERVER" in str(raised.value)
    assert main(["discover", "--model", model, "--task", "ioi", "--threshold", "0.1"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("model", ["a\0b/c", "~nobody-here/x", 3, b"demo", "\ud800/x", None])
def test_what_is_no_model(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddedServer, "__enter__", None)
    with pytest.raises(InvalidRequest, match="model"):
        discover(model, "ioi", 0.1)


def test_what_is_no_model_of_a_server(server: FakeServer) -> None:
    for model in (3, b"demo", None):
        with pytest.raises(InvalidRequest, match="model"):
            discover(model, "ioi", 0.1, server=server.address)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("7300", "127.0.0.1:7300"),
        (":7300", "127.0.0.1:7300"),
        ("gpu-box", "gpu-box:7300"),
        ("http://gpu-box:7300/", "gpu-box:7300"),
        ("grpc://gpu-box", "gpu-box:7300"),
        ("::1:7300", "[::1]:7300"),
        (" gpu-box:7300", "gpu-box:7300"),
        ("gpu-box:0", None),
        ("gpu-box:99999", None),
        ("gpu box:1", None),
        ("", None),
    ],
)
def test_addresses_are_explained(address: str, meant: str | None) -> None:
    with pytest.raises(InvalidRequest, match="HOST:PORT") as raised:
        Client(address)
    assert raised.value.field == "server"
    assert str(raised.value).endswith(f"did you mean {meant}?" if meant else f"got {address!r}")


# Jobs by their ids.


def _jobs(server: FakeServer, *ids: str) -> None:
    names = [f"users/me/jobs/{id}" for id in ids]
    server.list_pages = [names[:1], names[1:]]
    server.replies["GetJob"] = lambda request, context: pb.GetJobResponse(
        job=pb.Job(name=request.name, state=pb.JOB_STATE_RUNNING)
    )
    server.replies["CancelJob"] = lambda request, context: pb.CancelJobResponse(
        job=pb.Job(name=request.name, state=pb.JOB_STATE_CANCELLED)
    )


@pytest.mark.parametrize("given", ["users/me/jobs/abcdef99", "abcdef99", "abcdef9"])
def test_an_id_is_enough(given: str, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    _jobs(server, "abcdef12", "abcdef99")
    at = ["--server", server.address]
    assert main(["show", given, *at]) == 0
    assert "name: users/me/jobs/abcdef99\n" in capsys.readouterr().out
    assert main(["cancel", given, *at]) == 0
    assert capsys.readouterr().out == "users/me/jobs/abcdef99\tCANCELLED\n"
    assert main(["cancel", given, *at, "--json"]) == 0
    assert '"users/me/jobs/abcdef99"' in capsys.readouterr().out


@pytest.mark.parametrize("command", ["show", "watch", "cancel"])
def test_ids_that_are_none_or_several(
    command: str, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    _jobs(server, "abcdef12", "abcdef99")
    at = ["--server", server.address]
    for given, words in (
        ("abcdef", "2 jobs have ids that begin with 'abcdef'"),
        ("abc", "no job with the id abc"),  # too short to be meant so
        ("feedbeef", "no job with the id feedbeef; see pahq jobs"),
    ):
        assert main([command, given, *at]) == 2
        assert words in capsys.readouterr().err
    if command != "show":
        for given in ("", "users/me", "a/b", "abcdef12\n"):
            assert main([command, given, *at]) == 2
            assert "NAME: must be users/.../jobs/ID, or ID alone" in capsys.readouterr().err


def test_an_id_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "abcdef99"]) == 2
    err = capsys.readouterr().err
    assert "No such file" in err
    assert "--server or $PAHQ_SERVER" in err


# Tables.


def _models(server: FakeServer, count: int) -> None:
    server.replies["ListModels"] = lambda request, context: model_pb2.ListModelsResponse(
        models=[
            model_pb2.Model(
                name=f"model-{'x' * 60}-{i}", architecture="gpt2", revision="f" * 64, heads=8, kv_heads=2
            )
            for i in range(count)
        ]
    )


def test_a_table_that_nobody_looks_at_is_not_cut(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    _models(server, 3)
    assert main(["models", "--server", server.address]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    assert [row.split()[0] for row in rows] == [f"model-{'x' * 60}-{i}" for i in range(3)]
    assert {row.index("gpt2") for row in rows} == {heading.index("architecture")}
    assert all(row.split()[3] == "8/2" for row in rows)
    assert all(row.endswith("ffffffffffff") and "f" * 13 not in row for row in rows)


@pytest.mark.skipif(shutil.which("stty") is None, reason="needs a terminal")
@pytest.mark.parametrize("command", ["models", "jobs"])
def test_a_table_in_a_terminal(command: str, server: FakeServer) -> None:
    """Folded where it is too wide, with nothing lost."""
    _models(server, 2)
    server.list_pages = [["users/me/jobs/0123456789abcdef0123456789abcdef"]]
    ours, theirs = pty.openpty()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "70"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pahq_client.cli", command, "--server", server.address],
        env=environ,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    out = b""
    try:
        while part := os.read(ours, 4096):
            out += part
    except OSError:  # the other end is closed
        pass
    assert process.communicate(timeout=60)[1] == b""
    os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[\d;]*m", "", out.decode())
    assert "\x1b" not in text
    assert all(len(line.rstrip()) <= 70 for line in text.splitlines())
    squeezed = re.sub(r"\s", "", text)
    assert ("x" * 30 if command == "models" else "0123456789ab") in squeezed
    if command == "jobs":  # as short as it stays one's own
        assert "0123456789abc" not in squeezed


def test_no_jobs(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "--server", server.address]) == 0
    assert capsys.readouterr() == ("", "pahq: there are no jobs\n")


# Errors.


def test_python_errors_are_one(server: FakeServer) -> None:
    """As a person sees them, who calls from the top."""
    code = "import pahq_client, sys; pahq_client.discover('x', 'ioi', 0.1, server=sys.argv[1], timeout=5)"
    for address in ("127.0.0.1:1", server.address):
        server.outcome = pb.JOB_STATE_FAILED, "metric is NaN"
        run = subprocess.run(
            [sys.executable, "-c", code, address],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert run.stderr.count("Traceback") == 1
        assert "During handling" not in run.stderr
        assert "direct cause" not in run.stderr


def test_asynchronous_errors_are_one(server: FakeServer) -> None:
    async def main() -> str:
        async with AsyncClient("127.0.0.1:1", timeout=0.5) as client:
            try:
                await client.models()
            except PahqError as error:
                return "".join(traceback.format_exception(error))
            return ""

    assert asyncio.run(main()).count("Traceback") == 1


def test_a_terminal_that_knows_ascii_only(server: FakeServer, tmp_path: Path) -> None:
    server.replies["ListModels"] = lambda request, context: model_pb2.ListModelsResponse(
        models=[model_pb2.Model(name="modèle")]
    )
    run = subprocess.run(
        [sys.executable, "-m", "pahq_client.cli", "models", "--server", server.address],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "mod\\xe8le" in run.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
@pytest.mark.parametrize(("to", "code"), [("/dev/full", 2), (None, 0)])
def test_an_output_that_takes_nothing(to: str | None, code: int, circuit: Circuit, tmp_path: Path) -> None:
    circuit.save(tmp_path / "c.json")
    shell = f"exec {sys.executable} -m pahq_client.cli show {tmp_path / 'c.json'} " + (
        f">{to}" if to else ">&-"
    )
    run = subprocess.run(
        ["sh", "-c", shell],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == code
    assert run.stderr == ("pahq: error: [Errno 28] No space left on device\n" if to else "")


ODD = (
    "",
    " ",
    "\x1b[31m",
    "\u202ex",
    "a\0b",
    "\udcff",
    "x" * 5000,
    "../..",
    "-",
    "/",
    "nan",
    "9" * 5000,
    "{}",
)
COMMANDS: tuple[list[str], ...] = (
    ["discover", "--model", "ODD", "--task", "ioi", "--threshold", "0.1"],
    ["discover", "--model", "demo", "--task", "ODD", "--threshold", "0.1"],
    ["discover", "--model", "demo", "--task", "ioi", "--threshold=ODD"],
    ["discover", "--model", "demo", "--task", "ioi", "--threshold", "0.1", "--timeout=ODD"],
    ["discover", "--model", "demo", "--task", "ioi", "--threshold", "0.1", "--metric=ODD"],
    ["discover", "--model", "demo", "--task", "ioi", "--threshold", "0.1", "--seed=ODD"],
    ["discover", "--model", "demo", "--task", "ioi", "--threshold", "0.1", "--out=ODD/ODD"],
    ["evaluate", "--model", "demo", "--task", "ioi", "--circuit=ODD"],
    ["compare", "--", "ODD", "ODD"],
    ["show", "--", "ODD"],
    ["watch", "--", "ODD"],
    ["cancel", "--", "ODD"],
    ["jobs", "--limit=ODD"],
    ["models", "ODD"],
    ["ODD"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: ascii(odd[:9]))
def test_odd_arguments_end_in_a_line(
    command: list[str],
    odd: str,
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With an exit code of the table, and without anything that a terminal would obey."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAHQ_SERVER", server.address)
    try:
        code = main([part.replace("ODD", odd) for part in command])
    except SystemExit as exit:
        code = int(exit.code or 0)
    out, err = capsys.readouterr()
    assert code in (0, 2)
    if code:
        assert ": error: " in err.splitlines()[-1]
        assert out == ""
    assert all(c.isprintable() or c in "\n\t" for c in out)
    assert "\x1b[31m" not in err
    assert "\u202e" not in err
    assert os.listdir(tmp_path) == []


# Words.


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – ü 漢字 🙂\ttab\nline", "plain – ü 漢字 🙂\ttab\nline"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb\u2066c\u200bd\ufeff", "a\\u202eb\\u2066c\\u200bd\\ufeff"),
        ("\r\x00\x7f\x08", "\\x0d\\x00\\x7f\\x08"),
        ("\udcff\U000e0041", "\\udcff\\U000e0041"),
        ("\u2028\u2029", "\\u2028\\u2029"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_line() -> None:
    assert one_line(" a\r\nb\x0b\x1b[1m  c\u2028d ") == "a b \\x1b[1m c d"
    assert len(one_line("x" * 10**7)) < 5000
    assert one_line("x" * 10**7).endswith("…")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (math.inf, "more than 9999 days"),
        (-math.inf, "0:00"),
        (math.nan, "an unknown time"),
        (-5.0, "0:00"),
        (1e300, "more than 9999 days"),
        (3725.4, "1:02:05"),
        (10 * 86_400, "10 days"),
    ],
)
def test_times_of_any_length(seconds: float, words: str) -> None:
    assert clock_time(seconds) == words


def test_moments_that_no_clock_has() -> None:
    for moment in (datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)):
        assert str(moment.year) in local_time(moment, "%Y") or moment.isoformat() in local_time(moment, "%Y")


# Pictures.


def test_a_picture_shows_layers_in_order_and_scores(circuit: Circuit) -> None:
    edges = (
        Edge("m1", "logits", 1.0),
        Edge("a0.h1", "logits", 0.25),
        Edge("input", "m0", -0.25),
        Edge("input", "m1", 0.0),
        Edge("m0", "logits"),
        Edge("m0", "m1", math.nan),
    )
    text = dataclasses.replace(circuit, edges=edges).to_dot()
    # Ranks follow one another by arrows that nobody sees, though no edge joins some of them.
    assert re.findall(r'^  ("\S+") -> ("\S+") \[style=invis\];$', text, re.MULTILINE) == [
        ('"input"', '"a0.h1"'),
        ('"a0.h1"', '"m0"'),
        ('"m0"', '"m1"'),
        ('"m1"', '"logits"'),
    ]
    style = dict(re.findall(r'tooltip="(\S+) \S+", (.*)\];$', text, re.MULTILINE))
    assert style["m1->logits"] == 'penwidth=5.00, color="#08306b"'
    assert style["a0.h1->logits"] == 'penwidth=2.75, color="#5d7ca5"'
    assert style["input->m0"].startswith('penwidth=2.75, color="#cc6664"')
    assert style["input->m1"] == 'penwidth=0.50, color="#b2c8df"'
    assert style["m0->logits"] == style["m0->m1"] == 'penwidth=1, color="#999999", style=dashed'


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs graphviz")
def test_graphviz_draws_it(circuit: Circuit) -> None:
    odd = dataclasses.replace(
        circuit, edges=(*circuit.edges, Edge('"\\\n];\x1b<b>', "logits", 1.0), Edge("\\", "m0", 2.0))
    )
    for drawn in (circuit, odd, dataclasses.replace(circuit, edges=())):
        run = subprocess.run(
            ["dot", "-Tplain"], input=drawn.to_dot(), capture_output=True, text=True, check=False, timeout=60
        )
        assert (run.returncode, run.stderr) == (0, "")
    run = subprocess.run(
        ["dot", "-Tplain"], input=circuit.to_dot(), capture_output=True, text=True, check=True, timeout=60
    )
    heights = {
        name: float(y) for name, y in re.findall(r'^node "?([^ "]+)"? \S+ (\S+)', run.stdout, re.MULTILINE)
    }
    order = ["input", "a0.h1", "m0", "a1.h2", "m1", "logits"]
    assert sorted(order, key=heights.__getitem__) == order
    assert heights["a1.h2"] == heights["a1.h3"]
