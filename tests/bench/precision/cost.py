"""What policies cost: time of a GPT-2-small shape, bytes of weights, memory while loading."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from helpers.anonymous import Peak
from helpers.synthetic import save_llama
from torch import Tensor

from bench import measure, workloads
from bench.precision.subjects import subjects
from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Anchor, Row
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.maps import Rounded
from pahq_server.engine.sparse.shared import DeviceMemory
from pahq_server.models.heap import hand_back_freed_memory
from pahq_server.models.masters import Masters
from pahq_server.models.resident import make_resident
from pahq_server.models.streaming import head_store
from pahq_server.plan.weights import rounded as rounded_parts
from pahq_server.precision import products
from pahq_server.precision.linear import linear
from pahq_server.precision.policy import POLICIES, Format
from pahq_server.precision.quantized import quantize

Figures = dict[str, float]
# Share of edges that are kept in the circuit whose edges are tested.
KEPT = 0.03


def speed() -> dict[str, Figures]:
    """CPU seconds per evaluation under each policy, of the same rows of a sparse random circuit."""
    workload = workloads.gpt2_shape()
    model = workload.folded()
    graph = model.architecture.graph("group")
    rng = np.random.default_rng(0)
    anchor = Anchor(Circuit(graph, rng.random(graph.num_edges) < KEPT))
    edges = rng.choice(np.flatnonzero(anchor.circuit.kept), 96, replace=False)
    rows = [Row(anchor, (int(edge),)) for edge in np.sort(edges)]
    results: dict[str, Figures] = {}
    for name in ("fp32", "bf16", "pahq-int8", "pahq-int8-weight", "pahq-fp8"):
        rounded = Rounded.of(model, POLICIES[name])
        backend = SparseBackend(model, DeviceMemory(2 << 30), b"bench", rounded)
        job = backend.open(graph, workload.task, "kl_divergence", "resample")
        job.score(rows)
        seconds = measure.cpu_seconds(lambda job=job: job.score(rows), 5)  # type: ignore[misc]
        results[name] = {"seconds_per_evaluation": seconds / len(rows)}
        if name == "fp32":
            results[name]["gemm_share"] = gemm_share(lambda job=job: job.score(rows))  # type: ignore[misc]
        job.release()
    share, exact = results["fp32"]["gemm_share"], results["fp32"]["seconds_per_evaluation"]
    for name, figures in results.items():
        figures["of_fp32"] = figures["seconds_per_evaluation"] / exact
        if name in ("bf16", "pahq-int8"):
            gain = kernel_gain(Format.BF16 if name == "bf16" else Format.INT8)
            figures |= {"kernel_gain": gain, "expected_of_fp32": 1 - share + share / gain}
    return results


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
def kernel_gain(form: Format) -> float:
    """How much faster an MLP's first map is for a few rows of 16 x 14 tokens."""
    x, w = torch.randn(896, 768), torch.randn(768, 3072)
    if form is Format.BF16:
        low = w.to(torch.bfloat16)
        fast = measure.cpu_seconds(lambda: products.matmul(x.to(torch.bfloat16), low).to(torch.float32), 21)
    else:
        rounded = quantize(w, form)
        fast = measure.cpu_seconds(lambda: linear(x, rounded, form), 21)
    return measure.cpu_seconds(lambda: products.matmul(x, w), 21) / fast


def resident_shares() -> Figures:
    """Bytes of weights as `pahq-int8` keeps them, head slots included, over those in float32."""
    shares = {}
    for subject in subjects():
        masters = Masters.open(str(subject.source))
        resident = make_resident(masters, POLICIES["pahq-int8"])
        kept = resident.nbytes.total + head_store(resident).capacity
        full = rounded_parts(str(subject.source), POLICIES["fp32"]).total
        shares[subject.name] = kept / full
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
        masters = Masters.open(directory)
        resident = make_resident(masters, POLICIES["pahq-int8"])
    kept = resident.nbytes.total
    return {
        "parameters": masters.parameters,
        "resident_mib": kept / 2**20,
        "peak_mib": peak.most / 2**20,
        "peak_of_resident": peak.most / kept,
        "seconds": time.perf_counter() - start,
    }
