"""Sessions on a real server: scores as those of evaluations, a search of one's own as that of the server."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pahq.v1.patching_pb2 import CloseSessionRequest

from pahq_client import (
    Client,
    InvalidRequest,
    JobFailed,
    NotFound,
    ResourceExhausted,
    Task,
    Unavailable,
    _calls,
)
from pahq_client.retries import Backoff

from .greedy_example import THRESHOLD, prune
from .process import ServerProcess

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).with_name("greedy_example.py")
PLAIN = Task([[1, 2, 3], [4, 5]], [[4, 6, 3], [7, 5]])
CLOSE = {"abs": 1e-5, "rel": 1e-4}


def circuits(seed: int, edges: tuple[str, ...], count: int) -> list[list[str]]:
    """Random ones, from nearly empty to nearly full."""
    chance = random.Random(seed)
    return [[edge for edge in edges if chance.random() < (i + 0.5) / count] for i in range(count)]


@pytest.mark.parametrize(
    "options",
    [{}, {"ablation": "zero"}, {"ablation": "mean", "metric": "l2"}],
    ids=lambda options: "-".join(options.values()),
)
def test_scores_are_those_of_evaluations(client: Client, options: dict[str, str]) -> None:
    with client.session("demo", "ioi", **options) as session:  # type: ignore[arg-type]
        asked = circuits(0, session.edges, 6)
        scores = session.score(asked)
        evaluations = [client.evaluate("demo", "ioi", circuit, **options) for circuit in asked]  # type: ignore[arg-type]
        assert scores == [evaluation.value for evaluation in evaluations]
        assert (session.full, session.empty) == (evaluations[0].full, evaluations[0].empty)
        removals = [set(session.edges).difference(circuit) for circuit in asked]
        assert session.score_removed(removals) == pytest.approx(scores, **CLOSE)


def test_a_committed_base_changes_the_cost_not_the_score(client: Client) -> None:
    with client.session("demo", "ioi") as session:
        (base,) = circuits(1, session.edges, 1)
        session.commit(edges=base)
        assert list(session.edges) == base
        cuts = [random.Random(i).sample(base, i) for i in range(12)]
        alone = [session.score_removed([cut])[0] for cut in cuts]
        assert session.score_removed(cuts) == alone  # to the last digit, in whatever company
        left = [[edge for edge in base if edge not in cut] for cut in cuts]
        assert alone == pytest.approx(session.score(left), **CLOSE)
        session.commit(removed=cuts[5])
        assert session.score_removed([[]]) == pytest.approx([alone[5]], **CLOSE)


def test_a_search_of_ones_own_finds_the_servers_circuit(client: Client) -> None:
    expected = client.discover("demo", "ioi", THRESHOLD, grouping="none")
    with client.session("demo", "ioi") as session:
        assert prune(session) == [str(edge) for edge in expected.edges]
        assert sorted(session.edges) == sorted(map(str, expected.edges))
        assert session.score([expected]) == [expected.metric_value]


def test_the_example_is_what_the_documentation_shows(client: Client) -> None:
    run = subprocess.run(
        [sys.executable, EXAMPLE, client.address], capture_output=True, text=True, check=True
    )
    page = (ROOT / "docs" / "client.md").read_text("utf-8")
    section = page[page.index("## Your own search") :]
    (_, code), (_, output) = re.findall(r"^```(python|text)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[
        :2
    ]
    assert run.stdout == output
    assert EXAMPLE.read_text("utf-8").endswith(f"\n\n{code}")


def test_many_sessions_at_once(client: Client) -> None:
    """Each gets its own answers, beside a discovery that is not disturbed."""
    tasks = [Task.ioi(num_prompts=2, seed=seed) for seed in range(8)]

    def work(task: Task) -> list[float]:
        with client.session("demo", task) as session:
            asked = circuits(2, session.edges, 4)
            session.commit(removed=session.edges[:100])
            return session.score(asked) + session.score_removed([session.edges[5:i] for i in range(5, 40)])

    alone = [work(task) for task in tasks]
    circuit = client.discover("demo", "ioi", 0.2)
    job = client.submit("demo", "ioi", 0.2)
    with ThreadPoolExecutor(len(tasks)) as threads:
        assert list(threads.map(work, tasks)) == alone
    assert job.result().canonical_bytes() == circuit.canonical_bytes()


def test_bad_requests(client: Client) -> None:
    with pytest.raises(NotFound, match="nonsense"):
        client.session("nonsense", "ioi")
    with pytest.raises(InvalidRequest, match=r"task\.corrupted"):
        client.session("plain", Task([[1, 2]]))
    with pytest.raises(JobFailed, match="the metric is"):
        client.session("overflowing", PLAIN, metric="l2")
    with client.session("plain", PLAIN) as session:
        with pytest.raises(InvalidRequest, match=r"circuits\[1\]: .*'a7\.h0'"):
            session.score([session.edges, ["a7.h0->logits"]])
        session.commit(removed=session.edges[:1])
        with pytest.raises(InvalidRequest, match=r"removals\[0\]: the base circuit has no edge"):
            session.score_removed([session.graph.edge_names()])
        assert session.score([]) == []
    with pytest.raises(NotFound, match="closed"):
        session.score([session.edges])


@pytest.fixture(scope="module")
def strict_server(plain_model: Path) -> Iterator[ServerProcess]:
    limits = ["--session-timeout", "2", "--max-sessions", "2"]
    with ServerProcess({"plain": plain_model}, *limits) as process:
        yield process


def test_limits(strict_server: ServerProcess) -> None:
    with Client(strict_server.address) as client:
        sessions = [client.session("plain", PLAIN) for _ in range(2)]
        with pytest.raises(ResourceExhausted, match="2 sessions are open") as raised:
            client.session("plain", PLAIN)
        assert raised.value.retry_after == 30
        time.sleep(2.1)  # time is what this is about
        for session in sessions:
            with pytest.raises(NotFound, match="expired after 2 s without a call"):
                session.score([session.edges])
            session.close()
        with client.session("plain", PLAIN) as session:
            for _ in range(4):
                time.sleep(0.6)
                assert session.score([session.edges]) == [0.0]


def test_a_server_that_stops(plain_model: Path) -> None:
    models = {"plain": plain_model}
    with (
        ServerProcess(models) as process,
        Client(process.address, backoff=Backoff(attempts=1, first_s=0.01)) as client,
        ThreadPoolExecutor() as threads,
    ):
        session = client.session("demo", Task.ioi(num_prompts=64))
        hours = threads.submit(session.score, circuits(3, session.edges, 4000))
        other = client.session("plain", PLAIN)
        assert other.score([other.edges]) == [0.0]  # beside the long one
        assert process.stop() == 0
        with pytest.raises(Unavailable):
            hours.result()
        session.close()
        assert "Traceback" not in process.log()


def test_an_interrupted_session_frees_the_server(client: Client) -> None:
    """Ctrl-C ends the script soon, in the middle of a long call, and closes the session."""
    script = (
        "import sys, pahq_client\n"
        "client = pahq_client.Client(sys.argv[1])\n"
        "with client.session('demo', pahq_client.Task.ioi(64)) as session:\n"
        "    print(session.name, flush=True)\n"
        "    session.score([session.edges] * 4000 + [session.edges[i:] for i in range(4000)])\n"
    )
    command = [sys.executable, "-c", script, client.address]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        time.sleep(1)  # into the call
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in log
    close = _calls.Call(_calls.CLOSE, CloseSessionRequest(name=name), timeout=30.0)
    with pytest.raises(NotFound, match="it was closed"):
        client._transport.perform(close)
