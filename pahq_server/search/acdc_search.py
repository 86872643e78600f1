"""Running ACDC: hypotheses out, scores in, verdicts recorded.

Verdicts are sequential, but nearly always "remove". A step therefore asks for the scores of a chain of
tests at once, each of which assumes the predicted verdicts on those before it, and accepts them up to
the first surprise. Scores do not depend on the chain they were asked in, so neither do verdicts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pahq_server.core.engine import PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.verdict import SearchResult, Verdict
from pahq_server.search.acdc import Acdc, State, Test
from pahq_server.search.base import SearchProgress, SearchStatistics, Steps, endpoints
from pahq_server.search.pace import Pace, Strengths

# Predicts whether the edges of a test will be kept.
Predictor = Callable[[Test], bool]

# Heads, by sender index.
Scene = tuple[int, ...]

GATES = -1


def predict_removal(test: Test) -> bool:
    return False


@dataclass(frozen=True)
class Link:
    """One test of a chain. ``current`` asks for the score of the current circuit first."""

    state: State
    predicted: bool
    current: PatchedPass | None

    @property
    def rows(self) -> list[PatchedPass]:
        return [self.state.row] if self.current is None else [self.current, self.state.row]


class AcdcSearch:
    """ACDC with speculation.

    Args:
        graph: the full graph.
        threshold: tau; an edge is removed iff its delta is below.
        gates: see `Acdc`.
        window: longest chain of tests per step; 1 is the plain sequential search.
        verdicts: decided earlier; the search goes on after them.
        predictor: of verdicts; a wrong prediction costs time, never correctness.
        clock: seconds; steers how much is speculated, never a verdict.
        own_current: see `ResolvedObjective`.
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
        self.statistics = SearchStatistics()
        self._clock, self._own_current = clock, baseline_depends_on_promotion
        self._acdc = Acdc(graph, gates)
        self._pace, self._strengths = Pace(), Strengths(threshold)
        self._state = self._acdc.start()
        self._kept = 0
        self._current = 0.0
        # The `_scene` for which ``_current`` is the score of the current circuit under the current anchor, or
        # None. A log that ends within a turn tells that score only if it removed something there: else it
        # is measured again.
        self._measured: Scene | None = None
        for verdict in verdicts:
            self._apply(verdict)

    def run(self) -> Steps:
        while self._state.test is not None:
            chain = self._chain()
            rows = [row for link in chain for row in link.rows]
            started = self._clock()
            scores = yield rows
            new_anchors = sum(link.state.anchored for link in chain)
            self._pace.took(len(rows), new_anchors, self._clock() - started)
            used = self._accept(chain, scores)
            self.statistics.batches += 1
            self.statistics.rows += len(rows)
            self.statistics.wasted += len(rows) - used
        value, full, empty = yield endpoints(self.graph, self._state.circuit)
        return SearchResult(self._state.circuit, self._scores(), tuple(self.verdicts), value, full, empty)

    def progress(self) -> SearchProgress:
        removed = self.graph.num_edges - self._state.circuit.num_kept
        return SearchProgress(removed + self._kept, self._kept, self._current)

    def _chain(self) -> list[Link]:
        """The next tests, each assuming the predicted verdicts on those before it."""
        chain: list[Link] = []
        bet, state, measured = self._pace.bet(), self._state, self._measured
        while (test := state.test) is not None and len(chain) < self.window:
            scene = self._scene(state)
            current = None if scene == measured else self._current_row(state)
            link = Link(state, self._predictor(test), current)
            cost = self._pace.cost(len(link.rows), state.anchored)
            if not bet.pays(cost):
                break
            chain.append(link)
            bet.add(cost, self._risk(test, link.predicted))
            state = self._acdc.advance(state, link.predicted)
            measured = None if state.anchored else scene
        return chain

    def _risk(self, test: Test, predicted: bool) -> float:
        """Probability that a prediction fails."""
        kept = self._strengths.kept(*self._ends(test))
        return 1 - kept if predicted else kept

    def _accept(self, chain: list[Link], scores: Sequence[float]) -> int:
        """Records verdicts up to and including the first surprise; returns how many rows that took."""
        used = 0
        for link in chain:
            if link.current is not None:
                self._current = scores[used]
                self._measured = self._scene(link.state)
            used += len(link.rows)
            verdict = self._judge(link.state, scores[used - 1])
            self.verdicts.append(verdict)
            self._apply(verdict)
            if verdict.kept != link.predicted:
                break
        return used

    def _ends(self, test: Test) -> tuple[int, int]:
        """Sender and receiver of a tested edge; gates count as edges of one sender of their own."""
        return (GATES, test.index) if test.gate else self.graph.edge_ends(test.index)

    def _scene(self, state: State) -> Scene:
        """What scores depend on besides the circuit: the heads under investigation, where they do."""
        own = state.row.promoted_receiver if self._own_current else None
        return () if own is None else self.graph.heads_behind(own)

    def _current_row(self, state: State) -> PatchedPass:
        """What measures the current circuit, to compare a test with."""
        if self._own_current:
            return PatchedPass(state.base_circuit, state.removed, state.row.promoted_receiver)
        # Nothing that counts was removed since: only edges into nodes that were dead already.
        return PatchedPass(state.base_circuit)

    def _judge(self, state: State, score: float) -> Verdict:
        test = state.tests[state.position]
        delta = score - self._current
        return Verdict(test.gate, test.index, score, delta, kept=not delta < self.threshold)

    def _apply(self, verdict: Verdict) -> None:
        test = self._state.tests[self._state.position]
        self._strengths.decided(*self._ends(test), verdict.delta, verdict.kept)
        self._kept += verdict.kept and not verdict.gate
        if not verdict.kept:
            self._current = verdict.score
            self._measured = self._scene(self._state)
        self._state = self._acdc.advance(self._state, verdict.kept)
        if self._state.anchored:
            self._measured = None

    def _scores(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        scores = np.full(self.graph.num_edges, np.nan)
        for verdict in self.verdicts:
            if not verdict.gate:
                scores[verdict.index] = verdict.delta
        return scores
