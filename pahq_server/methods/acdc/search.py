"""ACDC's search: asks for the scores of tests, and turns them into verdicts.

Verdicts are sequential, each test depends on those before it. A step therefore asks at once for the scores of
tests that will probably be made, each of which assumes verdicts on those before it, and accepts them along
the path that the verdicts take. Scores do not depend on what they were asked with, so neither do verdicts.

Single edges and gates are nearly always removed: a step asks for a chain of them, which assumes the predicted
verdicts. Of a group either verdict may come: a step asks for a tree. So does one that several workers share.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import TypeAlias

from pahq_server.core.artifact import Progress
from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.order import Grouping, State, Test, TestOrder
from pahq_server.methods.acdc.speculation import CostModel, GroupPredictor, KeepPredictor
from pahq_server.methods.circuits import SearchSteps, endpoints, from_scratch, new_counts, search_progress
from pahq_server.methods.verdicts import SearchResult, Verdict

# Predicts whether the edges of a test will be kept.
Predictor = Callable[[Test], bool]

# Heads that run in full precision, by sender index.
PromotedHeads: TypeAlias = tuple[int, ...]

# `KeepPredictor` learns by sender. All gates count as edges of this one.
GATES = -1


def predict_removal(test: Test) -> bool:
    """Predicts that no edge is kept."""
    return False


@dataclass(slots=True)
class TestedBranch:
    """What is known of the tests after some verdicts, whatever the threshold.

    The first test has a score and a delta, which no threshold changes; the threshold says which verdict that
    makes, and so which test comes next. Searches at several thresholds share what they have tested.

    Args:
        score, delta: of the first test; None if it was not made.
        after_keeping, after_removal: what is known after either verdict on it.
    """

    __test__ = False

    score: float | None = None
    delta: float = 0.0
    after_keeping: TestedBranch | None = None
    after_removal: TestedBranch | None = None

    def tested(self, score: float, delta: float, kept: bool) -> TestedBranch:
        """Notes the first test; returns what is known after the verdict on it."""
        self.score, self.delta = score, delta
        following = self.after_keeping if kept else self.after_removal
        if following is None:
            following = TestedBranch()
            if kept:
                self.after_keeping = following
            else:
                self.after_removal = following
        return following


@dataclass(eq=False)
class SpeculatedTest:
    """One test that a step asks for.

    Args:
        state: before the test, if all verdicts before it are as assumed.
        baseline: the pass that measures the current circuit; None if the score of that is known by then.
        first: the number of its first pass in the step.
        after: the tests that assume a verdict on this one, by whether it is kept.
    """

    state: State
    baseline: PatchedPass | None
    first: int
    after: dict[bool, SpeculatedTest] = field(default_factory=dict)

    @cached_property
    def passes(self) -> list[PatchedPass]:
        """The passes that the test needs: its baseline and the circuit under test, unless these are known."""
        tested = [] if self.state.tests[0].has_parents_score else [self.state.patched_pass]
        return tested if self.baseline is None else [self.baseline, *tested]


class AcdcSearch:
    """ACDC with speculation.

    Args:
        graph: the full graph.
        threshold: tau; edges are removed iff their delta is below.
        grouping: what is tested at once, see `order`.
        window: the most tests per step; 1 is the plain sequential search.
        verdicts: decided earlier; the search goes on after them. As many are taken as it needs.
        predictor: predicts verdicts on single edges and gates; a wrong prediction costs time, never
            correctness.
        clock: seconds; steers how much is speculated, never a verdict.
        workers: returns how many workers share a step; steers the same.
        baseline_depends_on_promotion: see `ResolvedObjective`.
        start: the circuit where the search starts; None for the full graph.
        tested: what searches of the same job at other thresholds have tested. This one adds its tests.

    Raises ValueError for verdicts of another search.
    """

    def __init__(
        self,
        graph: Graph,
        threshold: float,
        grouping: Grouping,
        window: int = 1,
        verdicts: Iterable[Verdict] = (),
        predictor: Predictor = predict_removal,
        clock: Callable[[], float] = time.perf_counter,
        workers: Callable[[], int] = lambda: 1,
        baseline_depends_on_promotion: bool = False,
        start: Circuit | None = None,
        tested: TestedBranch | None = None,
    ) -> None:
        self.graph, self.threshold, self.window, self._predictor = graph, threshold, window, predictor
        self.verdicts: list[Verdict] = []
        self.counts = new_counts()
        self._clock, self._baseline_depends_on_promotion = clock, baseline_depends_on_promotion
        self._order, self._grouping = TestOrder(graph, grouping, start), grouping
        self._start = None if start is None or start.num_kept == graph.num_edges else start
        self._costs, self._keep_predictor = CostModel(workers), KeepPredictor(threshold)
        self._group_predictor = GroupPredictor(threshold)
        # What was found for the larger groups that the present test is a part of, by first edge and size.
        self._deltas: dict[tuple[int, int], float] = {}
        self._state = self._order.start()
        self._kept = 0
        self._current = 0.0
        # The promoted heads under which ``_current`` is the score of the current circuit, measured from the
        # present base circuit; None where that score is not known. A journal that ends within a group of
        # tests tells it only if edges were removed there: else it is measured again.
        self._measured: PromotedHeads | None = None
        self._branch = tested
        self._recall(verdicts)

    @property
    def records(self) -> list[Verdict]:
        """The verdicts: the journal holds nothing else."""
        return self.verdicts

    def run(self) -> SearchSteps:
        """Yields the passes of some tests at a time, then those of the endpoints."""
        yield from self.decide()
        start = [] if self._start is None else [from_scratch(self._start)]
        value, full, empty, *of_start = yield [*endpoints(self.graph, self.circuit), *start]
        return SearchResult(
            self.circuit,
            tuple(self.verdicts),
            *(value, full, empty, self.threshold),
            metric_start=of_start[0] if of_start else None,
        )

    def decide(self) -> Generator[Sequence[PatchedPass], Sequence[float], None]:
        """Yields the passes of some tests at a time, until all edges are decided."""
        while (test := self._state.test) is not None:
            if test.has_parents_score and self._measured == self._promoted_heads(self._state):
                self._apply_parents_score()
                continue
            root, passes, new_bases = self._speculate()
            started = self._clock()
            scores = yield passes
            self._costs.took(len(passes), new_bases, self._clock() - started)
            used = self._accept(root, scores)
            self.counts.update(batches=1, passes=len(passes), wasted=len(passes) - used)

    @property
    def circuit(self) -> Circuit:
        """All edges that are not removed by now."""
        return self._state.circuit

    @property
    def decided(self) -> int:
        """How many edges are removed or kept for good."""
        return self.graph.num_edges - self._state.circuit.num_kept + self._kept

    def progress(self) -> Progress:
        """Says how many edges are decided; the metric is that of the current circuit."""
        return search_progress(self.decided, self._kept, self._current, len(self.verdicts))

    def _recall(self, verdicts: Iterable[Verdict]) -> None:
        """Accepts the verdicts that follow from what was tested before: at other thresholds, or earlier."""
        recorded = iter(verdicts)
        while (test := self._state.test) is not None:
            branch = self._branch
            if branch is not None and branch.score is not None:
                self._apply(branch.score, branch.delta)
                continue
            record = next(recorded, None)
            if record is None:
                return
            if (record.gate, record.index) != (test.gate, test.index):
                raise ValueError(f"a verdict is on {record.index}, the next test is of {test.index}")
            self._apply(record.score, record.delta)

    def _speculate(self) -> tuple[SpeculatedTest, list[PatchedPass], int]:
        """Chooses the tests to ask for: those that will most probably be made, as long as that pays.

        Returns the first one, the passes of all, and how many of their base circuits are new.
        """
        passes: list[PatchedPass] = []
        budget, new_bases, tests, order = self._costs.budget(), 0, 0, count()
        root: SpeculatedTest | None = None
        # By probability: what a test assumes, and whether the score of the current circuit is known then.
        pending: list[tuple[float, int, State, bool | None, SpeculatedTest | None, PromotedHeads | None]]
        pending = [(-1.0, next(order), self._state, None, None, self._measured)]
        while pending and tests < self.window:
            chance, _, state, assumed, before, measured = heapq.heappop(pending)
            if assumed is not None:
                state = self._order.advance(state, assumed)
                measured = None if state.has_new_base else measured
            if state.test is None:
                continue
            heads = self._promoted_heads(state)
            speculated = SpeculatedTest(
                state, None if heads == measured else self._baseline(state), len(passes)
            )
            needed = speculated.passes
            cost = self._costs.cost(len(needed), state.has_new_base) if needed else 0.0
            if root is None:
                root = speculated
            elif not budget.pays(cost, -chance):
                break
            if before is not None and assumed is not None:
                before.after[assumed] = speculated
            budget.add(cost, -chance, len(needed))
            passes += needed
            new_bases += state.has_new_base
            tests += 1
            for kept, likely in self._verdicts_to_assume(state.test):
                heapq.heappush(pending, (chance * likely, next(order), state, kept, speculated, heads))
        assert root is not None, "the search is not at its end"
        return root, passes, new_bases

    def _verdicts_to_assume(self, test: Test) -> list[tuple[bool, float]]:
        """Returns verdicts on a test after which others are speculated, each with its probability."""
        if self._grouping == "bisect":
            kept = self._group_predictor.kept(*self._group(test))
            return [(True, kept), (False, 1 - kept)]
        predicted, kept = self._predictor(test), self._keep_predictor.kept(*self._ends(test))
        likely = {True: kept, False: 1 - kept}
        # Where edges are kept, chains are short: workers that would be idle test what follows otherwise.
        assumed = (predicted, not predicted) if self._costs.shared else (predicted,)
        return [(verdict, likely[verdict]) for verdict in assumed]

    def _accept(self, root: SpeculatedTest, scores: Sequence[float]) -> int:
        """Records the verdicts up to and including the first after which no test was speculated.

        Returns how many of the passes were used; the scores of the others are of no use.
        """
        used, speculated = 0, root
        while True:
            state, first = speculated.state, speculated.first
            if speculated.baseline is not None:
                self._current = scores[first]
                self._measured = self._promoted_heads(state)
            used += len(speculated.passes)
            if state.tests[0].has_parents_score:
                kept = self._apply_parents_score(speculated)
            else:
                score = scores[first + len(speculated.passes) - 1]
                kept = self._apply(score, score - self._current, speculated)
            following = speculated.after.get(kept)
            if following is None:
                return used
            speculated = following

    def _ends(self, test: Test) -> tuple[int, int]:
        """Returns sender and receiver of a tested edge; gates count as edges of one sender of their own."""
        return (GATES, test.index) if test.gate else self.graph.edge_ends(test.index)

    def _group(self, test: Test) -> tuple[int, int, float | None]:
        """Returns what `GroupPredictor` is told of a group."""
        if test.parent is None:
            return 0, len(test.edges), None
        whole = self._deltas.get(_key(test.parent))
        if test.sibling is None:
            return 1, len(test.edges), None if whole is None else whole / 2
        sibling = self._deltas.get(_key(test.sibling))
        return 2, len(test.edges), None if whole is None or sibling is None else whole - sibling

    def _promoted_heads(self, state: State) -> PromotedHeads:
        """Returns the heads that are promoted in the next test, if scores depend on that; else ()."""
        promotes = self._baseline_depends_on_promotion
        receiver = state.patched_pass.promoted_receiver if promotes else None
        return () if receiver is None else self.graph.heads_behind(receiver)

    def _baseline(self, state: State) -> PatchedPass:
        """Returns what measures the current circuit, to compare a test with."""
        if self._baseline_depends_on_promotion:
            return PatchedPass(state.base_circuit, state.removed, state.patched_pass.promoted_receiver)
        # Nothing that counts was removed since: only edges into nodes that were dead already.
        return PatchedPass(state.base_circuit)

    def _apply_parents_score(self, speculated: SpeculatedTest | None = None) -> bool:
        """Decides a second half whose sibling went, by the verdict that came before the sibling's."""
        score = self.verdicts[-2].score
        return self._apply(score, score - self._current, speculated)

    def _apply(self, score: float, delta: float, speculated: SpeculatedTest | None = None) -> bool:
        """Decides the next test, and returns whether its edges are kept.

        ``speculated`` is that test, if it was speculated: what follows then has base circuits that are known.
        """
        state, test = self._state, self._state.tests[0]
        kept = not delta < self.threshold
        group = (test.edges[-1], len(test.edges)) if test.is_group else ()
        self.verdicts.append(Verdict(test.gate, test.index, score, delta, kept, *group))
        if self._branch is not None:
            self._branch = self._branch.tested(score, delta, kept)
        if self._grouping == "bisect":
            self._group_predictor.decided(*self._group(test), kept)
            if test.parent is None:
                self._deltas.clear()
            self._deltas[_key(test)] = delta
        else:
            self._keep_predictor.decided(*self._ends(test), delta, kept)
        self._kept += kept and not test.gate and not test.is_group
        if not kept:
            self._current = score
            self._measured = self._promoted_heads(state)
        following = None if speculated is None else speculated.after.get(kept)
        self._state = self._order.advance(state, kept) if following is None else following.state
        if self._state.has_new_base:
            self._measured = None
        return kept


def _key(test: Test) -> tuple[int, int]:
    return test.index, len(test.edges)
