"""Searches on real servers of this machine: one worker or two, one thread each or two, local or by Ray."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from e2e.process import ServerProcess
from transformers import GPT2Config, GPT2LMHeadModel

from bench import workloads
from bench.parts import SkippedError
from bench.workloads import TINYTALK, VOCABULARY
from pahq_client import Circuit, Client, Task

# The servers that are compared, by the options of each.
LOCAL, TWO_THREADS, TWO_WORKERS, ONE_BY_RAY = SERVERS = (
    "1 worker, 1 thread",
    "1 worker, 2 threads",
    "2 workers, 1 thread each",
    "1 worker of Ray, 1 thread",
)
OPTIONS = {
    LOCAL: ("--threads", "1"),
    TWO_THREADS: ("--threads", "2"),
    TWO_WORKERS: ("--threads", "1", "--workers", "2"),
    ONE_BY_RAY: ("--threads", "1", "--workers", "1", "--ray-address", "local"),
}
# How many layers the GPT-2 shape has here: a search of all 12 takes a quarter of an hour on each server.
LAYERS = 6
JOBS = 10
KL = "kl_divergence"


@dataclass(frozen=True)
class Work:
    """What servers are asked for.

    Args:
        name: for people.
        model: directory of the model, made or found while the context lasts.
        prepare: does what happens only once on a server; returns what ``run`` is given.
        run: what is measured; returns the circuits that were found.
        turns: how often each server does it.
    """

    name: str
    model: Callable[[Path], Path]
    prepare: Callable[[Client], Circuit | None]
    run: Callable[[Client, Circuit | None], Sequence[Circuit]]
    turns: int = 3


def gpt2(layers: int = LAYERS, share: float = 1.0, turns: int = 1) -> Work:
    """A search of the GPT-2 shape, single tests only.

    Args:
        layers: of the model.
        share: of the edges to start from, those that `eap_ig` scores best; 1 for the whole graph.
        turns: see `Work`.
    """
    workload = workloads.gpt2_shape(layers)
    task = Task(clean=workload.task.clean, corrupted=workload.task.corrupted)

    def model(directory: Path) -> Path:
        torch.manual_seed(0)
        sizes = {"n_layer": layers, "vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None}
        GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(directory)
        return directory

    def prepare(client: Client) -> Circuit | None:
        if share == 1:
            return None
        return client.attribute("model", task, "eap_ig", metric=KL).top(fraction=share)

    def run(client: Client, within: Circuit | None) -> list[Circuit]:
        found = client.discover("model", task, workload.threshold, metric=KL, grouping="none", within=within)
        assert isinstance(found, Circuit)
        return [found]

    return Work(f"GPT-2 shape of {layers} layers, one search", model, prepare, run, turns)


def tinytalk(jobs: int = JOBS, prompts: int = 2, threshold: float = 0.02) -> Work:
    """Searches on tinytalk at once, single tests only."""

    def task(number: int) -> Task:
        texts = workloads.tinytalk_texts(prompts, number)
        return Task(clean=texts.clean, corrupted=texts.corrupted)

    def search(client: Client, numbers: Sequence[int]) -> list[Circuit]:
        submitted = [
            client.submit("model", task(number), threshold, metric=KL, grouping="none") for number in numbers
        ]
        found = [job.result() for job in submitted]
        return [circuit for circuit in found if isinstance(circuit, Circuit)]

    return Work(
        f"tinytalk, {jobs} searches at once",
        lambda _: TINYTALK,
        lambda client: search(client, [jobs])[0],
        lambda client, _: search(client, range(jobs)),
    )


def measured(results: object = None) -> dict[str, Any]:
    """Measures all work on all servers.

    Args:
        results: of other parts, of which nothing is needed.

    Raises SkippedError if the servers here have one worker only.
    """
    if not offers_workers():
        raise SkippedError("real servers are not measured: pahq-server serve has no option --workers")
    works = [gpt2(), *([tinytalk()] if TINYTALK.is_dir() else [])]
    return {work.name: compare(work, SERVERS, work.turns) for work in works}


def offers_workers() -> bool:
    """Tells whether a server can have several workers."""
    command = [sys.executable, "-m", "pahq_server", "serve", "--help"]
    return "--workers" in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def compare(work: Work, servers: Sequence[str], turns: int) -> dict[str, Any]:
    """Has servers do the same work in turns, each started anew.

    The order changes from turn to turn, since the speed of the machine may change meanwhile.

    Returns:
        ``seconds``: wall time by server, one per turn; ``different``: of how many turns the circuits were not
        those of the first; ``tests``: how many these circuits took.
    """
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    first, tests, different = "", 0, 0
    with TemporaryDirectory() as folder:
        model = work.model(Path(folder))
        for turn in range(turns):
            for name in servers if turn % 2 == 0 else reversed(servers):
                with _serving(model, OPTIONS[name]) as client:
                    prepared = work.prepare(client)
                    begun = time.perf_counter()
                    circuits = work.run(client, prepared)
                    seconds[name].append(time.perf_counter() - begun)
                digest = hashlib.sha256()
                for circuit in circuits:
                    digest.update(circuit.canonical_bytes())
                first = first or digest.hexdigest()
                tests = tests or sum(len(circuit.verdicts) for circuit in circuits)
                different += digest.hexdigest() != first
                print(f"{work.name}, {name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    return {"seconds": seconds, "different": different, "tests": tests}


@contextmanager
def _serving(model: Path, options: Sequence[str]) -> Iterator[Client]:
    with ServerProcess({"model": model}, *options) as server, Client(server.address) as client:
        # A server answers calls as soon as one of its workers is ready.
        while any(worker.state != "READY" for worker in client.server_info().workers):
            time.sleep(0.2)
        yield client
