"""``kill -9`` of a real server: nothing that was acknowledged is lost, and results are the same to the byte.

This tests crashes of the process. A power failure, which also takes what the system had not written to the
disk, is not tested here: what is promised for it rests on SQLite.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pahq_client import Client, Task, Unavailable
from pahq_server.store.database import FAILPOINTS

from .conftest import Figures
from .crashing import PATIENCE_S, CrashingServer, num_batches, repeated, wait_for

# What to find: task, and how.
Spec = tuple[Task, dict[str, Any]]

SMALL: list[Spec] = [
    (Task.ioi(num_prompts=2, seed=2), {"threshold": 0.02, "grouping": "none"}),
    (Task.ioi(num_prompts=4, seed=3), {"threshold": 0.05, "grouping": "none"}),
]
# These may ask for the same pass twice even undisturbed: they speculate on verdicts either way, and a gate
# of one edge is the same pass as that edge.
BRANCHING: list[Spec] = [
    (Task.ioi(num_prompts=2, seed=4), {"threshold": 0.02, "grouping": "bisect"}),
    (Task.ioi(num_prompts=1, seed=5), {"edges": 20, "grouping": "bisect"}),
    (Task.ioi(num_prompts=1, seed=6), {"faithfulness": 0.8, "grouping": "gates"}),
    (Task.ioi(num_prompts=2, seed=7), {"threshold": 0.05, "grouping": "gates"}),
]
# Enough for many interruptions.
MANY: list[Spec] = [
    (Task.ioi(num_prompts=2, seed=seed), {"threshold": 0.02, "grouping": "none"}) for seed in range(24)
]


def submit(client: Client, spec: Spec) -> str:
    """Name of a new job."""
    task, options = spec
    return client.submit("demo", task, **options).name


def results(client: Client, names: Sequence[str]) -> list[bytes]:
    return [client.job(name).result().canonical_bytes() for name in names]


def ended(client: Client, names: Sequence[str]) -> bool:
    return all(client.job(name).state.is_final for name in names)


def work_a_little(client: Client, names: Sequence[str], passes: Path, batches: int) -> bool:
    """Waits for so many batches; returns whether the jobs have ended instead."""
    target = num_batches(passes) + batches
    wait_for(lambda: num_batches(passes) >= target or ended(client, names), "batches")
    return ended(client, names)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kills", "specs", "most"), [(3, SMALL, 40), pytest.param(50, MANY, 16, marks=pytest.mark.long)]
)
def test_killed_at_random(kills: int, specs: list[Spec], most: int, tmp_path: Path, figures: Figures) -> None:
    """Each server is killed after up to ``most`` batches."""
    passes, draw, idle = tmp_path / "passes", random.Random(kills), 0
    names: list[str] = []
    for kill in range(kills):
        with CrashingServer(tmp_path / "data", passes) as server, Client(server.address) as client:
            names = names or [submit(client, spec) for spec in specs]
            idle += work_a_little(client, names[: len(specs)], passes, draw.randrange(most))
            # Of few evaluations, and acknowledged at the last moment.
            names.append(submit(client, (Task.ioi(num_prompts=1, seed=kill), {"threshold": 100.0})))
            server.kill()
    with CrashingServer(tmp_path / "data", passes) as server, Client(server.address) as client:
        disturbed = results(client, names)
        assert {job.name for job in client.jobs()} == set(names)
        found = repeated(passes)
        undisturbed = results(client, [submit(client, spec) for spec in specs])
    assert disturbed[: len(specs)] == undisturbed
    assert len(set(undisturbed)) == len(specs)
    assert max(found.batches) <= 1
    assert idle < kills
    figures(
        kills=kills,
        while_idle=idle,
        jobs=len(names),
        passes=found.passes,
        evaluations_repeated=found.evaluations,
        most_batches_repeated_by_one_crash=max(found.batches),
        base_circuits_measured_again=found.base_circuits,
    )


@pytest.mark.timeout(3600)
def test_searches_that_branch_are_killed_at_random(tmp_path: Path) -> None:
    passes, draw = tmp_path / "passes", random.Random(1)
    names: list[str] = []
    for _ in range(4):
        with CrashingServer(tmp_path / "data", passes) as server, Client(server.address) as client:
            names = names or [submit(client, spec) for spec in BRANCHING]
            work_a_little(client, names, passes, draw.randrange(20))
            server.kill()
    with CrashingServer(tmp_path / "data", passes) as server, Client(server.address) as client:
        replayed = [client.job(name).result().provenance["run"]["counts"]["replayed"] for name in names]
        disturbed = results(client, names)
        undisturbed = results(client, [submit(client, spec) for spec in BRANCHING])
    assert sum(replayed) > 0
    assert disturbed == undisturbed
    assert len(set(undisturbed)) == len(BRANCHING)


# The places that a job passes, and how often one is passed before the server dies there.
PLACES = [f"{name}:{times}" for name, times in zip(FAILPOINTS, [2] * 3 + [7] * 3 + [1] * 3, strict=False)]


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
def test_killed_at_a_step(place: str, tmp_path: Path, figures: Figures) -> None:
    """`test_failpoints` has all of them, with a made-up engine."""
    data, passes, acknowledged = tmp_path / "data", tmp_path / "passes", list[str]()
    with CrashingServer(data, passes, place) as server, Client(server.address, timeout=3) as client:
        with suppress(Unavailable):
            for spec in SMALL:
                acknowledged.append(submit(client, spec))
        assert server.process.wait(PATIENCE_S) == -signal.SIGKILL
    with CrashingServer(data, passes) as server, Client(server.address) as client:
        kept = [job.name for job in client.jobs()]
        disturbed = dict(zip(kept, results(client, kept), strict=True))
        found = repeated(passes)
        undisturbed = results(client, [submit(client, spec) for spec in SMALL])
    assert [disturbed[name] for name in acknowledged] == undisturbed[: len(acknowledged)]
    assert set(disturbed.values()) <= set(undisturbed)
    assert max(found.batches, default=0) <= 1
    figures(acknowledged=len(acknowledged), kept=len(kept), evaluations_repeated=found.evaluations)
