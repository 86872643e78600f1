"""What parts of a search cost: measured on this machine, and scaled to a large model on a GPU.

On the machine a search on tinytalk is watched, with one thread. Of it are taken: how many of the operations
downstream a pass really needs, what base circuits need, which kernels are called, and how effects differ. The
server's own work is measured where it will be done, on the graph of the large model.
"""

from __future__ import annotations

import importlib.util
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import measure, workloads
from bench.methods.server import MeasuredServer
from bench.operations import needed_operations
from bench.workers.scores import Effects, Scorer
from bench.workers.simulation import Costs, Setting, SimulatedSearch
from pahq_client import BuiltinTask
from pahq_server.core.circuit import Circuit
from pahq_server.core.graph import Graph
from pahq_server.engine.cost import forward_operations, least_operations
from pahq_server.engine.sparse import executor as sparse
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.base_activations import BaseActivations
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.models.architecture import Architecture

LLAMA_8B = Architecture(
    "llama", 32, 32, 8, 4096, 128, 14336, 128256, 128256, 8192, "rms", 1e-5, "silu",
    (128**-0.5,) * 32, (None,) * 32, gated=True,
)  # fmt: skip
# With a key and value receiver for every query head: 1.6 million edges.
GRAPH = LLAMA_8B.graph("query")
# The task of the IOI paper's size.
PROMPTS, TOKENS = 100, 15
# Tests of the large graph for which the server's own work is measured.
HEAD_TESTS = 40_000
# How many workers are simulated at most, and seconds of a batch while the server's own work is measured.
WORKERS, BATCH_SECONDS = 64, 0.5
# Every how many batches kernels are counted instead of time; how often circuits are packed, jobs served.
COUNTED_EVERY, PACKED, SERVED_REPEATS = 5, 50, 5
# Seconds of a call to an actor of Ray 2.60 on one machine; used where Ray is not installed.
RAY_CALL_S = 0.0007


@dataclass(frozen=True)
class Device:
    """A worker's device, by its data sheet.

    Args:
        name: for people.
        operations_s: multiplications and additions per second at the peak.
        launch_s: seconds between kernels that torch launches one by one from Python.
    """

    name: str
    operations_s: float
    launch_s: float


# Data sheet of the H100 SXM: 67 TFLOP/s in float32, 989 TFLOP/s in bfloat16 without sparsity. Kernels
# that torch launches one by one start about 5 microseconds after each other.
DEVICES = {
    "float32": Device("H100 SXM, float32", 67e12, 5e-6),
    "bfloat16": Device("H100 SXM, bfloat16", 989e12, 5e-6),
}


@dataclass(frozen=True)
class Constants:
    """What was measured.

    Args:
        live: share of the operations downstream of a receiver, at all tokens, that a pass needs.
        base_passes: operations of a base circuit that is computed from its parent, in passes.
        scratch_passes: seconds of one without parent, in passes.
        share_of_rate: of the machine's rate for large products that a search reaches in the operations that
            it needs. That of the GPT-2 shape (``make bench``), whose matrices are larger than tinytalk's.
        kernels_batch, kernels_pass: operators other than views that a batch calls, and each of its passes.
        head_batch_s: seconds of a batch in a server beside its passes: scheduler, journal, store.
        head_pass_s: seconds of a pass in the search of the large graph.
        head_piece_s: seconds of a piece: what describes two circuits of the large graph as bytes.
        message_pass_s: seconds of a pass as bytes.
        call_s: seconds of a call to a worker in the process that makes it, with two circuits of the graph.
        small_call_s: the same without circuits.
        effects: how effects of edges differ.
    """

    live: float
    base_passes: float
    scratch_passes: float
    share_of_rate: float
    kernels_batch: float
    kernels_pass: float
    head_batch_s: float
    head_pass_s: float
    head_piece_s: float
    message_pass_s: float
    call_s: float
    small_call_s: float
    effects: Effects

    @classmethod
    def of_stored(cls, stored: dict[str, Any]) -> Constants:
        return cls(**{**stored, "effects": Effects(**stored["effects"])})

    def stored(self) -> dict[str, Any]:
        return asdict(self)


def costs(constants: Constants, device: Device, arch: Architecture = LLAMA_8B, graph: Graph = GRAPH) -> Costs:
    """Scales what was measured to a model on a device.

    A pass takes as long as its operations at the share of the rate that was measured, or as its kernels take
    to be launched, whichever is more.

    Args:
        constants: what was measured.
        device: of each worker.
        arch: of the model.
        graph: that is searched.
    """
    rate = device.operations_s * constants.share_of_rate
    layers = [graph.receiver(index).layer for index in range(graph.num_receivers)]
    by_layer = np.array(
        [pass_operations(arch, layer, constants.live, PROMPTS, TOKENS) for layer in range(arch.layers + 1)]
    )
    passes = np.maximum(by_layer / rate, constants.kernels_pass * device.launch_s)[layers]
    return Costs(
        passes,
        constants.base_passes,
        constants.scratch_passes * float(passes.mean()),
        constants.kernels_batch * device.launch_s,
        constants.head_batch_s,
        constants.head_pass_s + constants.message_pass_s,
        constants.head_piece_s + constants.call_s,
        constants.small_call_s,
    )


def pass_operations(arch: Architecture, layer: int, live: float, prompts: int, tokens: int) -> float:
    """Counts the operations of a pass under whose circuit a share of all that is downstream is live.

    Args:
        arch: of the model.
        layer: of the receiver under investigation; the number of layers for the logits.
        live: share of the downstream nodes, and of the tokens, that are computed.
        prompts, tokens: of the task.
    """
    none = forward_operations(replace(arch, layers=0), prompts, tokens)
    if layer == arch.layers:
        return none
    whole = (forward_operations(arch, prompts, tokens) - none) / arch.layers
    return least_operations(arch, prompts, tokens) + live * (arch.layers - layer - 0.5) * whole


@dataclass
class _Watched:
    """What `_Watch` has counted.

    Args:
        of_passes, of_bases: operations of passes, and of base circuits that were computed from their parents.
        bases: how many of these there were.
        scratch_s: CPU seconds of base circuits without parents.
        scratch: how many of these there were.
    """

    of_passes: float = 0.0
    of_bases: float = 0.0
    bases: int = 0
    scratch_s: float = 0.0
    scratch: int = 0


@contextmanager
def _watching() -> Iterator[_Watched]:
    """Watches the executor."""
    found, run, make = _Watched(), sparse.BatchForward.run, BaseActivations.from_scratch

    def counted(forward: sparse.BatchForward) -> None:
        run(forward)
        operations = needed_operations(forward)
        if forward.keep:
            found.of_bases += float(operations.sum())
            found.bases += len(operations)
        else:
            found.of_passes += float(operations.sum())

    def timed(*given: Any) -> BaseActivations:
        start = time.process_time()
        base = make(*given)
        found.scratch_s += time.process_time() - start
        found.scratch += 1
        return base

    with (
        mock.patch.object(sparse.BatchForward, "run", counted),
        mock.patch.object(BaseActivations, "from_scratch", timed),
    ):
        yield found


class _Kernels(TorchDispatchMode):
    """Counts operators that compute something: all but those that return views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        self.count += not any(each.alias_info and not each.alias_info.is_write for each in returns)
        return func(*args, **(kwargs or {}))


def measured(
    workload: workloads.Workload, share_of_rate: float, graph: Graph = GRAPH, tests: int = HEAD_TESTS
) -> Constants:
    """Measures the constants.

    Args:
        workload: the search that is watched.
        share_of_rate: see `Constants`.
        graph: of the large model.
        tests: of its search for which the server's own work is measured.
    """
    torch.set_num_threads(1)
    model = workload.folded()
    arch = model.architecture
    searched, layers = arch.graph("group"), range(arch.layers + 1)
    prompts, tokens = len(workload.task.clean), max(map(len, workload.task.clean))
    backend = SparseBackend(model, DeviceMemory(measure.MEMORY_BYTES), b"bench")
    job = measure.Job(backend, searched, workload)
    at_layer = np.zeros(arch.layers + 1)
    kernels: list[tuple[int, int]] = []
    seconds = 0.0
    with _watching() as watched:
        while job.rows:
            for each in job.rows:
                receiver = each.promoted_receiver
                at_layer[arch.layers if receiver is None else searched.receiver(receiver).layer] += 1
            if job.search.counts["batches"] % COUNTED_EVERY:
                begun = time.process_time()
                measure.step(backend, [job])
                seconds += time.process_time() - begun
                continue
            passes = len(job.rows)
            with _Kernels() as counter:
                measure.step(backend, [job])
            kernels.append((passes, counter.count))
    timed = 1 - 1 / COUNTED_EVERY  # share of the batches whose time was measured
    fixed, whole = (
        float(sum(at_layer[i] * pass_operations(arch, i, live, prompts, tokens) for i in layers))
        for live in (0.0, 1.0)
    )
    of_pass = watched.of_passes / at_layer.sum()
    base_passes = watched.of_bases / watched.bases / of_pass if watched.bases else 0.0
    pass_s = (seconds - watched.scratch_s * timed) / (at_layer.sum() + base_passes * watched.bases) / timed
    per_pass, per_batch = np.polyfit(*np.array(kernels, dtype=float).T, 1)
    return Constants(
        live=max(0.0, (watched.of_passes - fixed) / (whole - fixed)),
        base_passes=base_passes,
        scratch_passes=watched.scratch_s / watched.scratch / pass_s,
        share_of_rate=share_of_rate,
        kernels_batch=max(0.0, float(per_batch)),
        kernels_pass=float(per_pass),
        head_batch_s=_batch_seconds(),
        **_head(graph, tests),
        **_calls(),
        effects=Effects.of_search(searched, job.search.verdicts, workload.threshold),
    )


def _batch_seconds() -> float:
    """Measures CPU seconds of a batch of a server beside its passes: scheduler, journal, store, progress.

    That is what a job on a server takes beyond the same search without one, by batches. The passes of the
    demo model are small.
    """
    workload, task = workloads.demo(4, 0), BuiltinTask("ioi", 4, 0)
    inside, through, batches = [], [], 1
    model = workload.folded()
    with MeasuredServer({}) as server:
        for _ in range(SERVED_REPEATS):
            begun = time.process_time()
            backend = SparseBackend(model, DeviceMemory(measure.MEMORY_BYTES), b"bench")
            job = measure.Job(backend, model.architecture.graph("group"), workload)
            while job.rows:
                measure.step(backend, [job])
            inside.append(time.process_time() - begun)
            batches = job.search.counts["batches"]
            _, cost = server.measured(
                lambda: server.client.discover("demo", task, workload.threshold, grouping="none")
            )
            through.append(cost.cpu_seconds)
    return max(0.0, (statistics.median(through) - statistics.median(inside)) / batches)


def _head(graph: Graph, tests: int) -> dict[str, float]:
    """Measures the server's own work on the first tests of a search, on as many workers as are simulated.

    Returns:
        CPU seconds of the search per pass; of a piece's circuits as bytes; and of a pass as bytes.
    """
    start = Circuit.full(graph)
    scorer = Scorer(Effects(1.0, 1.0, 1.0, 0.002).draw(graph, 0))
    search = SimulatedSearch(start, Setting(WORKERS))
    steps = search.decide()
    searching = writing = 0.0
    passes = next(steps)
    while len(search.verdicts) < tests:
        begun = time.process_time()
        pickle.dumps([each.removed for each in passes], protocol=5)
        writing += time.process_time() - begun
        scores = scorer(passes)
        begun = time.process_time()
        passes = steps.send(scores)
        searching += time.process_time() - begun
        search.seconds += BATCH_SECONDS
    begun = time.process_time()
    for _ in range(PACKED):
        for circuit in (Circuit.full(graph), passes[0].base_circuit.circuit):
            pickle.dumps(np.packbits(circuit.kept), protocol=5)
    packing = time.process_time() - begun
    count = search.counts["passes"]
    return {
        "head_pass_s": searching / count,
        "head_piece_s": packing / PACKED,
        "message_pass_s": writing / count,
    }


def _calls() -> dict[str, float]:
    """Measures what a call to an actor of Ray takes whoever makes many of them, with circuits and without.

    It is `RAY_CALL_S` where Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        return {"call_s": RAY_CALL_S, "small_call_s": RAY_CALL_S}
    found = subprocess.run([sys.executable, "-c", _CALLS], check=True, stdout=subprocess.PIPE, text=True)
    large, small = map(float, found.stdout.split()[-2:])
    return {"call_s": large, "small_call_s": small}


# Two actors on one machine. Two packed circuits of the large graph and some passes are half a megabyte.
_CALLS = """
import logging, statistics, time, ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
@ray.remote
class Worker:
    def run(self, piece):
        return b"0" * 64
workers = [Worker.remote() for _ in range(2)]
ray.get([each.run.remote(b"") for each in workers])
def seconds(size):
    begun = time.perf_counter()
    ray.get([workers[number % 2].run.remote(bytes(size)) for number in range(64)])
    return (time.perf_counter() - begun) / 64
print(*(statistics.median(seconds(size) for _ in range(15)) for size in (1 << 19, 1 << 12)))
ray.shutdown()
"""
