"""ACDC's search: asks for the scores of tests, and turns them into verdicts.

Verdicts are sequential, but nearly always "remove". A step therefore asks for the scores of a chain of
tests at once, each of which assumes the predicted verdicts on those before it, and accepts them up to
the first surprise. Scores do not depend on the chain they were asked in, so neither do verdicts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pahq_server.core.artifact import Progress
from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.methods.acdc.order import State, Test, TestOrder
from pahq_server.methods.acdc.speculation import CostModel, KeepPredictor
from pahq_server.methods.circuits import SearchSteps, endpoints, new_counts, search_progress
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


@dataclass(frozen=True)
class SpeculatedTest:
    """One test of a chain.

    Args:
        state: before the test, if all predictions before it are right.
        predicted: whether the edges of the test are predicted to be kept.
        baseline: the pass that measures the current circuit; None if the score of that is known by then.
    """

    state: State
    predicted: bool
    baseline: PatchedPass | None

    @property
    def passes(self) -> list[PatchedPass]:
        """The passes that the test needs: its baseline, if it has one, and the circuit under test."""
        tested = self.state.patched_pass
        return [tested] if self.baseline is None else [self.baseline, tested]


class AcdcSearch:
    """ACDC with speculation.

    Args:
        graph: the full graph.
        threshold: tau; an edge is removed iff its delta is below.
        gates: see `TestOrder`.
        window: longest chain of tests per step; 1 is the plain sequential search.
        verdicts: decided earlier; the search goes on after them.
        predictor: predicts verdicts; a wrong prediction costs time, never correctness.
        clock: seconds; steers how much is speculated, never a verdict.
        baseline_depends_on_promotion: see `ResolvedObjective`.
    """

    def __init__(
        self,
        graph: Graph,
        threshold: float,
        gates: bool,
        window: int = 1,
        verdicts: Sequence[Verdict] = (),
        predictor: Predictor = predict_removal,
        clock: Callable[[], float] = time.perf_counter,
        baseline_depends_on_promotion: bool = False,
    ) -> None:
        self.graph, self.threshold, self.window, self._predictor = graph, threshold, window, predictor
        self.verdicts = list(verdicts)
        self.counts = new_counts()
        self._clock, self._baseline_depends_on_promotion = clock, baseline_depends_on_promotion
        self._order = TestOrder(graph, gates)
        self._costs, self._keep_predictor = CostModel(), KeepPredictor(threshold)
        self._state = self._order.start()
        self._kept = 0
        self._current = 0.0
        # The promoted heads under which ``_current`` is the score of the current circuit, measured from the
        # present base circuit; None where that score is not known. A journal that ends within a group of
        # tests tells it only if edges were removed there: else it is measured again.
        self._measured: PromotedHeads | None = None
        for verdict in verdicts:
            self._apply(verdict)

    def run(self) -> SearchSteps:
        """Yields the passes of one chain of tests at a time, then those of the endpoints."""
        while self._state.test is not None:
            chain = self._chain()
            passes = [each for speculated in chain for each in speculated.passes]
            started = self._clock()
            scores = yield passes
            new_bases = sum(speculated.state.has_new_base for speculated in chain)
            self._costs.took(len(passes), new_bases, self._clock() - started)
            used = self._accept(chain, scores)
            self.counts.update(batches=1, passes=len(passes), wasted=len(passes) - used)
        value, full, empty = yield endpoints(self.graph, self._state.circuit)
        return SearchResult(self._state.circuit, tuple(self.verdicts), value, full, empty)

    @property
    def circuit(self) -> Circuit:
        """All edges that are not removed by now."""
        return self._state.circuit

    def progress(self) -> Progress:
        """Says how many edges are decided; the metric is that of the current circuit."""
        removed = self.graph.num_edges - self._state.circuit.num_kept
        return search_progress(removed + self._kept, self._kept, self._current, len(self.verdicts))

    def _chain(self) -> list[SpeculatedTest]:
        """Returns the next tests, each assuming the predicted verdicts on those before it."""
        chain: list[SpeculatedTest] = []
        budget, state, measured = self._costs.budget(), self._state, self._measured
        while (test := state.test) is not None and len(chain) < self.window:
            heads = self._promoted_heads(state)
            baseline = None if heads == measured else self._baseline(state)
            speculated = SpeculatedTest(state, self._predictor(test), baseline)
            cost = self._costs.cost(len(speculated.passes), state.has_new_base)
            if not budget.pays(cost):
                break
            chain.append(speculated)
            budget.add(cost, self._risk(test, speculated.predicted))
            state = self._order.advance(state, speculated.predicted)
            measured = None if state.has_new_base else heads
        return chain

    def _risk(self, test: Test, predicted: bool) -> float:
        """Returns the probability that a prediction fails."""
        kept = self._keep_predictor.kept(*self._ends(test))
        return 1 - kept if predicted else kept

    def _accept(self, chain: list[SpeculatedTest], scores: Sequence[float]) -> int:
        """Records verdicts up to and including the first that was not predicted.

        Returns how many of the passes were used; the scores of the others are of no use.
        """
        used = 0
        for speculated in chain:
            if speculated.baseline is not None:
                self._current = scores[used]
                self._measured = self._promoted_heads(speculated.state)
            used += len(speculated.passes)
            verdict = self._judge(speculated.state, scores[used - 1])
            self.verdicts.append(verdict)
            self._apply(verdict)
            if verdict.kept != speculated.predicted:
                break
        return used

    def _ends(self, test: Test) -> tuple[int, int]:
        """Returns sender and receiver of a tested edge; gates count as edges of one sender of their own."""
        return (GATES, test.index) if test.gate else self.graph.edge_ends(test.index)

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

    def _judge(self, state: State, score: float) -> Verdict:
        test = state.tests[state.position]
        delta = score - self._current
        return Verdict(test.gate, test.index, score, delta, kept=not delta < self.threshold)

    def _apply(self, verdict: Verdict) -> None:
        test = self._state.tests[self._state.position]
        self._keep_predictor.decided(*self._ends(test), verdict.delta, verdict.kept)
        self._kept += verdict.kept and not verdict.gate
        if not verdict.kept:
            self._current = verdict.score
            self._measured = self._promoted_heads(self._state)
        self._state = self._order.advance(self._state, verdict.kept)
        if self._state.has_new_base:
            self._measured = None
