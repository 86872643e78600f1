"""Runs the benchmarks one by one, each in a process of its own, and prints one table."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from bench import measure, workloads
from bench.workloads import Workload
from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Anchor, Row
from pahq_server.engine.allocation import keep_freed_memory
from pahq_server.engine.sparse.executor import SparseExecutor
from pahq_server.models.folding import fold
from pahq_server.search.acdc_search import AcdcSearch

RESULTS = Path(__file__).parent / "results"
WINDOW = 32
Figures = dict[str, float]


def acdc(make: Callable[[], Workload], samples: int) -> Figures:
    """A search to its end, against the floor, the needed operations and the literal twin."""
    # The search folds its own copy of the model; peak memory is that of one model.
    figures = measure.search(make, WINDOW)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    workload = make()
    rate, floor = measure.gemm_rate(), measure.floor_seconds(workload)
    literal = measure.literal_seconds(workload, samples)
    per, needed = figures["seconds_per_evaluation"], figures["needed_operations_per_evaluation"]
    return figures | {
        "floor_seconds": floor,
        "times_floor": per / floor,
        "gemm_operations_per_second": rate,
        "times_needed": per / (needed / rate),
        "share_of_gemm_rate": needed / rate / per,
        "literal_seconds_per_evaluation": literal,
        "times_faster_than_literal": literal / per,
        "peak_resident_gib": peak,
    }


def single_edge() -> Figures:
    """Rows of the single-edge sweep, spread evenly over the 32,491 edges."""
    workload = workloads.gpt2_shape()
    graph, full = workload.graph, Anchor(Circuit.full(workload.graph))
    executor = SparseExecutor(fold(workload.model), graph, workload.task, "kl_divergence", "resample")
    rows = [Row(full, (edge,)) for edge in range(7, graph.num_edges, 331)]
    executor.score(rows[:1])
    seconds = measure.cpu_seconds(lambda: [executor.score(rows[i : i + 8]) for i in range(0, len(rows), 8)])
    return {"rows": len(rows), "seconds_per_evaluation": seconds / len(rows)}


def growth() -> Figures:
    """The same number of candidates whose live nodes lie in the top four layers, in deeper models."""
    figures = {}
    for layers in (4, 8, 16, 24):
        workload = workloads.gpt2_shape(layers)
        rows = workloads.top_candidates(workload.graph, 4, 64)
        executor = SparseExecutor(
            fold(workload.model), workload.graph, workload.task, "kl_divergence", "resample"
        )
        executor.score(rows[:2])
        figures[f"seconds_per_evaluation_{layers}_layers"] = measure.cpu_seconds(
            lambda e=executor, r=rows: e.score(r), 5
        ) / len(rows)
    values = list(figures.values())
    return figures | {"deepest_to_shallowest": values[-1] / values[0]}


def prefix() -> Figures:
    """Candidates at context 512 with a shared 256-token prefix, against the second half alone."""
    figures = {}
    for name, changed, tokens in (("shared_prefix", (300,), 512), ("none", (44,), 256)):
        workload = workloads.gpt2_shape(4, tokens, changed)
        rows = workloads.top_candidates(workload.graph, 2, 16)
        executor = SparseExecutor(
            fold(workload.model), workload.graph, workload.task, "kl_divergence", "resample"
        )
        executor.score(rows[:2])
        figures[name] = measure.cpu_seconds(lambda e=executor, r=rows: e.score(r), 3) / len(rows)
    return figures | {"shared_to_none": figures["shared_prefix"] / figures["none"]}


def breakdown(workload: Workload, steps: int) -> Figures:
    """Where the time of the first steps of a search goes."""
    executor = SparseExecutor(
        fold(workload.model), workload.graph, workload.task, "kl_divergence", "resample"
    )
    search = AcdcSearch(workload.graph, workload.threshold, gates=False, window=WINDOW).run()

    def run() -> None:
        rows = next(search)
        for _ in range(steps):
            rows = search.send(executor.score(rows))

    return measure.profile(run)


BENCHMARKS: dict[str, Callable[[], Figures]] = {
    "tinytalk": lambda: acdc(workloads.tinytalk, 50),
    "tinytalk-profile": lambda: breakdown(workloads.tinytalk(), 60),
    "gpt2": lambda: acdc(workloads.gpt2_shape, 50),
    "gpt2-profile": lambda: breakdown(workloads.gpt2_shape(), 60),
    "growth": growth,
    "prefix": prefix,
    "single-edge": single_edge,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(BENCHMARKS), help="which ones; default: all")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        keep_freed_memory()
        print(json.dumps(BENCHMARKS[options.one]()))
        return
    stored = RESULTS / "bench.json"
    results = json.loads(stored.read_text("utf-8")) if stored.exists() else {}
    results["machine"] = machine()
    for name in options.names:
        command = [sys.executable, "-m", "bench", "--one", name]
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    RESULTS.mkdir(exist_ok=True)
    stored.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    table = markdown(results)
    (RESULTS / "bench.md").write_text(table, "utf-8")
    print(table)


def machine() -> dict[str, str]:
    model = [line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if "model name" in line]
    return {
        "cpu": model[0].partition(":")[2].strip() if model else platform.machine(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def markdown(results: dict[str, dict[str, float | str]]) -> str:
    lines = ["| benchmark | figure | value |", "|---|---|---|"]
    for name, figures in results.items():
        for key, value in figures.items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append(f"| {name} | {key.replace('_', ' ')} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
