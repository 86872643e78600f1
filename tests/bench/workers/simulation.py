"""Searches on simulated workers: real searches ask for passes, of which only the time is made up.

The server's thread takes the scores of the jobs whose operation has ended, asks their methods for the next
passes, places them as the pool does, and makes the calls. Each worker has one call at a time, in which it
computes the base circuits that it lacks, and passes; what it is to do next waits for that. What workers spend
beyond passes whose scores are used is lost, and `Spent` says to what.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.workers.scores import Scorer
from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.order import Test, TestOrder
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.workers.dispatch import LEAST_S
from pahq_server.workers.placement import Load, bases_of, place
from pahq_server.workers.states import NEWS


@dataclass(frozen=True)
class Costs:
    """What parts of a search take, in seconds.

    Args:
        passes: of a patched pass, by the receiver under investigation: [receivers].
        base_passes: a base circuit that is computed from its parent takes as long as so many passes.
        scratch: of a base circuit without parent.
        worker_batch: of a call on its worker, beside base circuits and passes.
        head_batch: of a step of the server's thread: scheduler, journal, store.
        head_pass: of a pass in the server's thread: the search, and the pass as part of a message.
        head_piece: of a call in the server's thread and the driver's: its circuits as bytes, the call.
        head_piece_known: the same of a call whose circuits the worker has.
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
        waiting: for other workers.
        head: while the server's thread prepares something, or makes calls.
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
        knows_workers: whether the search knows how many workers share its passes; else it asks for as many as
            with one, all of them after the verdicts that it predicts.
        both_verdicts: whether tests are speculated after either verdict where several workers share a job;
            else after the predicted one.
        sends_once: whether circuits are sent to a worker once; else with every call.
    """

    workers: int
    jobs: int = 1
    window: int = 32
    knows_workers: bool = True
    both_verdicts: bool = True
    sends_once: bool = True


@dataclass(frozen=True)
class Run:
    """What a simulated run took.

    Args:
        seconds: wall time.
        spent: by the workers; its total is ``seconds`` times their number.
        batches: how many operations there were.
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
    """A search for single edges at the threshold 1, with the speculation that a setting asks for.

    Args:
        start: the circuit where it starts.
        setting: workers and jobs.
        running: returns how many jobs share the workers at present.
    """

    def __init__(self, start: Circuit, setting: Setting, running: Callable[[], int] = lambda: 1) -> None:
        self.seconds = 0.0  # of all workers together, as the server charges them
        self._both_verdicts = setting.both_verdicts

        def workers() -> int:
            return max(1, setting.workers // running()) if setting.knows_workers else 1

        window = setting.window * setting.workers
        super().__init__(
            start.graph, 1.0, "none", window, clock=lambda: self.seconds, workers=workers, start=start
        )
        self._order = _EveryTest(start.graph, "none", start)
        self._state = self._order.start()

    def _verdicts_to_assume(self, test: Test) -> list[tuple[bool, float]]:
        predicted, *other = super()._verdicts_to_assume(test)
        return [predicted, *other] if self._both_verdicts else [predicted]


@dataclass(frozen=True)
class Stretch:
    """Passes of an operation that follow each other and share base circuit and receiver.

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


def lineage(base: BaseCircuit) -> list[BaseCircuit]:
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
        # What the pool believes that a pass takes, and a base circuit.
        self.pass_s: float | None = None
        self.base_s = 0.0
        self.left = 0  # parts of the present operation that are not done
        # The base circuits of the present and of the last operation that some worker has computed, by id.
        self.computed: dict[int, BaseCircuit] = {}
        self._steps = search.decide()
        self.passes: Sequence[PatchedPass] = next(self._steps, ())

    def learn(self, passes: int, new_bases: int, seconds: float) -> None:
        """Notes what passes and the base circuits took that the worker lacked for them, as the pool does."""
        self.search.seconds += seconds
        if self.pass_s is None or not new_bases:
            pass_s = seconds / passes
            self.pass_s = pass_s if self.pass_s is None else self.pass_s + NEWS * (pass_s - self.pass_s)
        else:
            of_bases = max(0.0, seconds - passes * self.pass_s)
            self.base_s += NEWS * (of_bases / new_bases - self.base_s)

    def go_on(self) -> int:
        """Takes the scores of its passes, and returns how many of them were wasted."""
        wasted = self.search.counts["wasted"]
        used = {id(each.base_circuit): each.base_circuit for each in self.passes}
        self.computed = {id(base): base for each in used.values() for base in lineage(each)}
        try:
            self.passes = self._steps.send(self._scorer(self.passes))
        except StopIteration:
            self.passes = ()
        return self.search.counts["wasted"] - wasted


@dataclass(eq=False)
class _Fragment:
    """Some passes of an operation of a job, and what they will take, about.

    Args:
        new_bases: how many base circuits the worker lacks for them; known when it is called.
    """

    job: _Job
    passes: Sequence[PatchedPass]
    seconds: float
    new_bases: int = 0


class _Worker:
    """A worker, and what it is to do next."""

    def __init__(self) -> None:
        self.next: list[_Fragment] = []
        self.doing: list[_Fragment] = []
        self.begun = 0.0  # when it began what it does
        self.free = 0.0  # since when it does nothing
        # Per job, the base circuits of its last passes, with their parents; by id.
        self.held: defaultdict[_Job, dict[int, BaseCircuit]] = defaultdict(dict)

    def busy_s(self, now: float) -> float:
        """Returns how long it has to do, about."""
        left = sum(each.seconds for each in self.doing) - (now - self.begun) if self.doing else 0.0
        return max(0.0, left) + sum(each.seconds for each in self.next)


class _Simulation:
    """The server's thread and its workers. Times are seconds since the start.

    Args:
        jobs: begun, each with passes.
        costs: what parts take.
        setting: workers and jobs.
    """

    def __init__(self, jobs: Sequence[_Job], costs: Costs, setting: Setting) -> None:
        self._jobs, self._costs, self._setting = jobs, costs, setting
        self._graph = jobs[0].search.graph
        self._workers = [_Worker() for _ in range(setting.workers)]
        self._ends: list[tuple[float, int]] = []  # of calls, with their workers: a heap
        self._idle: list[tuple[float, float]] = []  # when workers did nothing
        self._serving: list[tuple[float, float]] = []  # when the server's thread did something
        self.spent, self.batches, self.passes, self.now = Spent(), 0, 0, 0.0

    def run(self) -> None:
        """Runs all jobs to their end."""
        ready = list(self._jobs)
        while ready or self._ends:
            self._step(ready)
            ready = self._wait()
            for job in ready:
                self._end_operation(job)
            ready = [job for job in ready if job.passes]
        self._idle += [(worker.free, self.now) for worker in self._workers]
        self._account()

    def _step(self, ready: Sequence[_Job]) -> None:
        """Begins operations of jobs."""
        begun = self.now
        count = sum(len(job.passes) for job in ready)
        self.now += self._costs.head_batch + self._costs.head_pass * count
        self._answers(self.now)
        self.batches, self.passes = self.batches + len(ready), self.passes + count
        for number, fragments in self._placed(ready).items():
            self._workers[number].next += fragments
            for fragment in fragments:
                fragment.job.left += 1
        for number in range(len(self._workers)):
            self.now = self._go_on(number, self.now)
        self._serving.append((begun, self.now))

    def _wait(self) -> list[_Job]:
        """Waits for an operation to be done; returns the jobs of those that are."""
        while not (done := self._done()):
            self.now = max(self.now, self._ends[0][0])
            self._answers(self.now)
        return done

    def _done(self) -> list[_Job]:
        return [job for job in self._jobs if job.passes and not job.left]

    def _answers(self, until: float) -> None:
        """Takes the answers of workers until some time; those whose jobs go on get what is next for them."""
        while self._ends and self._ends[0][0] <= until:
            end, number = heapq.heappop(self._ends)
            worker = self._workers[number]
            fragments, worker.doing, worker.free = worker.doing, [], end
            self._learn(fragments, end - worker.begun)
            for fragment in fragments:
                fragment.job.left -= 1
            # Jobs whose operations have ended are about to ask for more, to be computed with the rest.
            if all(fragment.job.left for fragment in fragments):
                self._serving.append((end, self._go_on(number, end)))

    def _learn(self, fragments: Sequence[_Fragment], seconds: float) -> None:
        """Divides the seconds of a call among its jobs, as the pool does."""
        known = [each.job.pass_s for each in fragments if each.job.pass_s is not None]
        usual = sum(known) / len(known) if known else 1.0
        expected = [
            len(each.passes) * usual
            if each.job.pass_s is None
            else len(each.passes) * each.job.pass_s + each.new_bases * each.job.base_s
            for each in fragments
        ]
        for each, part in zip(fragments, expected, strict=True):
            each.job.learn(len(each.passes), each.new_bases, seconds * part / sum(expected))

    def _placed(self, ready: Sequence[_Job]) -> dict[int, list[_Fragment]]:
        """Cuts operations as the pool does; returns what each worker gets."""
        homes = {job.home for job in ready}
        idle = [
            number
            for number, worker in enumerate(self._workers)
            if number not in homes and not worker.doing and not worker.next
        ]
        loads = [
            Load(
                job.home,
                job.pass_s,
                bases_of(job.passes),
                job.base_s,
                idle,
                {number: self._workers[number].held[job].keys() for number in (job.home, *idle)},
            )
            for job in ready
        ]
        busy = {number: worker.busy_s(self.now) for number, worker in enumerate(self._workers)}
        placed: dict[int, list[_Fragment]] = {}
        for number, shares in place(loads, busy, LEAST_S).items():
            for share in shares:
                job = ready[share.load]
                passes = job.passes[share.first : share.last]
                fragment = _Fragment(job, passes, share.seconds)
                placed.setdefault(number, []).append(fragment)
        return placed

    def _go_on(self, number: int, now: float) -> float:
        """Calls a worker that does nothing, if there is something for it. Returns when that is done."""
        worker, costs = self._workers[number], self._costs
        if worker.doing or not worker.next:
            return now
        worker.doing, worker.next = worker.next, []
        seconds, sent = costs.worker_batch, False
        for fragment in worker.doing:
            seconds += self._compute(worker, fragment)
            sent = sent or fragment.new_bases > 0
        known = self._setting.sends_once and not sent
        worker.begun = now + (costs.head_piece_known if known else costs.head_piece)
        self._idle.append((worker.free, worker.begun))
        self.spent.calls += costs.worker_batch
        heapq.heappush(self._ends, (worker.begun + seconds, number))
        return worker.begun

    def _compute(self, worker: _Worker, fragment: _Fragment) -> float:
        """Returns the seconds of a fragment; counts the base circuits that the worker lacked for it."""
        job, held = fragment.job, worker.held[fragment.job]
        wanted: dict[int, BaseCircuit] = {}
        seconds = 0.0
        for stretch in stretches(self._graph, fragment.passes):
            for base in lineage(stretch.base):
                if id(base) not in held and id(base) not in wanted:
                    fragment.new_bases += 1
                    seconds += self._compute_base(job, base, stretch.receiver)
                wanted[id(base)] = base
            seconds += stretch.count * float(self._costs.passes[stretch.receiver])
        worker.held[job] = wanted
        return seconds

    def _compute_base(self, job: _Job, base: BaseCircuit, receiver: int) -> float:
        """Returns the seconds of a base circuit whose first test is of a receiver."""
        costs = self._costs
        seconds = costs.scratch if base.parent is None else costs.base_passes * float(costs.passes[receiver])
        if id(base) in job.computed:
            self.spent.repeated_bases += seconds
        else:
            self.spent.bases += seconds
            job.computed[id(base)] = base
        return seconds

    def _end_operation(self, job: _Job) -> None:
        own, number = stretches(self._graph, job.passes), len(job.passes)
        cost = sum(stretch.count * float(self._costs.passes[stretch.receiver]) for stretch in own)
        wasted = job.go_on() / number
        self.spent.used += cost * (1 - wasted)
        self.spent.wasted += cost * wasted

    def _account(self) -> None:
        """Divides the time when workers did nothing by whether the server did something meanwhile."""
        begun, end = np.array(sorted(self._serving)).T
        end = np.maximum.accumulate(end)  # calls are also made while the server's thread works
        begun[1:] = np.maximum(begun[1:], end[:-1])
        served = np.stack([begun, end], axis=1)
        until_end = np.cumsum(end - begun)
        total = np.stack([until_end - (end - begun), until_end], axis=1)
        begun, end = np.array(self._idle).T
        until_begun, until_end = (np.interp(at, served.ravel(), total.ravel()) for at in (begun, end))
        self.spent.head = float((until_end - until_begun).sum())
        self.spent.waiting = float((end - begun).sum()) - self.spent.head


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
    jobs: list[_Job] = []

    def running() -> int:
        return sum(bool(job.passes) for job in jobs) if len(jobs) == setting.jobs else setting.jobs

    for number, each in enumerate(effects):
        search = SimulatedSearch(start, setting, running)
        jobs.append(_Job(search, Scorer(each), number % setting.workers))
    simulation = _Simulation(jobs, costs, setting)
    simulation.run()
    verdicts = sum(len(job.search.verdicts) for job in jobs)
    return Run(simulation.now, simulation.spent, simulation.batches, simulation.passes, verdicts)


# Numbers of workers, and of jobs that share the most of them.
WORKERS, MANY, JOBS = (1, 2, 4, 8, 16, 32, 64), (8, 64), 8
# The design as it is, and without one thing each.
AS_BUILT = "as built"
STEPS: dict[str, dict[str, Any]] = {
    "circuits are sent with every call": {"sends_once": False},
    "tests follow the predicted verdict alone": {"both_verdicts": False},
    "the search does not know the workers": {"knows_workers": False},
}


@dataclass(frozen=True)
class Case:
    """A run to simulate. The names say what it is compared with: the same device and jobs on one worker.

    Args:
        device: name in `costs.DEVICES`.
        step: `AS_BUILT` or a name in `STEPS`.
        setting: workers and jobs.
    """

    device: str
    step: str
    setting: Setting


def cases(devices: Sequence[str]) -> list[Case]:
    """Returns the runs of the tables, by device, jobs and step; those on one worker first."""
    found = []
    for device in devices:
        found += [Case(device, AS_BUILT, Setting(workers)) for workers in WORKERS]
        for step, options in STEPS.items():
            found += [Case(device, step, Setting(workers, **options)) for workers in MANY]
        found += [Case(device, AS_BUILT, Setting(workers, JOBS)) for workers in (1, *MANY)]
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
