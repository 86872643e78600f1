"""``kill -9`` of a server that locates neurons: what was summed is kept, and the set is that of no kill."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from pahq_client import Client, JobHandle, NeuronSet, Task

from .conftest import Figures
from .crashing import CrashingServer, wait_for

VOCABULARY, LONGEST = 400, 60


def task(texts: int) -> Task:
    """Texts of random tokens, of which positive ones have other tokens than negative ones."""
    draw = random.Random(3)
    halves = range(3, VOCABULARY // 2), range(VOCABULARY // 2, VOCABULARY)
    return Task(
        clean=[
            [draw.choice(half) for _ in range(draw.randint(2, LONGEST))]
            for half in halves
            for _ in range(texts)
        ]
    )


def submitted(client: Client, texts: int) -> JobHandle:
    return client.submit("demo", task(texts), method="neurons", positive=texts, top_k=50)


def result(job: JobHandle) -> NeuronSet:
    found = job.result()
    assert isinstance(found, NeuronSet)
    return found


def kill_at_random(folder: Path, kills: int, texts: int, figures: Figures) -> None:
    """Kills a server again and again while texts run, and compares with an undisturbed job."""
    draw, name = random.Random(7), ""
    with CrashingServer(folder / "undisturbed") as server, Client(server.address) as client:
        begun = time.monotonic()
        undisturbed = result(submitted(client, texts))
        seconds = time.monotonic() - begun
    for _ in range(kills):
        with CrashingServer(folder / "data") as server, Client(server.address) as client:
            job = client.job(name) if name else submitted(client, texts)
            name = job.name
            wait_for(lambda: job.state.name != "QUEUED", "the start of the job")  # noqa: B023
            time.sleep(draw.uniform(0, seconds / 2))
            server.kill()
    with CrashingServer(folder / "data") as server, Client(server.address) as client:
        disturbed = result(client.job(name))
    assert disturbed == undisturbed
    assert len(disturbed) > 0
    figures(kills=kills, seconds_undisturbed=round(seconds, 1), neurons=len(disturbed))


@pytest.mark.filterwarnings("ignore::pahq_client.PahqWarning")
def test_neurons_outlive_the_server(tmp_path: Path, figures: Figures) -> None:
    kill_at_random(tmp_path, 2, 300, figures)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::pahq_client.PahqWarning")
def test_neurons_outlive_ten_kills(tmp_path: Path, figures: Figures) -> None:
    kill_at_random(tmp_path, 10, 3000, figures)
