"""Many clients at once: each gets what it would get alone, and as much of the machine as any other."""

from __future__ import annotations

import bisect
import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from e2e.cases import Case, load_cases
from e2e.process import ServerProcess
from helpers.fairness import jain

from pahq_client import Client, JobHandle, Task
from pahq_server.access.tokens import TokenTable, new_token
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE

from .conftest import Figures

# Case, metric, threshold, ablation and gates of a run that is small: all together take a few seconds.
PINNED = (
    ("trained_induction_2l4h", 0.001, "zero", False),
    ("atome_zero_mean", 0.05, "mean", False),
    ("planted_induction_3l4h_mlp", 0.001, "resample", True),
    ("tracr_reverse", 1e-6, "zero", True),
    ("planted_induction_2l4h", 0.01, "resample", True),
    ("tracr_xproportion", 1e-6, "zero", False),
    ("gate_or", 1e-6, "zero", True),
)
# Longest pause of a client before a call: about 200 calls a second of all fifty together.
PAUSE_S = 0.5
LIMITS = ("--rate", "1e6", "--burst", "1000000", "--max-streams", "1000", "--slots", "4")


class Ask:
    """A discovery that can be asked for again and again."""

    def __init__(self, case: Case | None, threshold: float, ablation: str, gates: bool) -> None:
        self.model = case.model if case else "demo"
        self.task = case.task if case else Task.ioi(num_prompts=4, seed=0)
        self.metric = case.metric if case else "kl_divergence"
        self.threshold, self.ablation, self.gates = threshold, ablation, gates

    def submit(self, client: Client) -> JobHandle:
        return client.submit(
            self.model,
            self.task,
            self.threshold,
            metric=self.metric,
            ablation=self.ablation,
            grouping="gates" if self.gates else "none",
            kv_receivers="query",
        )


def pinned_mix() -> list[Ask]:
    """Case jobs, and one of the model that is always there. Skips where the cases are absent."""
    cases = {case.name: case for case in load_cases()}
    if not cases:
        pytest.skip("needs ../shared/cases, which is not part of the repository")
    return [Ask(None, 0.2, "resample", True), *(Ask(cases[name], *rest) for name, *rest in PINNED)]


class CrowdServer:
    """A server that knows so many users, each by a token.

    Args:
        folder: for its data.
        users: how many.
        mix: what they will ask for.
    """

    def __init__(self, folder: Path, users: int, mix: Sequence[Ask]) -> None:
        database = Database(folder / DATABASE)
        pairs = [new_token(f"user-{number}", "user", time.time()) for number in range(users)]
        for _, token in pairs:
            TokenTable(database).add(token)
        database.close()
        self.tokens = [text for text, _ in pairs]
        wanted = {ask.model for ask in mix}
        models = {case.model: case.model_directory for case in load_cases() if case.model in wanted}
        options = ("--auth", "tokens", "--data-dir", str(folder), "--no-result-cache", "--memory", "64MiB")
        self.process = ServerProcess(models, *options, "--threads", "1", *LIMITS)

    def memory_mib(self) -> float:
        status = Path(f"/proc/{self.process.process.pid}/status").read_text("utf-8")
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) / 1024


class Meter(threading.Thread):
    """Reads, again and again, what every user was charged, until one of them has nothing left to do."""

    def __init__(self, server: CrowdServer, clients: Sequence[Client], jobs: int) -> None:
        super().__init__(name="meter")
        self._server, self._clients, self._jobs = server, clients, jobs
        self.samples: list[list[tuple[float, float]]] = [[] for _ in clients]
        self.ends: list[float] = []  # of users, when their last job ended
        self.peak_mib = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ends:
                self.read()
                time.sleep(0.1)
            self.read()  # so that the end lies between two samples of everyone
        except BaseException as error:  # noqa: BLE001 - the test asks for it
            self.error = error

    def read(self) -> None:
        self.peak_mib = max(self.peak_mib, self._server.memory_mib())
        for client, samples in zip(self._clients, self.samples, strict=True):
            infos = [job.latest for job in client.jobs()]
            samples.append((time.time(), sum(info.charged_s for info in infos if info)))
            ended = [info.ended.timestamp() for info in infos if info and info.ended]
            if len(ended) == self._jobs:
                self.ends.append(max(ended))

    def charged(self) -> list[float]:
        """What each user was charged up to the moment when the first of them had nothing left to do."""
        assert self.error is None
        return [_at(min(self.ends), samples) for samples in self.samples]


def _at(moment: float, samples: Sequence[tuple[float, float]]) -> float:
    after = bisect.bisect_left(samples, (moment, 0.0))
    if after in (0, len(samples)):
        return samples[min(after, len(samples) - 1)][1]
    (t0, a), (t1, b) = samples[after - 1 : after + 1]
    return a + (b - a) * (moment - t0) / (t1 - t0)


def crowd(folder: Path, users: int, jobs: int, figures: Figures, full: bool) -> None:
    mix = pinned_mix()
    server = CrowdServer(folder, users, mix)
    with server.process, ExitStack() as stack:
        clients = [
            stack.enter_context(Client(server.process.address, token, timeout=120)) for token in server.tokens
        ]
        solo = [ask.submit(clients[0]).result().canonical_bytes() for ask in mix]
        for job in clients[0].jobs():
            job.delete()
        if full:
            warm_up(clients[:8], mix)
        before, started = server.memory_mib(), time.monotonic()
        pause_s = PAUSE_S if full else 0.0
        with ThreadPoolExecutor(users) as pool:
            submitted = list(
                pool.map(lambda number: submit(clients[number], number, mix, jobs, pause_s), range(users))
            )
            meter = Meter(server, clients, jobs)
            meter.start()
            wrong = list(pool.map(lambda handles: differing(handles, solo), (mine for mine, _ in submitted)))
            meter.join()
        seconds = time.monotonic() - started
        after = server.memory_mib()
    delays = sorted(delay for _, some in submitted for delay in some)
    p99 = delays[min(len(delays) - 1, int(0.99 * len(delays)))]
    charged = meter.charged()
    growth = max(meter.peak_mib, after) - before
    figures(
        users=users,
        jobs=users * jobs,
        seconds=round(seconds, 1),
        jain=round(jain(charged), 4),
        least_s=round(min(charged), 2),
        most_s=round(max(charged), 2),
        submit_p50_ms=round(1e3 * delays[len(delays) // 2], 1),
        submit_p99_ms=round(1e3 * p99, 1),
        growth_mib=round(growth, 1),
    )
    assert list(itertools.chain(*wrong)) == []
    assert jain(charged) >= 0.95
    if full:
        assert p99 < 0.25
        assert growth < 100


def warm_up(clients: Sequence[Client], mix: Sequence[Ask]) -> None:
    """Fills what grows once only: kernels by shape, what several jobs at once take. Leaves no job behind."""
    for handle in [ask.submit(client) for client in clients for ask in mix]:
        handle.result()
        handle.delete()


def submit(
    client: Client, number: int, mix: Sequence[Ask], jobs: int, pause_s: float
) -> tuple[list[tuple[int, JobHandle]], list[float]]:
    """One client's jobs, each with its number in the mix, and how long each call took."""
    chance = random.Random(number)
    handles, delays = [], []
    for kind in itertools.islice(_kinds(number, len(mix)), jobs):
        time.sleep(chance.uniform(0.0, pause_s))
        started = time.monotonic()
        handles.append((kind, mix[kind].submit(client)))
        delays.append(time.monotonic() - started)
    return handles, delays


def _kinds(number: int, count: int) -> Iterator[int]:
    """Another order for every client: all kinds in turn, as ``count`` is even and the stride is odd."""
    assert count % 2 == 0
    return ((number + step * (1 + 2 * (number // count))) % count for step in itertools.count())


def differing(handles: Sequence[tuple[int, JobHandle]], solo: Sequence[bytes]) -> list[str]:
    """Names of jobs whose circuit is not what it was alone."""
    return [job.name for kind, job in handles if job.result().canonical_bytes() != solo[kind]]


def test_some_clients(tmp_path: Path, figures: Figures) -> None:
    crowd(tmp_path, users=8, jobs=8, figures=figures, full=False)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fifty_clients(tmp_path: Path, figures: Figures) -> None:
    crowd(tmp_path, users=50, jobs=20, figures=figures, full=True)
