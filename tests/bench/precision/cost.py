"""What policies cost: time of a GPT-2-small shape, bytes of weights, memory while loading."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from helpers.anonymous import Peak
from helpers.synthetic import save_llama
from torch import Tensor

from bench import measure, workloads
from bench.precision.subjects import subjects
from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.task import BuiltinTask, TokenTask
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.executor import SparseExecutor
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.memory.heap import hand_back_freed_memory
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.models.architecture import Model
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.folding import FOLDING, fold
from pahq_server.models.loading import load as load_model
from pahq_server.models.resident import make_resident
from pahq_server.models.streaming import head_store
from pahq_server.precision import products
from pahq_server.precision.linear import linear
from pahq_server.precision.policy import POLICIES, Format, Policy
from pahq_server.precision.quantized import quantize
from pahq_server.tasks.resolve import Limits, resolve

Figures = dict[str, float]
# Share of edges that are kept in the circuit whose edges are tested.
KEPT = 0.03
# Passes of a batch, as in `measure`, and how often each is measured.
WINDOW, ROUNDS = 32, 5
# GPT-2 shapes of several widths, with heads of 64.
WIDTHS, WIDTH_LAYERS, WIDTH_ROUNDS = (128, 256, 512, 768), 8, 9
# Searches on tinytalk, 128 wide.
NARROW_SEEDS, NARROW_THRESHOLD, NARROW_ROUNDS = (1, 2), 0.01, 5


def speed() -> dict[str, Figures]:
    """CPU seconds per evaluation under each policy: rows as a search sends them, and scattered ones."""
    workload = workloads.gpt2_shape()
    model = workload.folded()
    graph = model.architecture.graph("group")
    searched, scattered = batches_of_a_search(graph), scattered_rows(graph)
    jobs = {}
    for name in ("fp32", "bf16", "pahq-int8", "pahq-int8-weight", "pahq-fp8"):
        backend = SparseBackend(
            model, DeviceMemory(1 << 30), b"bench", QuantizedModel.of(model, POLICIES[name])
        )
        jobs[name] = backend.open(graph, workload.task, "kl_divergence", "resample")
    results: dict[str, Figures] = {name: {} for name in jobs}
    for rows, prefix in ((scattered, "scattered_"), (searched, "")):
        for name, seconds in seconds_per_evaluation(jobs, rows).items():
            results[name][f"{prefix}seconds_per_evaluation"] = float(np.median(seconds))
    share = gemm_share(lambda: score_all(jobs["fp32"], searched))
    results["fp32"]["gemm_share"] = share
    for name, figures in results.items():
        for key in ("seconds_per_evaluation", "scattered_seconds_per_evaluation"):
            figures[key.replace("seconds_per_evaluation", "of_fp32")] = figures[key] / results["fp32"][key]
        if name in ("bf16", "pahq-int8"):
            gain = kernel_gain(POLICIES[name])
            figures |= {"kernel_gain": gain, "expected_of_fp32": 1 - share + share / gain}
    return results


def by_width() -> dict[str, Figures]:
    """CPU seconds of fp32's under policies, for rows of a search on GPT-2 shapes of several widths."""
    results: dict[str, Figures] = {}
    for d_model in WIDTHS:
        model = workloads.random_gpt2(WIDTH_LAYERS, FOLDING, d_model, d_model // 64)
        results[str(d_model)] = of_fp32(model, workloads.gpt2_shape(WIDTH_LAYERS).task)
    return results


def of_fp32(model: Model, task: TokenTask) -> Figures:
    """The median over rounds of what a policy took of what ``fp32`` took in the same round."""
    graph = model.architecture.graph("group")
    jobs = {}
    for name in ("fp32", "bf16", "pahq-int8"):
        backend = SparseBackend(
            model, DeviceMemory(1 << 30), b"bench", QuantizedModel.of(model, POLICIES[name])
        )
        jobs[name] = backend.open(graph, task, "kl_divergence", "resample")
    seconds = seconds_per_evaluation(jobs, batches_of_a_search(graph), WIDTH_ROUNDS)
    return ratios(seconds)


def ratios(seconds: dict[str, list[float]]) -> Figures:
    exact = np.array(seconds["fp32"])
    return {name: float(np.median(np.array(taken) / exact)) for name, taken in seconds.items()}


def narrow_search() -> dict[str, Figures]:
    """The batches of an fp32 search on tinytalk with gates, scored under policies in turns."""
    loaded = load_model(str(workloads.TINYTALK))
    arch, model = loaded.model.architecture, fold(loaded.model)
    limits = Limits(arch.vocabulary, arch.output_vocabulary, arch.context)
    rounded = {name: QuantizedModel.of(model, POLICIES[name]) for name in ("fp32", "bf16", "pahq-int8")}
    results: dict[str, Figures] = {}
    for seed in NARROW_SEEDS:
        task = resolve(BuiltinTask("ioi", 16, seed), loaded.tokenizer, limits)

        def opened(name: str, task: TokenTask = task) -> SparseExecutor:
            backend = SparseBackend(model, DeviceMemory(1 << 30), b"bench", rounded[name])
            return backend.open(arch.graph("group"), task, "kl_divergence", "resample")

        batches, seconds = batches_of(opened("fp32"), NARROW_THRESHOLD), {name: [] for name in rounded}
        for _ in range(NARROW_ROUNDS):
            for name, taken in seconds.items():
                job = opened(name)  # without bases of an earlier round
                taken.append(measure.cpu_seconds(partial(score_all, job, batches)))
                job.release()
        results[str(seed)] = ratios(seconds)
    return results


def batches_of(job: SparseExecutor, threshold: float) -> list[list[PatchedPass]]:
    """What a search with gates asks for."""
    steps = AcdcSearch(
        job.graph, threshold, grouping="gates", window=WINDOW, baseline_depends_on_promotion=False
    ).run()
    batches = [list(next(steps))]
    while True:
        try:
            batches.append(list(steps.send(job.score(batches[-1]))))
        except StopIteration:
            return batches


def batches_of_a_search(graph: Graph) -> list[list[PatchedPass]]:
    """Chains into an MLP and the receivers of heads halfway through: below all is kept, above few edges."""
    layer = graph.layers // 2
    kept = np.ones(graph.num_edges, dtype=bool)
    above = int(graph.offsets[graph.receiver_of("q", layer + 1)])
    kept[above:] = np.random.default_rng(0).random(graph.num_edges - above) < KEPT
    base_circuit, batches = BaseCircuit(Circuit(graph, kept)), []
    for kind, unit in (("mlp", 0), ("v", 3), ("k", 5), ("q", 7)):
        receiver = graph.receiver_of(kind, layer, unit)  # type: ignore[arg-type]
        latest = int(graph.offsets[receiver + 1]) - 1
        chain = range(latest, latest - WINDOW, -1)
        batches.append([PatchedPass(base_circuit, tuple(chain[: i + 1])) for i in range(WINDOW)])
    return batches


def scattered_rows(graph: Graph) -> list[list[PatchedPass]]:
    """Single edges of a sparse random circuit, of all layers together."""
    rng = np.random.default_rng(0)
    base_circuit = BaseCircuit(Circuit(graph, rng.random(graph.num_edges) < KEPT))
    edges = rng.choice(np.flatnonzero(base_circuit.circuit.kept), 96, replace=False)
    return [[PatchedPass(base_circuit, (int(edge),)) for edge in np.sort(edges)]]


def seconds_per_evaluation(
    jobs: dict[str, SparseExecutor], batches: list[list[PatchedPass]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Of several rounds, in which every job has its turn: what slows the machine down slows all of them."""
    for job in jobs.values():
        score_all(job, batches)
    count = sum(len(rows) for rows in batches)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            seconds[name].append(measure.cpu_seconds(lambda job=job: score_all(job, batches)) / count)  # type: ignore[misc]
    return seconds


def score_all(job: SparseExecutor, batches: list[list[PatchedPass]]) -> None:
    for rows in batches:
        job.score(rows)


def gemm_share(work: Callable[[], object]) -> float:
    """Share of the CPU seconds of a piece of work that go into products with weights."""
    product, spent = products._product, 0.0

    def timed(x: Tensor, w: Tensor) -> Tensor:
        nonlocal spent
        start = time.process_time()
        result = product(x, w)
        spent += time.process_time() - start
        return result

    with mock.patch.object(products, "_product", timed):
        seconds = measure.cpu_seconds(work)
    return spent / seconds


@torch.inference_mode()
def kernel_gain(policy: Policy) -> float:
    """How much faster an MLP's first map is under a policy for a few rows of 16 x 14 tokens."""
    x, w = torch.randn(896, 768), torch.randn(768, 3072)
    if policy.inputs is Format.BF16:
        low = w.to(torch.bfloat16)
        fast = measure.cpu_seconds(lambda: products.matmul(x.to(torch.bfloat16), low).to(torch.float32), 21)
    else:
        rounded = quantize(w, policy.mlps)
        fast = measure.cpu_seconds(lambda: linear(x, rounded, policy.inputs, policy.terms), 21)
    return measure.cpu_seconds(lambda: products.matmul(x, w), 21) / fast


def resident_shares() -> Figures:
    """Bytes of weights as `pahq-int8` keeps them, head slots included, over the checkpoint's in float32."""
    shares = {}
    for subject in subjects():
        checkpoint = CheckpointWeights.open(str(subject.source))
        resident = make_resident(checkpoint, POLICIES["pahq-int8"])
        kept = resident.nbytes.total + head_store(resident).capacity
        shares[subject.name] = kept / (4 * checkpoint.parameters)
    return shares


def loading() -> Figures:
    """Peak of anonymous memory while a Llama of 1.2 billion random bf16 parameters becomes `pahq-int8`."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "bench.precision", "--write", directory]
        subprocess.run(command, check=True)
        command[-2] = "--load"
        found: Figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return found


def write_llama(directory: str) -> None:
    """TinyLlama's shape, with more key/value heads."""
    save_llama(
        Path(directory),
        layers=22,
        d_model=2048,
        d_mlp=5632,
        vocabulary=32000,
        dtype=torch.bfloat16,
        tied=False,
    )


def load(directory: str) -> Figures:
    """Loads the Llama, in a process of its own."""
    hand_back_freed_memory()
    start = time.perf_counter()
    with Peak().watching() as peak:
        checkpoint = CheckpointWeights.open(directory)
        resident = make_resident(checkpoint, POLICIES["pahq-int8"])
    kept = resident.nbytes.total
    return {
        "parameters": checkpoint.parameters,
        "resident_mib": kept / 2**20,
        "peak_mib": peak.most / 2**20,
        "peak_of_resident": peak.most / kept,
        "seconds": time.perf_counter() - start,
    }
