"""Runs the benchmarks one by one, each in a process of its own, and prints one table."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bench import attribution, bisect, measure, workloads
from bench.measure import MEMORY_BYTES, Job, SweepJob
from bench.pages import write_table
from bench.tables import markdown, targets
from bench.workloads import Workload
from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.executor import SparseExecutor
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.memory.heap import keep_freed_memory

# How long one of several things that are compared goes on before it is the next one's turn.
TURN_S = 0.4
RESULTS = Path(__file__).parent / "results"
Figures = dict[str, float]


def acdc(workload: Workload, samples: int) -> Figures:
    """A search to its end, against the floor, the needed operations and the literal twin."""
    figures = measure.search(workload)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rate = measure.gemm_rate()
    floor = measure.floor_seconds(workload.folded(), len(workload.task.metric_positions()))
    literal = measure.literal_seconds(workload, samples)
    per, needed = figures["seconds_per_evaluation"], figures["needed_operations_per_evaluation"]
    return figures | {
        "floor_seconds": floor,
        "times_floor": per / floor,
        "gemm_operations_per_second": rate,
        "needed_seconds": needed / rate,
        "times_needed": per / (needed / rate),
        "share_of_gemm_rate": needed / rate / per,
        "literal_seconds_per_evaluation": literal,
        "times_faster_than_literal": literal / per,
        "peak_resident_gib": peak,
    }


def executor(workload: Workload) -> SparseExecutor:
    model = workload.folded()
    backend = SparseBackend(model, DeviceMemory(2 << 30), b"bench")
    return backend.open(model.architecture.graph("group"), workload.task, "kl_divergence", "resample")


def single_edge() -> Figures:
    """Passes of the single-edge sweep, spread evenly over the 32,491 edges, and the literal twin."""
    workload = workloads.gpt2_shape()
    job = executor(workload)
    full = BaseCircuit(Circuit.full(job.graph))
    rows = [PatchedPass(full, (edge,)) for edge in range(7, job.graph.num_edges, 331)]
    job.score(rows[:1])
    with measure.Counter() as counter:
        work = [rows[i : i + 8] for i in range(0, len(rows), 8)]
        seconds = measure.cpu_seconds(lambda: [job.score(some) for some in work]) / len(rows)
    needed = counter.operations / len(rows)
    literal = measure.literal_seconds(workload, 50)
    return {
        "rows": len(rows),
        "seconds_per_evaluation": seconds,
        "needed_operations_per_evaluation": needed,
        "share_of_gemm_rate": needed / measure.gemm_rate() / seconds,
        "literal_seconds_per_evaluation": literal,
        "times_faster_than_literal": literal / seconds,
    }


def growth() -> Figures:
    """The same number of candidates whose live nodes lie in the top four layers, in deeper models."""
    figures: Figures = {}
    for layers in (4, 8, 16, 24):
        start = time.process_time()
        job = executor(workloads.gpt2_shape(layers))
        figures[f"base_seconds_{layers}_layers"] = time.process_time() - start
        rows = workloads.top_candidates(job.graph, 4, 64)
        job.score(rows[:2])
        seconds = measure.cpu_seconds(lambda j=job, r=rows: j.score(r), 5)
        figures[f"seconds_per_evaluation_{layers}_layers"] = seconds / len(rows)
    ratio = figures["seconds_per_evaluation_24_layers"] / figures["seconds_per_evaluation_4_layers"]
    return figures | {"deepest_to_shallowest": ratio}


def prefix() -> Figures:
    """Candidates at context 512 after a prefix of 256 tokens, against the second half alone.

    Passes share each prompt's prefix; where the prompts begin alike, they share one.
    """
    figures: Figures = {}
    kinds = {"own_prefix": ((300,), 512, 0), "common_prefix": ((300,), 512, 256), "none": ((44,), 256, 0)}
    jobs = {}
    for name, (changed, tokens, common) in kinds.items():
        start = time.process_time()
        job = executor(workloads.gpt2_shape(4, tokens, changed, common))
        figures[f"base_seconds_{name}"] = time.process_time() - start
        jobs[name] = job, workloads.top_candidates(job.graph, 2, 16)
        job.score(jobs[name][1][:2])
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(9):
        for name, (job, rows) in jobs.items():
            seconds[name].append(measure.cpu_seconds(lambda j=job, r=rows: j.score(r)) / len(rows))
    figures |= {name: statistics.median(times) for name, times in seconds.items()}
    none = figures["none"]
    return figures | {
        "own_to_none": figures["own_prefix"] / none,
        "shared_to_none": figures["common_prefix"] / none,
    }


def together(make: Callable[[int], Workload], count: int, kind: type[Job] | type[SweepJob] = Job) -> Figures:
    """Several jobs at once against one after another: CPU and wall seconds, base passes included.

    Both go on in turns, a moment each: the speed of the machine changes while they run.
    """
    jobs = [make(number) for number in range(count)]
    model = jobs[0].folded()
    graph = model.architecture.graph("group")

    def run(groups: Sequence[Sequence[Workload]]) -> Iterator[None]:
        backend = SparseBackend(model, DeviceMemory(1 << 30), b"bench")
        for group in groups:
            running = [kind(backend, graph, workload) for workload in group]
            while any(job.rows for job in running):
                measure.step(backend, running)
                yield
            for job in running:
                job.executor.release()

    for _ in run([jobs[:1]]):
        pass  # what happens only once, happens here
    runs = {"one_after_another": run([[job] for job in jobs]), "at_once": run([jobs])}
    cpu, wall = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0.0)
    needed = 0.0
    while runs:
        for name in list(runs):
            cpu[name] -= time.process_time()
            wall[name] -= time.perf_counter()
            with measure.Counter() as counter:
                ended = _goes_on(runs[name])
            cpu[name] += time.process_time()
            wall[name] += time.perf_counter()
            needed += counter.operations if name == "one_after_another" else 0.0
            if ended:
                del runs[name]
    figures: Figures = {"jobs": count}
    figures |= {f"cpu_seconds_{name}": seconds for name, seconds in cpu.items()}
    figures |= {f"wall_seconds_{name}": seconds for name, seconds in wall.items()}
    return figures | {
        "solo_share": needed / measure.gemm_rate() / figures["cpu_seconds_one_after_another"],
        "throughput_cpu": figures["cpu_seconds_one_after_another"] / figures["cpu_seconds_at_once"],
        "throughput_wall": figures["wall_seconds_one_after_another"] / figures["wall_seconds_at_once"],
    }


def _goes_on(run: Iterator[None]) -> bool:
    """Goes on for a moment; returns whether the end was reached."""
    started = time.perf_counter()
    while time.perf_counter() - started < TURN_S:
        try:
            next(run)
        except StopIteration:
            return True
    return False


def breakdown(workload: Workload, skip: int, steps: int) -> Figures:
    """Where the time of some steps of a search goes, after the first ones."""
    model = workload.folded()
    backend = SparseBackend(model, DeviceMemory(MEMORY_BYTES), b"bench")
    job = Job(backend, model.architecture.graph("group"), workload)
    for _ in range(skip):
        measure.step(backend, [job])
    return measure.profile(lambda: [measure.step(backend, [job]) for _ in range(steps)])


BENCHMARKS: dict[str, Callable[[], Figures]] = {
    "tinytalk": lambda: acdc(workloads.tinytalk(), 50),
    "tinytalk-profile": lambda: breakdown(workloads.tinytalk(), 100, 50),
    "gpt2": lambda: acdc(workloads.gpt2_shape(), 50),
    "gpt2-profile": lambda: breakdown(workloads.gpt2_shape(), 1700, 20),
    "bisect": lambda: bisect.against_singles(workloads.gpt2_shape()),
    "bisect-tinytalk": lambda: bisect.against_singles(workloads.tinytalk()),
    "bisect-within": bisect.within_scores,
    "growth": growth,
    "prefix": prefix,
    "ten-demo": lambda: together(lambda number: workloads.demo(4, number), 10),
    "ten-tinytalk": lambda: together(lambda number: workloads.tinytalk(2, number), 10),
    "ten-demo-sweeps": lambda: together(lambda number: workloads.demo(4, number), 10, SweepJob),
    "ten-tinytalk-sweeps": lambda: together(lambda number: workloads.tinytalk(2, number), 10, SweepJob),
    "three-large": lambda: together(lambda number: workloads.tinytalk(16, number), 3),
    "single-edge": single_edge,
    "attribution": attribution.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(BENCHMARKS), help="which ones; default: all")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # CPU seconds are measured: with several threads, small products would count their waiting for each other.
    torch.set_num_threads(1)
    if options.one:
        keep_freed_memory()
        print(json.dumps(BENCHMARKS[options.one]()))
        return
    RESULTS.mkdir(exist_ok=True)
    stored = RESULTS / "bench.json"
    results = json.loads(stored.read_text("utf-8")) if stored.exists() else {}
    for name in options.names:
        command = [sys.executable, "-m", "bench", "--one", name]
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        results[name] = figures | {"measured_on": machine()}
        stored.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    table = markdown(results)
    (RESULTS / "bench.md").write_text(table, "utf-8")
    write_table("speed", targets(results))
    write_table("attribution", attribution.table(results.get("attribution")))
    print(table)


def machine() -> str:
    model = [line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if "model name" in line]
    cpu = model[0].partition(":")[2].strip() if model else platform.machine()
    python = platform.python_version()
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {python}"


if __name__ == "__main__":
    main()
