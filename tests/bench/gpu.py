"""Measures on a GPU what only one can show, and prints a table: wall seconds, since the host mostly waits.

``--small`` runs everything with tiny models, on any device, and stores nothing: to see that it works.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from helpers.synthetic import save_llama

from bench import measure, workloads
from bench.__main__ import RESULTS, Figures
from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.task import TokenTask
from pahq_server.engine import devices
from pahq_server.engine.backends import make_backend
from pahq_server.engine.cost import measured_gflops
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.models.building import ToDevice
from pahq_server.models.folding import FOLDING
from pahq_server.models.streaming import ResidentModel, head_store, load_rounded, streamed
from pahq_server.precision.head_store import HeadStore
from pahq_server.precision.policy import POLICIES

PAGE_BYTES = 256 << 10


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        layers: of the GPT-2 shape.
        prompts, tokens: of its job.
        steps: batches of its search at most; None for all.
        llama: arguments of `save_llama`.
        rows: that are scored on the Llama.
        memory: bytes for jobs.
    """

    layers: int
    prompts: int
    tokens: int
    steps: int | None
    llama: dict[str, int]
    rows: int
    memory: int


LLAMA_8B = {"layers": 32, "d_model": 4096, "d_mlp": 14336, "vocabulary": 128256, "d_head": 128, "group": 4}
TINY = {"layers": 2, "d_model": 128, "d_mlp": 256, "vocabulary": 500, "d_head": 64, "group": 2}
FULL = Size(12, 100, 15, None, LLAMA_8B, 256, 16 << 30)
SMALL = Size(2, 3, 6, 3, TINY, 8, 1 << 28)


def gpt2(device: torch.device, size: Size, precision: str) -> Figures:
    """ACDC over all edges of a GPT-2 small shape, prompts as in the IOI task."""
    workload = workloads.gpt2_shape(size.layers, size.tokens, (1, 3, 5), prompts=size.prompts)
    model = workload.make_model(ToDevice(FOLDING, device))
    memory = DeviceMemory(size.memory, PAGE_BYTES, device)
    backend = SparseBackend(model, memory, b"bench", QuantizedModel.of(model, POLICIES[precision]))
    start, steps = time.perf_counter(), 0
    with measure.Counter() as counter:
        job = measure.Job(backend, model.architecture.graph("group"), workload)
        while job.rows and (size.steps is None or steps < size.steps):
            measure.step(backend, [job])
            steps += 1
    seconds, count = time.perf_counter() - start, len(job.search.verdicts)
    rate, pages = measured_gflops(device=device) * 1e9, memory.pool.statistics()
    return {
        "evaluations": count,
        "kept": sum(verdict.kept for verdict in job.search.verdicts),
        "batches": steps,
        "seconds": seconds,
        "seconds_per_evaluation": seconds / count,
        "rows_per_second": job.search.counts["passes"] / seconds,
        "times_needed_at_fp32_rate": seconds / (counter.operations / rate),
        "peak_pages_mib": pages.peak_used * pages.page_bytes / 2**20,
        "peak_device_mib_beside_pages": beside_pages_mib(device, memory),
    }


def llama(device: torch.device, size: Size, source: str, precision: str) -> Figures:
    """Passes into the heads halfway up a large model of which only rounded weights are on the device."""
    start = time.perf_counter()
    loaded = load_rounded(source, POLICIES[precision], device)
    seconds = time.perf_counter() - start
    parameters, kept = loaded.model.parameters, loaded.resident.nbytes.total + loaded.store.capacity
    figures: Figures = {
        "parameters": parameters,
        "loading_seconds": seconds,
        "resident_mib": kept / 2**20,
        "resident_of_fp32": kept / (4 * parameters),
    }
    _scoring(loaded, precision, device, size)  # fills the page cache, and compiles what is compiled
    with mock.patch.object(HeadStore, "prefetch", return_value=None):
        without = _scoring(loaded, precision, device, size)
    figures |= _scoring(loaded, precision, device, size)
    figures["seconds_per_evaluation_without_reading_ahead"] = without["seconds_per_evaluation"]
    return figures


def _scoring(loaded: ResidentModel, precision: str, device: torch.device, size: Size) -> Figures:
    """Passes of every head of a layer, one head after the other, from an empty head store."""
    store = head_store(loaded.resident)
    loaded = replace(loaded, model=streamed(loaded.resident, store), store=store)
    arch = loaded.model.architecture
    graph = arch.graph("group")
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(0, arch.vocabulary, (4, 16), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 6] = (clean[:, 6] + 1) % arch.vocabulary
    task = TokenTask(workloads.ids(clean), workloads.ids(corrupted))
    memory = DeviceMemory(size.memory, PAGE_BYTES, device)
    backend = make_backend(loaded, "sparse", precision, memory, b"bench")
    job = backend.open(graph, task, "kl_divergence", "resample")
    layer = graph.layers // 2
    kept = np.random.default_rng(0).random(graph.num_edges) < 0.02
    kept[: int(graph.offsets[graph.receiver_of("q", layer + 1)])] = True
    base_circuit, batches = BaseCircuit(Circuit(graph, kept)), []
    per_head = max(1, size.rows // graph.heads)
    for head in reversed(range(graph.heads)):
        last = int(graph.offsets[graph.receiver_of("q", layer, head) + 1])
        batches.append(
            [PatchedPass(base_circuit, tuple(range(last - 1, last - 2 - i, -1))) for i in range(per_head)]
        )
    job.score(batches[0])
    start = time.perf_counter()
    with measure.Counter() as counter:
        for rows in batches:
            job.score(rows)
    seconds, count = time.perf_counter() - start, sum(map(len, batches))
    job.release()
    rate = measured_gflops(device=device) * 1e9
    return {
        "rows_per_second": count / seconds,
        "seconds_per_evaluation": seconds / count,
        "times_needed_at_fp32_rate": seconds / (counter.operations / rate),
    }


def beside_pages_mib(device: torch.device, memory: DeviceMemory) -> float:
    """Most memory of the device that weights and temporary tensors took; 0 where that is not counted."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) - memory.pool.storage.nbytes
    torch.cuda.reset_peak_memory_stats(device)
    return peak / 2**20


@contextmanager
def checkpoint(size: Size) -> Iterator[str]:
    """A Llama of random bf16 weights on disk."""
    with tempfile.TemporaryDirectory() as directory:
        save_llama(Path(directory), **size.llama, dtype=torch.bfloat16, tied=False)
        yield directory


def run(device: torch.device, size: Size) -> dict[str, Figures]:
    """All figures by what was measured."""
    results = {}
    for precision in ("fp32", "bf16", "pahq-int8", "pahq-fp8"):
        results[f"GPT-2 small shape, {precision}"] = gpt2(device, size, precision)
    with checkpoint(size) as source:
        for precision in ("pahq-int8", "pahq-fp8"):
            results[f"Llama 8B shape, {precision}"] = llama(device, size, source, precision)
    return results


def markdown(results: dict[str, Figures], device: str) -> str:
    lines = ["| what | figure | value |", "|---|---|---|"]
    for name, figures in results.items():
        lines += [f"| {name} | {key.replace('_', ' ')} | {value:.4g} |" for key, value in figures.items()]
    return "\n".join([*lines, "", f"Measured on: {device}, torch {torch.__version__}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models; nothing is stored")
    options = parser.parse_args()
    device = devices.find(options.device)
    results = run(device, SMALL if options.small else FULL)
    table = markdown(results, devices.title(device))
    if not options.small:
        (RESULTS / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (RESULTS / "gpu.md").write_text(table, "utf-8")
    print(table)


if __name__ == "__main__":
    main()
