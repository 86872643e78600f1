"""``kill -9`` of workers, of Ray's head and of the server: nothing is lost, results stay the same bytes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from bench.workloads import TINYTALK, tinytalk_texts
from e2e.cases import Case, grouping_of, load_cases
from e2e.process import ServerProcess
from helpers.fairness import jain

from pahq_client import Client, JobHandle, Task
from pahq_server.access.tokens import TokenTable, new_token
from pahq_server.demo import model_path
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE

from .conftest import Figures

PATIENCE_S = 300.0
# The processes that are killed, by what they are, and how often in a hundred.
VICTIMS = {"worker": 70, "head": 10, "driver": 10, "server": 10}


def victims(server: ServerProcess, kind: str) -> list[psutil.Process]:
    """Processes of a server that has workers: the server itself, Ray's driver, Ray's head, or workers."""
    process = psutil.Process(server.process.pid)
    if kind == "server":
        return [process]
    names = {"worker": "ray::RayActor", "head": "gcs_server", "driver": "ray_driver"}
    found = []
    for child in process.children(recursive=True):
        try:
            said = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if names[kind] in said and (kind != "worker" or said.startswith(names[kind])):
            found.append(child)
    return found


def kill(server: ServerProcess, kind: str, draw: random.Random) -> bool:
    """Kills one process of a kind; returns whether there was one."""
    there = victims(server, kind)
    if not there:
        return False
    try:
        draw.choice(there).kill()
    except psutil.NoSuchProcess:
        return False
    return True


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def ready(client: Client) -> int:
    """How many workers take operations."""
    return sum(worker.state == "READY" for worker in client.server_info().workers)


# Cases


def discoveries(cases: Sequence[Case]) -> list[tuple[Case, dict[str, Any]]]:
    """The quickest search of each case with gates, and the quickest in groups."""
    found = []
    for case in cases:
        for runs in (case.runs, case.attribution["bisect"]):
            found.append((case, min(runs, key=lambda run: run["n_evaluations"])))
    return found


def submit(client: Client, case: Case, run: dict[str, Any]) -> JobHandle:
    return client.submit(
        case.model,
        case.task,
        metric=case.metric,
        threshold=run["tau"],
        ablation=run["ablation"],
        kv_receivers=run["kv"],
        grouping=grouping_of(run),
    )


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)]
)
def test_the_cases_on_workers_that_are_killed(workers: int, tmp_path: Path, figures: Figures) -> None:
    """On each number of workers, undisturbed and with a worker killed in the middle of each search."""
    cases = load_cases()
    models = {case.model: case.model_directory for case in cases}
    asked, draw, kills = discoveries(cases), random.Random(workers), 0
    with ServerProcess(models, "--threads", "1") as server, Client(server.address) as client:
        solo = [submit(client, case, run).result().canonical_bytes() for case, run in asked]
    options = ("--workers", str(workers), "--ray-address", "local", "--threads", "1")
    with ServerProcess(models, *options) as server, Client(server.address) as client:
        wait_for(lambda: ready(client) == workers, "workers")
        calm = [submit(client, case, run).result().canonical_bytes() for case, run in asked]
        disturbed = []
        for case, run in asked:
            job = submit(client, case, run)
            wait_for(lambda job=job: job.state != "QUEUED", "the job's start")
            time.sleep(draw.uniform(0, 0.3))
            kills += kill(server, "worker", draw)
            disturbed.append(job.result().canonical_bytes())
    assert calm == solo
    assert disturbed == solo
    figures(workers=workers, searches=len(asked), kills=kills)


# Everything at once


@dataclass
class Killer:
    """A server with workers and users, any process of which dies now and then; the server is started again.

    Args:
        folder: for its data.
        model: that is served.
        users: how many.
        workers: how many.
    """

    folder: Path
    model: Path
    users: int
    workers: int

    def __post_init__(self) -> None:
        database = Database(self.folder / DATABASE)
        pairs = [new_token(f"user-{number}", "user", time.time()) for number in range(self.users)]
        for _, token in pairs:
            TokenTable(database).add(token)
        database.close()
        self.tokens = [text for text, _ in pairs]

    @contextmanager
    def serving(self) -> Iterator[tuple[ServerProcess, list[Client]]]:
        options = ("--auth", "tokens", "--data-dir", str(self.folder), "--no-result-cache", "--threads", "1")
        workers = ("--workers", str(self.workers), "--ray-address", "local")
        with ServerProcess({"model": self.model}, *options, *workers) as server, ExitStack() as stack:
            yield server, [stack.enter_context(Client(server.address, token)) for token in self.tokens]


@dataclass(frozen=True)
class Siege:
    """How much is killed, and of what.

    Args:
        kills: how many.
        pause_s: seconds between two of them, about.
        model: that is served.
        tasks: of the jobs of each user, and their threshold. All of them together last longer than the kills.
    """

    kills: int
    pause_s: float
    model: Path
    tasks: Callable[[], list[Task]]
    threshold: float

    def submitted(self, client: Client) -> list[JobHandle]:
        how: dict[str, Any] = {"threshold": self.threshold, "grouping": "none"}
        return [client.submit("model", task, **how) for task in self.tasks()]


def on_tinytalk(seed: int) -> Task:
    texts = tinytalk_texts(80, seed)
    return Task(clean=texts.clean, corrupted=texts.corrupted)


SHORT = Siege(3, 3.0, model_path(), lambda: [Task.ioi(num_prompts=100, seed=seed) for seed in range(2)], 1e-5)
LONG = Siege(30, 15.0, TINYTALK, lambda: [on_tinytalk(seed) for seed in range(5)], 0.01)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("siege", [SHORT, pytest.param(LONG, marks=pytest.mark.long)], ids=["3", "30"])
def test_anything_is_killed(siege: Siege, tmp_path: Path, figures: Figures) -> None:
    """Four users with jobs each, while workers, Ray's head and driver and the server die at random."""
    if not siege.model.is_dir():
        pytest.skip(f"there is no {siege.model}")
    users, draw = 4, random.Random(siege.kills)
    killer = Killer(tmp_path, siege.model, users, workers=2)
    with ServerProcess({"model": siege.model}, "--threads", "1") as server, Client(server.address) as client:
        solo = [job.result().canonical_bytes() for job in siege.submitted(client)]
    names: list[list[str]] = []
    kinds = draw.choices(list(VICTIMS), weights=list(VICTIMS.values()), k=siege.kills)
    if "server" not in kinds:
        kinds[-1] = "server"
    charged: list[float] = []
    killed, at_work = dict.fromkeys(VICTIMS, 0), 0
    started = time.monotonic()
    while kinds:
        with killer.serving() as (server, clients):
            names = names or [[job.name for job in siege.submitted(client)] for client in clients]
            while kinds:
                time.sleep(draw.uniform(0.5, 1.5) * siege.pause_s)
                charged = charged_so_far(clients) or charged
                infos = [job.latest for client in clients for job in client.jobs()]
                unfinished = any(not info.state.is_final for info in infos if info)
                kind = kinds[0]
                if kill(server, kind, draw):
                    kinds.pop(0)
                    killed[kind] += 1
                    at_work += unfinished
                    if kind == "server":
                        break
    with killer.serving() as (server, clients):
        found = [
            [client.job(name).result(timeout=PATIENCE_S).canonical_bytes() for name in own]
            for client, own in zip(clients, names, strict=True)
        ]
        kept = [{job.name for job in client.jobs()} for client in clients]
    assert kept == [set(own) for own in names]
    assert found == [solo] * users
    figures(
        **{f"killed_{kind}": count for kind, count in killed.items()},
        at_work=at_work,
        jobs=users * len(solo),
        seconds=round(time.monotonic() - started, 1),
        jain=round(jain(charged), 4) if charged else None,
    )
    assert at_work >= 0.8 * siege.kills, "the jobs ended too early to be disturbed"
    if siege is LONG:
        assert charged, "some user's jobs had ended before anything was measured"
        assert jain(charged) >= 0.95


def charged_so_far(clients: Sequence[Client]) -> list[float]:
    """What each user was charged, as long as all of them have unfinished jobs; else nothing."""
    infos = [[job.latest for job in client.jobs()] for client in clients]
    if any(all(info is None or info.state.is_final for info in own) for own in infos):
        return []
    return [sum(info.charged_s for info in own if info) for own in infos]


def test_a_server_without_workers_says_so_and_goes_on(tmp_path: Path) -> None:
    """All workers are killed at once: the job waits, health and information say why, and then it goes on."""
    options = ("--workers", "2", "--threads", "1")
    with ServerProcess(None, *options) as server, Client(server.address) as client:
        wait_for(lambda: ready(client) == 2, "workers")
        task, how = Task.ioi(num_prompts=16, seed=1), {"threshold": 0.001, "grouping": "none"}
        solo = client.submit("demo", task, **how).result().canonical_bytes()
        job = client.submit("demo", task, **how)
        said: list[str] = []
        watcher = threading.Thread(target=lambda: said.append(until_unavailable(client)))
        watcher.start()
        for process in victims(server, "worker"):
            process.kill()
        watcher.join()
        assert "no worker is ready" in said[0]
        assert job.result(timeout=PATIENCE_S).canonical_bytes() == solo
        assert client.server_info().unavailable == ""
        assert sum(worker.restarts for worker in client.server_info().workers) == 2


def until_unavailable(client: Client) -> str:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        said = client.server_info().unavailable
        if said:
            return said
        time.sleep(0.05)
    return ""
