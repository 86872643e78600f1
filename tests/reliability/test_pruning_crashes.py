"""``kill -9`` of a server that prunes nodes: what was trained is kept, and the masks are those of no kill."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.pruning import Pruned, read_pruned

from pahq_client import Client, JobHandle, Task

from .conftest import Figures
from .crashing import CrashingServer, wait_for

TASK = Task.ioi(num_prompts=8)


def submitted(client: Client, steps: int) -> JobHandle:
    parameters: dict[str, Any] = {"max_kl": 0.1, "steps": steps, "seed": 3}
    return client.submit("demo", TASK, method="node_pruning", parameters=parameters)


def result(job: JobHandle) -> Pruned:
    wait_for(lambda: job.state.is_final, "the end of the job")
    return read_pruned(job.artifact().data)


def kill_at_random(folder: Path, kills: int, steps: int, figures: Figures) -> None:
    """Kills a server again and again while it trains or polishes, and compares with an undisturbed job."""
    draw, name = random.Random(7), ""
    with CrashingServer(folder / "undisturbed") as server, Client(server.address) as client:
        begun = time.monotonic()
        undisturbed = result(submitted(client, steps))
        seconds = time.monotonic() - begun
    for _ in range(kills):
        with CrashingServer(folder / "data") as server, Client(server.address) as client:
            job = client.job(name) if name else submitted(client, steps)
            name = job.name
            wait_for(lambda: job.state.name != "QUEUED", "the start of the job")  # noqa: B023
            time.sleep(draw.uniform(0, seconds / 2))
            server.kill()
    with CrashingServer(folder / "data") as server, Client(server.address) as client:
        disturbed = result(client.job(name))
    assert (disturbed.kept == undisturbed.kept).all()
    assert (disturbed.trained == undisturbed.trained).all()
    assert disturbed.log_alpha.tobytes() == undisturbed.log_alpha.tobytes()
    assert disturbed.header == undisturbed.header
    assert 0 < disturbed.kept.sum() < disturbed.kept.size
    figures(kills=kills, seconds_undisturbed=round(seconds, 1), kept=int(disturbed.kept.sum()))


def test_masks_outlive_the_server(tmp_path: Path, figures: Figures) -> None:
    kill_at_random(tmp_path, 2, 100, figures)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_masks_outlive_ten_kills(tmp_path: Path, figures: Figures) -> None:
    kill_at_random(tmp_path, 10, 1000, figures)
