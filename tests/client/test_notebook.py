"""What notebooks show: a stand-in for IPython takes what would be displayed."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
from pahq.v1 import jobs_pb2 as pb

from pahq_client import AsyncClient, Client, Event, EventKind, JobInfo, JobState, Progress
from pahq_client.display.progress import ProgressCard, find_display, job_to_html, shown_in

from .fake_jobs import STARTED
from .fake_server import Code, FakeServer, Fault

PROGRESS = Progress(40, 100, "edges", figures={"kept": 7, "metric": 0.5, "evaluations": 41}, eta_s=65.0)
RUNNING = JobInfo("users/me/jobs/0", JobState.RUNNING, "demo", "acdc", "l2", 0.1, PROGRESS)


class Notebook:
    """Keeps what is displayed; every display and every change of one adds to the list."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kernel: object) -> None:
        self.shown: list[str] = []
        ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
        shell = type("Shell", (), {"kernel": kernel})()
        ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
        display.display = self.display  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def display(self, thing: Any, display_id: bool) -> Notebook:
        assert display_id
        self.update(thing)
        return self

    def update(self, thing: Any) -> None:
        self.shown.append(thing._repr_html_())


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    return Notebook(monkeypatch, kernel=object())


def test_progress_is_a_card_that_changes(
    notebook: Notebook, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(client.discover("demo", "ioi", progress=True).edges) == 2
    assert notebook.shown[0].startswith("<div><b>Job</b><br>waiting")
    assert "succeeded: 10/10 edges, 5 kept" in notebook.shown[-1]
    assert "<progress" not in notebook.shown[-1]
    assert capsys.readouterr() == ("", "")


def test_a_card_changes_at_a_pace_that_can_be_seen(notebook: Notebook) -> None:
    now = [0.0]
    display = find_display()
    assert display is not None
    with shown_in(display, lambda: now[0]) as report:
        for number in range(100):
            now[0] += 0.01
            report(Event(number, EventKind.PROGRESS, JobState.RUNNING, Progress(number, 100)))
        report(Event(100, EventKind.END, JobState.FAILED, Progress(100, 100), error="<b>NaN</b>"))
    assert 8 <= len(notebook.shown) <= 13
    assert 'value="' in notebook.shown[5]
    assert "failed: &lt;b&gt;NaN&lt;/b&gt;" in notebook.shown[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    if terminal:
        Notebook(monkeypatch, kernel=None)
    assert find_display() is None


def test_the_text_of_a_card() -> None:
    card = ProgressCard()
    assert repr(card) == "Job: waiting"
    card.update(Event(1, EventKind.STATE, JobState.QUEUED, queue_position=3))
    assert repr(card) == "Job: queued, number 3 in the queue"


def test_a_running_job_has_a_bar() -> None:
    html = job_to_html(RUNNING.name, RUNNING)
    assert "model demo, method acdc, threshold 0.1" in html
    assert "running, 40/100 edges, 7 kept, l2 0.5, 41 evaluations, 1:05 left" in html
    assert '<progress value="40" max="100"' in html


def test_a_queued_job_has_no_bar() -> None:
    progress = Progress(0, 100, "edges")
    info = JobInfo("users/me/jobs/0", JobState.QUEUED, "demo", progress=progress, queue_position=3)
    html = job_to_html(info.name, info)
    assert "queued, number 3 in the queue</div>" in html
    assert "<progress" not in html


def test_everything_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    info = JobInfo(
        evil, JobState.FAILED, evil, evil, evil, 0.1, Progress(1, 2, figures={"metric": 0}), error=evil
    )
    html = job_to_html(evil, info, evil)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 6


def test_handles_show_the_present(threads_client: Client, server: FakeServer) -> None:
    server.outcome = None
    job = threads_client.submit("demo", "ioi", threshold=0.25)
    fake = server.jobs[job.name]
    assert '<progress value="4" max="10"' in job._repr_html_()
    fake.end(pb.JOB_STATE_SUCCEEDED)
    html = job._repr_html_()
    assert "threshold 0.25" in html
    assert "succeeded, 10/10 edges, 5 kept, kl_divergence 0.5, 10 evaluations, took 1:05" in html
    assert "<progress" not in html
    server.calls.clear()
    assert job._repr_html_() == html
    assert server.calls == []  # nothing changes any more


def test_handles_show_what_they_know_when_there_is_no_news(
    threads_client: Client, server: FakeServer
) -> None:
    server.outcome = None
    job = threads_client.submit("demo", "ioi")
    server.faults["GetJob"] = [Fault(Code.PERMISSION_DENIED, "not <yours>")]
    html = job._repr_html_()
    assert "no news: not &lt;yours&gt;" in html
    assert "running" in html
    other = threads_client.job("users/me/jobs/none")
    assert "not asked for yet<br>no news: " in other._repr_html_()
    threads_client.close()
    assert "closed" in job._repr_html_()


async def _asynchronous(server: FakeServer) -> list[str]:
    async with AsyncClient(server.address) as client:
        known, named = await client.submit("demo", "ioi"), client.job("users/me/jobs/0")
        return [known._repr_html_(), named._repr_html_()]


def test_asynchronous_handles_show_what_they_know(server: FakeServer) -> None:
    known, named = asyncio.run(_asynchronous(server))
    assert "succeeded" in known
    assert "not asked for yet" in named


def test_what_is_known_follows_events(client: Client, server: FakeServer) -> None:
    server.outcome = None
    job = client.submit("demo", "ioi")
    start = STARTED + timedelta(hours=1)
    events = job.watch()
    assert [next(events).sequence for _ in range(3)] == [1, 2, 3]
    server.jobs[job.name].move(3, start)
    assert next(events).queue_position == 3
    assert (job.latest.queue_position, job.latest.estimated_start) == (3, start)
    server.jobs[job.name].end(pb.JOB_STATE_SUCCEEDED)
    list(events)
    assert job.latest.state is JobState.SUCCEEDED
    assert job.latest.queue_position is None
