"""ACDC for a number of edges or a faithfulness: a short search for the threshold that leads there.

Every run at a threshold is ACDC from its beginning, with the same rules. What an earlier run tested after the
same verdicts is not tested again: runs share their beginnings up to the first verdict in which they differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from pahq_server.core.artifact import Progress
from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.errors import InvalidRequestError
from pahq_server.methods.acdc.search import AcdcSearch, TestedBranch
from pahq_server.methods.circuits import SearchSteps, endpoints, from_scratch, new_counts
from pahq_server.methods.verdicts import SearchResult, Verdict, is_measured_record, measured_record

# The most runs. Thresholds that differ by less than this factor are not told apart.
MOST_RUNS, FINEST = 12, 1.03
# What is close enough: this share of the wanted edges may be missing, and the faithfulness may be above the
# wanted one by so much.
MISSING_EDGES, SPARE_FAITHFULNESS = 0.02, 0.005
# Before both a too small and a too large threshold are known, the next one is so many times the last.
FARTHEST, NEAREST = 16.0, 1.5
# Between the two, the next threshold is no closer to either than this share of the way.
INNER = 0.1
# Thresholds below this share of the first one are taken for 0.
NOTHING = 1e-6


class ThresholdChoice:
    """Chooses the next threshold to try, from how far the last ones were off.

    The surplus of a threshold is above 0 if the threshold should be larger, below 0 if it should be smaller,
    and 0 if it is right; it falls about as the logarithm of the threshold rises.

    Args:
        first: the first threshold; at least 0.
        scale: a usual threshold, above 0.
    """

    def __init__(self, first: float, scale: float) -> None:
        self._next: float | None = first
        self._scale = scale
        self._runs = 0
        # The largest threshold that is too small, the smallest one that is too large, and their surpluses.
        self._small: tuple[float, float] | None = None
        self._large: tuple[float, float] | None = None
        self._last_side = 0  # how often the last thresholds in a row were too small (+) or too large (-)

    @property
    def next(self) -> float | None:
        """The next threshold; None at the end."""
        return self._next

    def tried(self, surplus: float) -> None:
        """Takes the surplus of `next`."""
        assert self._next is not None, "the choice is made"
        threshold, self._next = self._next, None
        self._runs += 1
        if surplus > 0:
            self._small = threshold, surplus
            self._last_side = max(self._last_side, 0) + 1
        elif surplus < 0:
            self._large = threshold, surplus
            self._last_side = min(self._last_side, 0) - 1
        if surplus != 0 and self._runs < MOST_RUNS:
            self._next = self._choose()

    def _choose(self) -> float | None:
        least = NOTHING * self._scale
        # The more often the last thresholds were off to one side, the farther the next one goes.
        nearest = NEAREST ** abs(self._last_side)
        if self._large is None:
            assert self._small is not None
            threshold, surplus = self._small
            return max(threshold, least) * min(max(math.exp(min(surplus, 99.0)), nearest), FARTHEST)
        high, surplus = self._large
        if self._small is None:
            if high == 0:
                return None
            lower = high * max(min(math.exp(surplus), 1 / nearest), 1 / FARTHEST)
            return lower if lower > least else 0.0
        low = max(self._small[0], least)
        if high <= low * FINEST:
            return None
        share = self._small[1] / (self._small[1] - surplus)
        if abs(self._last_side) > 1:
            share = 0.5  # one end does not move, so that the line between both is no good
        share = min(max(share, INNER), 1 - INNER)
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))


@dataclass(frozen=True)
class Target:
    """What a circuit should reach: exactly one of these.

    Args:
        edges: the most edges.
        faithfulness: the least faithfulness.
    """

    edges: int | None = None
    faithfulness: float | None = None

    def surplus(self, kept: int, faithfulness: float) -> float:
        """Returns the surplus of a run, see `ThresholdChoice`, from its circuit's size and faithfulness."""
        if self.edges is not None:
            if 0 <= self.edges - kept <= MISSING_EDGES * self.edges:
                return 0.0
            return math.log((kept + 0.5) / (self.edges + 0.5))
        assert self.faithfulness is not None
        spare = faithfulness - self.faithfulness
        if 0 <= spare <= SPARE_FAITHFULNESS:
            return 0.0
        lost, allowed = (max(1 - f, 0.0) + SPARE_FAITHFULNESS for f in (faithfulness, self.faithfulness))
        return math.log(allowed / lost) or math.copysign(1e-9, spare)

    def reached(self, surplus: float) -> bool:
        """Tells whether a run has what was asked for."""
        return surplus <= 0 if self.edges is not None else surplus >= 0


@dataclass(frozen=True)
class Run:
    """ACDC at one threshold, at its end.

    Args:
        threshold: tau.
        circuit: the kept edges.
        verdicts: in order of decision.
        value: the metric of the circuit.
        surplus: see `ThresholdChoice`.
    """

    threshold: float
    circuit: Circuit
    verdicts: tuple[Verdict, ...]
    value: float
    surplus: float


class TargetSearch:
    """Runs ACDC at several thresholds until one leads to what was asked for.

    Its journal holds everything that it asked for in order: the verdicts that it reached by tests of its own,
    and what it measured besides.

    Args:
        target: what the circuit should reach.
        start: the circuit where every run starts.
        search: makes a search of a threshold, with verdicts to recall and what was tested before; see
            `AcdcSearch`.
        records: the journal of earlier processes.
    """

    def __init__(
        self,
        target: Target,
        start: Circuit,
        search: Callable[[float, Iterator[Verdict], TestedBranch], AcdcSearch],
        records: Sequence[Verdict] = (),
    ) -> None:
        self.records = list(records)
        self.counts: Counter[str] = new_counts()
        self.runs: list[Run] = []
        self.current: AcdcSearch | None = None
        self._begun = 0  # runs
        self._target, self._start, self._search = target, start, search
        self._recorded, self._tested = iter(records), TestedBranch()

    @property
    def best(self) -> Run | None:
        """The run that is closest to what was asked for; None before the first one has ended.

        Of those that reach it, that with the smallest threshold for a number of edges, with the largest one
        for a faithfulness; if none does, the one that misses it least.
        """
        sign = 1 if self._target.edges is not None else -1
        reached = [run for run in self.runs if self._target.reached(run.surplus)]
        if reached:
            return min(reached, key=lambda run: sign * run.threshold)
        return min(self.runs, key=lambda run: abs(run.surplus), default=None)

    def run(self) -> SearchSteps:
        """Yields the passes of some tests at a time, and those that measure circuits between the runs."""
        graph = self._start.graph
        of_start, full, empty = yield from self._measured(endpoints(graph, self._start))
        gap = abs(full - empty)
        if self._target.faithfulness is not None and not gap:
            raise InvalidRequestError(
                "faithfulness",
                f"has no meaning here: the full model and the empty circuit measure the same, {full:g}. Give "
                "a threshold or a number of edges, or corrupted prompts that break the behaviour",
            )
        choice = self._choice(gap or 1.0)
        while (threshold := choice.next) is not None:
            search = self._search(threshold, self._recorded, self._tested)
            self.current, search.counts = search, self.counts
            self._begun += 1
            yield from self._decide(search)
            (value,) = yield from self._measured([from_scratch(search.circuit)])
            faithfulness = (value - empty) / (full - empty) if gap else math.nan
            surplus = self._target.surplus(search.circuit.num_kept, faithfulness)
            found = Run(threshold, search.circuit, tuple(search.verdicts), value, surplus)
            self.runs.append(found)
            choice.tried(surplus)
        self._begun = MOST_RUNS
        best = self.best
        assert best is not None, "there is at least one run"
        told = () if self._target.reached(best.surplus) else (self._missed(best, full, empty),)
        return SearchResult(
            *(best.circuit, best.verdicts, best.value, full, empty, best.threshold),
            chose_threshold=True,
            warnings=told,
            metric_start=None if self._start.num_kept == graph.num_edges else of_start,
        )

    def progress(self) -> Progress:
        """Says how many edges are decided, in all runs so far; the figures are those of the present run."""
        if self.current is None:
            return Progress(0, "endpoints")
        now = self.current.progress()
        done = (self._begun - 1) * self._start.graph.num_edges + now.done
        stage = f"run {self._begun} of at most {MOST_RUNS}"
        return Progress(done, stage, {**now.figures, "threshold": self.current.threshold})

    def _choice(self, gap: float) -> ThresholdChoice:
        """Begins with a threshold at which circuits of other tasks were about what is asked for."""
        edges, faithfulness = self._target.edges, self._target.faithfulness
        if edges is not None:
            first = 0.0 if edges >= self._start.num_kept else gap / (4 * edges)
        else:
            assert faithfulness is not None
            first = gap * (1 - faithfulness) / 20
        return ThresholdChoice(first, first or gap)

    def _decide(self, search: AcdcSearch) -> Generator[Sequence[PatchedPass], Sequence[float], None]:
        """Yields the passes of a run, and takes its verdicts to the journal before the next ones."""
        steps, recorded = search.decide(), len(search.verdicts)
        scores: Sequence[float] | None = None
        while True:
            try:
                passes = steps.send(scores)  # type: ignore[arg-type]
            except StopIteration:
                self.records += search.verdicts[recorded:]
                return
            self.records += search.verdicts[recorded:]
            recorded = len(search.verdicts)
            scores = yield passes

    def _measured(
        self, passes: Sequence[PatchedPass]
    ) -> Generator[Sequence[PatchedPass], Sequence[float], Sequence[float]]:
        """Returns scores: from the journal, or by yielding the passes."""
        found = [record for _ in passes if (record := next(self._recorded, None)) is not None]
        if not all(map(is_measured_record, found)):
            raise ValueError("the journal has a verdict where a metric was measured")
        if len(found) == len(passes):
            return [record.score for record in found]
        scores = yield passes
        self.counts.update(batches=1, passes=len(passes))
        self.records += [measured_record(score) for score in scores[len(found) :]]
        return scores

    def _missed(self, best: Run, full: float, empty: float) -> str:
        if self._target.edges is not None:
            return (
                f"No threshold that was tried leaves at most {self._target.edges} edges: this circuit has "
                f"{best.circuit.num_kept}, at threshold {best.threshold:.6g}. Give a threshold above that."
            )
        found = (best.value - empty) / (full - empty)
        return (
            f"No threshold that was tried leads to a faithfulness of {self._target.faithfulness:g}: that of "
            f"this circuit is {found:.3g}, at threshold {best.threshold:.6g}. "
            "Start from a circuit with more edges, or ask for less."
        )
