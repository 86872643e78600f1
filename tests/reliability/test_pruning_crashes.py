"""``kill -9`` of a server that prunes nodes: what was trained is kept, and the masks are those of no kill."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pahq_client import Client, JobHandle, NodeCircuit, Task

from .conftest import Figures
from .crashing import CrashingServer, wait_for

TASK = Task.ioi(num_prompts=4)


def submitted(client: Client, steps: int) -> JobHandle:
    return client.submit("demo", TASK, method="node_pruning", max_kl=0.1, steps=steps, seed=3)


def result(job: JobHandle) -> NodeCircuit:
    found = job.result()
    assert isinstance(found, NodeCircuit)
    return found


def masks(masks: Mapping[str, NDArray[np.bool_]]) -> dict[str, bytes]:
    return {kind: mask.tobytes() for kind, mask in masks.items()}


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
    assert masks(disturbed.kept) == masks(undisturbed.kept)
    assert masks(disturbed.trained) == masks(undisturbed.trained)
    assert disturbed.log_alpha.tobytes() == undisturbed.log_alpha.tobytes()
    assert disturbed.figures == undisturbed.figures
    assert disturbed.stochastic_kl == undisturbed.stochastic_kl, "the last steps of training were the same"
    kept = sum(int(mask.sum()) for mask in disturbed.kept.values())
    assert 0 < kept < disturbed.layout.size
    figures(kills=kills, seconds_undisturbed=round(seconds, 1), kept=kept)


def test_masks_outlive_the_server(tmp_path: Path, figures: Figures) -> None:
    kill_at_random(tmp_path, 2, 50, figures)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_masks_outlive_ten_kills(tmp_path: Path, figures: Figures) -> None:
    kill_at_random(tmp_path, 10, 1000, figures)
