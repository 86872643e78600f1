"""The cost of attribution methods as jobs of the engine: ``python -m bench.attribution NAME`` measures one.

Each method runs in a fresh process, so that its peak memory is its own. A job counts from its opening, with
the clean and the ablated run, to its artifact.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench import measure, workloads
from pahq_server.core.engine import Objective
from pahq_server.core.task import PromptTask
from pahq_server.engine.engine import ModelEngine
from pahq_server.memory.heap import hand_back_freed_memory, keep_freed_memory
from pahq_server.models.loading import LoadedModel

VOCABULARY, REPEAT, ROUNDS = 50257, 3, 2
# Methods, each with its floor in `bench.floor`.
FLOORS = {
    "eap": "one_gradient",
    "relp": "one_gradient",
    "gim": "one_gradient",
    "eap_ig": "mean_of_five",
    "clean_corrupted": "one_gradient",
}


def run() -> dict[str, float]:
    """Measures all methods and their floors, in turns because the speed of the machine changes."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in ("floor", *FLOORS)}
    for _ in range(ROUNDS):
        measured["floor"].append(_process("bench.floor"))
        for name in FLOORS:
            measured[name].append(_process("bench.attribution", name))
    floors = {kind: _median(measured["floor"], kind) for kind in set(FLOORS.values())}
    figures = {f"floor_seconds_{kind}": seconds for kind, seconds in floors.items()}
    for name, floor in FLOORS.items():
        seconds = _median(measured[name], "seconds")
        figures[f"seconds_{name}"] = seconds
        figures[f"times_floor_{name}"] = seconds / floors[floor]
        figures[f"peak_gib_{name}"] = _median(measured[name], "peak_gib")
    return figures


def table(figures: dict[str, Any] | None) -> list[str]:
    """The table of all methods, line by line; with "-" for what has not been measured."""
    lines = [
        "| method | CPU s | CPU s of the floor | times floor | must | aim | peak GiB | must | aim | holds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, floor in FLOORS.items():
        must, aim = (2.0, 1.3) if floor == "mean_of_five" else (2.5, 1.5)
        if figures is None:
            lines.append(f"| `{name}` | - | - | - | {must} | {aim} | - | 0.6 | 0.3 | - |")
            continue
        times, peak = figures[f"times_floor_{name}"], figures[f"peak_gib_{name}"]
        lines.append(
            f"| `{name}` | {figures[f'seconds_{name}']:.2f} | {figures[f'floor_seconds_{floor}']:.2f} | "
            f"{times:.2f} | ≤ {must} | ≤ {aim} | {peak:.2f} | ≤ 0.6 | ≤ 0.3 | "
            f"{'yes' if times <= must and peak <= 0.6 else 'no'} |"
        )
    return lines


def measured_job(name: str) -> dict[str, float]:
    """Runs jobs of one method: median CPU seconds, and the peak of resident memory above the model."""
    hand_back_freed_memory()  # as a server does while it loads models
    workload = workloads.gpt2_shape(vocabulary=VOCABULARY)
    task, count = workload.task, len(workload.task.clean)
    engine = ModelEngine({"gpt2": LoadedModel(workload.folded(), None, "bench")})
    answers, wrong = (tuple((token,) for token in range(first, first + count)) for first in (0, count))
    prompts = PromptTask(task.clean, task.corrupted or (), answers, wrong)
    objective = Objective("gpt2", prompts, "logit_difference", "resample", "group", "fp32")
    keep_freed_memory()
    before = reset_peak()

    def job() -> None:
        measure.run_method(engine, engine.resolve(objective), name)

    seconds = [measure.cpu_seconds(job) for _ in range(REPEAT + 1)]
    return {"seconds": statistics.median(seconds[1:]), "peak_gib": (peak() - before) / 2**30}


def _process(*command: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.PIPE)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _median(figures: list[dict[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in figures)


def reset_peak() -> int:
    """Forgets the peak of resident memory until now; returns what is resident, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", "utf-8")
    return peak()


def peak() -> int:
    """The peak of resident memory, in bytes."""
    (line,) = (x for x in Path("/proc/self/status").read_text("utf-8").splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured_job(sys.argv[1])))
