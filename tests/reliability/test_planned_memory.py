"""What `pahq-server plan` promises is what a real server takes, whatever jobs it is given.

Compared is anonymous memory (RssAnon): what files are mapped to can be taken back at any time.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from e2e.process import ServerProcess

from pahq_client import Client, JobHandle, PahqWarning, Task

from .conftest import Figures

PATIENCE_S = 300.0
MEMORY = ("--memory", "64MiB")
AT_ONCE = 4
EVERY_S = 0.05


def anonymous_bytes(pid: int) -> int:
    """Of a process; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(found[0]) << 10 if found else 0


class Peak:
    """The most anonymous memory that a process is seen with while the context lasts."""

    def __init__(self, pid: int) -> None:
        self.bytes, self._pid, self._done = 0, pid, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            self.bytes = max(self.bytes, anonymous_bytes(self._pid))

    def __enter__(self) -> Peak:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()


def planned_bytes() -> int:
    command = [sys.executable, "-m", "pahq_server", "plan", *MEMORY, "--gflops", "1", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(run.stdout)["every_precision_bytes"])


def varied_job(client: Client, dice: random.Random, seed: int) -> JobHandle:
    task = Task.ioi(num_prompts=dice.choice([1, 2, 4, 8, 16, 32]), seed=seed)
    if seed % AT_ONCE == AT_ONCE - 1:
        method = dice.choice(["eap", "eap_ig", "clean_corrupted", "relp", "gim"])
        ablation = dice.choice(["resample", "mean"])
        return client.submit("demo", task, method=method, metric="logit_difference", ablation=ablation)
    return client.submit(
        "demo",
        task,
        dice.choice([0.05, 0.1, 0.2, 0.5]),
        metric=dice.choice(["kl_divergence", "l2", "logit_difference"]),
        ablation=dice.choice(["resample", "zero", "mean"]),
        grouping=dice.choice(["gates", "none", "bisect"]),
        precision=dice.choice(["fp32", "bf16", "pahq-int8", "pahq-fp8", "pahq-int8-weight"]),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of processes")
@pytest.mark.parametrize("count", [8, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_varied_jobs_stay_within_the_plan(count: int, figures: Figures) -> None:
    dice, planned = random.Random(0), planned_bytes()
    with (
        warnings.catch_warnings(),
        ServerProcess(None, *MEMORY, "--threads", "1") as server,
        Client(server.address) as client,
    ):
        warnings.simplefilter("ignore", PahqWarning)
        idle = anonymous_bytes(server.process.pid)
        with Peak(server.process.pid) as peak:
            for first in range(0, count, AT_ONCE):
                jobs = [varied_job(client, dice, first + number) for number in range(AT_ONCE)]
                client.check_task("demo", Task.ioi(num_prompts=32, seed=first))
                for job in jobs:
                    job.result(timeout=PATIENCE_S)
        end = anonymous_bytes(server.process.pid)
    figures(
        jobs=count,
        idle_mib=idle >> 20,
        peak_mib=peak.bytes >> 20,
        end_mib=end >> 20,
        planned_mib=planned >> 20,
    )
    assert 0 < idle < peak.bytes
    assert peak.bytes <= planned
