"""Searches on simulated workers: real searches ask for passes, of which only the time is made up.

A batch is a barrier. The server's thread asks the methods for passes, cuts them into pieces and makes the
calls; then the workers compute, each the base circuits that it lacks and its passes; then verdicts follow.
What workers spend beyond passes whose scores are used is lost, and `Spent` says to what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.workers.scores import Scorer
from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.order import Test, TestOrder
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.methods.acdc.speculation import (
    CostModel,
)
from pahq_server.workers.dispatch import LEAST_S
from pahq_server.workers.placement import Load, joints_of, place
from pahq_server.workers.states import NEWS

# Steps of the search for the time of the slowest piece.
HALVINGS = 14


@dataclass(frozen=True)
class Costs:
    """What parts of a search take, in seconds.

    Args:
        passes: of a patched pass, by the receiver under investigation: [receivers].
        base_passes: a base circuit that is computed from its parent takes as long as so many passes.
        scratch: of a base circuit without parent.
        worker_batch: of a call on its worker, beside base circuits and passes.
        head_batch: of a batch in the server's thread: scheduler, journal, store.
        head_pass: of a pass in the server's thread: the search, and the pass as part of a message.
        head_piece: of a piece in the server's thread and the driver's: its circuits as bytes, the call.
        head_piece_known: the same of a piece whose circuits the worker has.
    """

    passes: NDArray[np.float64]
    base_passes: float
    scratch: float
    worker_batch: float
    head_batch: float
    head_pass: float
    head_piece: float
    head_piece_known: float


@dataclass
class Spent:
    """Worker-seconds of a run: what the workers did, or waited for.

    Args:
        used: passes whose scores were used.
        wasted: passes that assumed a wrong verdict.
        bases: base circuits, each once.
        repeated_bases: base circuits that another worker had computed already, or the same one earlier.
        calls: what calls take on workers beside that.
        waiting: for the slowest piece of a batch.
        head: for the server's thread.
    """

    used: float = 0.0
    wasted: float = 0.0
    bases: float = 0.0
    repeated_bases: float = 0.0
    calls: float = 0.0
    waiting: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Args:
        workers: how many.
        jobs: searches at once, all alike but for the effects of edges.
        window: tests that a job asks for at once, at most, per worker.
        knows_workers: whether `CostModel` knows that passes run on several workers at once, and what a batch
            takes in the server's thread; else it learns seconds per pass as it does with one worker.
        both_verdicts: whether tests are speculated after either verdict on an edge; else after a removal.
        in_flight: whether the server's thread prepares a batch of some jobs while workers compute that of
            others.
        knows_bases: whether batches are cut by what base circuits take on the workers that lack them; else as
            the pool does it, which takes all passes of an operation to cost the same.
        sends_once: whether circuits are sent to a worker once; else with every piece.
    """

    workers: int
    jobs: int = 1
    window: int = 32
    knows_workers: bool = False
    both_verdicts: bool = False
    in_flight: bool = False
    knows_bases: bool = False
    sends_once: bool = False


@dataclass(frozen=True)
class Run:
    """What a simulated run took.

    Args:
        seconds: wall time.
        spent: by the workers; its total is ``seconds`` times their number.
        batches: how many there were.
        passes: how many were computed.
        verdicts: how many tests were decided, over all jobs.
    """

    seconds: float
    spent: Spent
    batches: int
    passes: int
    verdicts: int


class _EveryTest(TestOrder):
    """The order of a search in which no node loses its last way to the logits, so that every edge is tested.

    Whether nodes do so is a matter of the model. If they do, there are fewer tests.
    """

    def _is_dead(self, receiver: int, circuit: Circuit) -> bool:
        return False


class SimulatedSearch(AcdcSearch):
    """A search for single edges at the threshold 1, with the speculation that a setting asks for."""

    def __init__(self, start: Circuit, setting: Setting) -> None:
        self.seconds = 0.0  # its part of what batches took, as the server charges it
        window = setting.window * setting.workers
        super().__init__(start.graph, 1.0, "none", window, clock=lambda: self.seconds, start=start)
        self._order = _EveryTest(start.graph, "none", start)
        self._state = self._order.start()
        self._both_verdicts = setting.both_verdicts
        if setting.knows_workers:
            share = max(1, setting.workers // setting.jobs)
            self._costs = CostModel(lambda: share)

    def _verdicts_to_assume(self, test: Test) -> list[tuple[bool, float]]:
        if not self._both_verdicts:
            return super()._verdicts_to_assume(test)
        kept = self._keep_predictor.kept(*self._ends(test))
        return [(False, 1 - kept), (True, kept)]


@dataclass(frozen=True)
class Stretch:
    """Passes of a batch that follow each other and share job, base circuit and receiver.

    Args:
        base: their base circuit.
        receiver: under investigation.
        count: how many.
    """

    base: BaseCircuit
    receiver: int
    count: int


def stretches(graph: Graph, passes: Sequence[PatchedPass]) -> list[Stretch]:
    """Divides the passes of a job into stretches, those of one base circuit one after another."""
    found: dict[tuple[int, int], tuple[BaseCircuit, int]] = {}
    order: dict[int, None] = {}
    for each in passes:
        base = each.base_circuit
        receiver = graph.logits if not each.removed else _receiver(graph, each.removed[-1])
        _, count = found.get((id(base), receiver), (base, 0))
        found[id(base), receiver] = base, count + 1
        order[id(base)] = None
    return [
        Stretch(base, receiver, count)
        for number in order
        for (of, receiver), (base, count) in found.items()
        if of == number
    ]


def _receiver(graph: Graph, edge: int) -> int:
    return int(np.searchsorted(graph.offsets, edge, side="right")) - 1


class Workers:
    """Simulated workers: which base circuits each has, and how long its piece of a batch takes.

    Args:
        count: how many.
        costs: what they take.
    """

    def __init__(self, count: int, costs: Costs) -> None:
        self.count, self.costs = count, costs
        # Per worker, the base circuits of its last call with their parents; by id, held so that it is unique.
        self._held: list[dict[int, BaseCircuit]] = [{} for _ in range(count)]

    def cut(self, batch: Sequence[Stretch]) -> list[list[Stretch]]:
        """Cuts a batch into a piece per worker, in order; the slowest takes about as little as it can.

        Pieces may be empty: a piece is not worth a base circuit that takes longer than the rest.
        """
        if self.count == 1:
            return [list(batch)]
        most = self._seconds_of(batch, set())
        least, found = 0.0, [list(batch), *([] for _ in range(self.count - 1))]
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            pieces = self._fill(batch, middle)
            if pieces is None:
                least = middle
            else:
                most, found = middle, pieces
        return found

    def run(self, pieces: Sequence[Sequence[Stretch]]) -> tuple[list[float], list[tuple[BaseCircuit, float]]]:
        """Computes pieces, one per worker.

        Returns the seconds of each worker, and the base circuits that were computed with the seconds of each.
        """
        seconds: list[float] = []
        computed: list[tuple[BaseCircuit, float]] = []
        for worker, piece in enumerate(pieces):
            if not piece:
                seconds.append(0.0)
                continue
            held = self._held[worker]
            wanted: dict[int, BaseCircuit] = {}
            own = self.costs.worker_batch
            for stretch in piece:
                for base in _lineage(stretch.base):
                    if id(base) not in held and id(base) not in wanted:
                        computed.append((base, self.base_seconds(base, stretch.receiver)))
                        own += computed[-1][1]
                    wanted[id(base)] = base
                own += stretch.count * self.costs.passes[stretch.receiver]
            self._held[worker] = wanted
            seconds.append(float(own))
        return seconds, computed

    def base_seconds(self, base: BaseCircuit, receiver: int) -> float:
        """Returns the seconds of a base circuit whose first test is of a receiver."""
        if base.parent is None:
            return self.costs.scratch
        return float(self.costs.base_passes * self.costs.passes[receiver])

    def _seconds_of(self, batch: Sequence[Stretch], held: set[int]) -> float:
        """Returns the seconds of a piece on a worker that has some base circuits."""
        seconds, seen = 0.0, set(held)
        for stretch in batch:
            seconds += self._new_bases(stretch, seen) + stretch.count * float(
                self.costs.passes[stretch.receiver]
            )
            seen.update(id(base) for base in _lineage(stretch.base))
        return seconds

    def _new_bases(self, stretch: Stretch, seen: set[int]) -> float:
        missing = (base for base in _lineage(stretch.base) if id(base) not in seen)
        return sum(self.base_seconds(base, stretch.receiver) for base in missing)

    def _fill(self, batch: Sequence[Stretch], limit: float) -> list[list[Stretch]] | None:
        """Fills one worker after another with passes up to so many seconds; None if some passes are left."""
        left = list(reversed(batch))
        pieces: list[list[Stretch]] = []
        for worker in range(self.count):
            piece: list[Stretch] = []
            room, seen = limit, set(self._held[worker])
            while left:
                stretch = left[-1]
                bases, each = self._new_bases(stretch, seen), float(self.costs.passes[stretch.receiver])
                fits = min(stretch.count, int((room - bases) / each + 1e-9))
                if fits < 1:
                    break
                left.pop()
                piece.append(Stretch(stretch.base, stretch.receiver, fits))
                seen.update(id(base) for base in _lineage(stretch.base))
                room -= bases + fits * each
                if fits < stretch.count:
                    left.append(Stretch(stretch.base, stretch.receiver, stretch.count - fits))
                    break
            pieces.append(piece)
        return None if left else pieces


def _lineage(base: BaseCircuit) -> list[BaseCircuit]:
    """Returns a base circuit and its parents, the first parent first."""
    found: list[BaseCircuit] = []
    following: BaseCircuit | None = base
    while following is not None:
        found.append(following)
        following = following.parent
    return found[::-1]


class _Job:
    """A search that is under way.

    Args:
        search: not begun.
        scorer: of its passes.
        home: the worker that keeps its state.
    """

    def __init__(self, search: SimulatedSearch, scorer: Scorer, home: int) -> None:
        self.search, self._scorer, self.home = search, scorer, home
        self.pass_s: float | None = None  # what the pool believes that a pass takes
        self._steps = search.decide()
        self.passes: Sequence[PatchedPass] = next(self._steps, ())

    def learn(self, pass_s: float) -> None:
        """Notes what a pass took, its part of base circuits included, as the pool does."""
        self.pass_s = pass_s if self.pass_s is None else self.pass_s + NEWS * (pass_s - self.pass_s)

    def go_on(self, seconds: float) -> int:
        """Takes the scores of its passes after so many seconds, and returns how many of them were wasted."""
        wasted = self.search.counts["wasted"]
        self.search.seconds += seconds
        try:
            self.passes = self._steps.send(self._scorer(self.passes))
        except StopIteration:
            self.passes = ()
        return self.search.counts["wasted"] - wasted


def _placed(graph: Graph, jobs: Sequence[_Job], workers: int) -> list[list[Stretch]]:
    """Cuts a batch as the pool does; returns the piece of each worker."""
    loads = [
        Load(
            job.home,
            None if job.pass_s is None else job.pass_s * len(job.passes),
            len(job.passes),
            joints_of(job.passes),
            [worker for worker in range(workers) if worker != job.home],
        )
        for job in jobs
    ]
    placed = place(loads, dict.fromkeys(range(workers), 0.0), LEAST_S)
    return [
        [
            stretch
            for share in placed.get(worker, ())
            for stretch in stretches(graph, jobs[share.load].passes[share.first : share.last])
        ]
        for worker in range(workers)
    ]


def simulate(start: Circuit, effects: Sequence[NDArray[np.float64]], costs: Costs, setting: Setting) -> Run:
    """Runs searches for single edges on simulated workers, to their end.

    Args:
        start: the circuit where they start.
        effects: per job, delta / tau of every edge: [edges].
        costs: what parts take.
        setting: workers and jobs.

    Raises ValueError unless there are the effects of as many jobs as the setting says.
    """
    if len(effects) != setting.jobs:
        raise ValueError(f"there must be effects of {setting.jobs} jobs, got {len(effects)}")
    graph = start.graph
    piece = costs.head_piece_known if setting.sends_once else costs.head_piece
    jobs = [
        _Job(SimulatedSearch(start, setting), Scorer(each), number % setting.workers)
        for number, each in enumerate(effects)
    ]
    workers, spent, wall = Workers(setting.workers, costs), Spent(), 0.0
    # Those that some worker has computed, of the jobs' present and last base circuits.
    known: dict[int, BaseCircuit] = {}
    batches = passes = 0
    while running := [job for job in jobs if job.passes]:
        of_job = [stretches(graph, job.passes) for job in running]
        if setting.knows_bases:
            pieces = workers.cut([stretch for each in of_job for stretch in each])
        else:
            pieces = _placed(graph, running, setting.workers)
        seconds, computed = workers.run(pieces)
        count, calls = sum(len(job.passes) for job in running), sum(map(bool, pieces))
        head = costs.head_batch + costs.head_pass * count + piece * calls
        longest = max(seconds)
        took = max(head, longest) if setting.in_flight else head + longest
        wall, batches, passes = wall + took, batches + 1, passes + count
        for base, of_base in computed:
            if id(base) in known:
                spent.repeated_bases += of_base
            else:
                spent.bases += of_base
                known[id(base)] = base
        busy = sum(seconds)
        for job, own in zip(running, of_job, strict=True):
            job.learn(busy / count)
            cost = sum(stretch.count * float(costs.passes[stretch.receiver]) for stretch in own)
            number = len(job.passes)
            wasted = job.go_on(took * number / count) / number
            spent.used += cost * (1 - wasted)
            spent.wasted += cost * wasted
        spent.calls += costs.worker_batch * calls
        spent.waiting += setting.workers * longest - sum(seconds)
        spent.head += setting.workers * (took - longest)
        known = {id(base): base for each in of_job for stretch in each for base in _lineage(stretch.base)}
    verdicts = sum(len(job.search.verdicts) for job in jobs)
    return Run(wall, spent, batches, passes, verdicts)


# Numbers of workers, and of jobs that share the most of them.
WORKERS, MANY, JOBS = (1, 2, 4, 8, 16, 32, 64), (8, 64), 8
# What would make more of many workers, each together with those before it.
STEPS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "cut to single passes, by base circuits": {"knows_bases": True},
    "the cost model knows the workers": {"knows_workers": True},
    "circuits are sent once": {"sends_once": True},
    "both verdicts are assumed": {"both_verdicts": True},
}
IN_FLIGHT = "two batches in flight"


@dataclass(frozen=True)
class Case:
    """A run to simulate. The names say what it is compared with: the same device and jobs on one worker.

    Args:
        device: name in `costs.DEVICES`.
        step: name in `STEPS`, or `IN_FLIGHT` for all of them and that.
        setting: workers and jobs.
    """

    device: str
    step: str
    setting: Setting


def cases(devices: Sequence[str]) -> list[Case]:
    """Returns the runs of the tables, by device, jobs and step; those on one worker first."""
    found = []
    for device in devices:
        found += [Case(device, "as it is", Setting(workers)) for workers in WORKERS]
        options: dict[str, Any] = {}
        for step, option in STEPS.items():
            options |= option
            if option:
                found += [Case(device, step, Setting(workers, **options)) for workers in MANY]
        found += [Case(device, "as it is", Setting(workers, JOBS)) for workers in (1, WORKERS[-1])]
        found.append(Case(device, next(reversed(STEPS)), Setting(WORKERS[-1], JOBS, **options)))
        found.append(Case(device, IN_FLIGHT, Setting(WORKERS[-1], JOBS, in_flight=True, **options)))
    return found


def figures(case: Case, run: Run) -> dict[str, Any]:
    """Returns what is stored of a run."""
    return {
        "device": case.device,
        "step": case.step,
        "workers": case.setting.workers,
        "jobs": case.setting.jobs,
        "seconds": run.seconds,
        "batches": run.batches,
        "passes": run.passes,
        "verdicts": run.verdicts,
        "lost": {name: value / run.spent.total for name, value in vars(run.spent).items()},
    }
