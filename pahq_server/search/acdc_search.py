"""Running ACDC: hypotheses out, scores in, verdicts recorded.

Verdicts are sequential, but nearly always "remove". A step therefore asks for the scores of a chain of
tests at once, each of which assumes the predicted verdicts on those before it, and accepts them up to
the first surprise. Scores do not depend on the chain they were asked in, so neither do verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pahq_server.core.engine import Row
from pahq_server.core.graph import Graph
from pahq_server.core.verdict import SearchResult, Verdict
from pahq_server.search.acdc import Acdc, State, Test
from pahq_server.search.base import SearchProgress, SearchStatistics, Steps, endpoints

# Predicts whether the edges of a test will be kept.
Predictor = Callable[[Test], bool]


def predict_removal(test: Test) -> bool:
    return False


@dataclass(frozen=True)
class Link:
    """One test of a chain. ``anchored`` asks for the anchor's own score first."""

    state: State
    predicted: bool
    anchored: bool

    @property
    def rows(self) -> list[Row]:
        return [Row(self.state.anchor), self.state.row] if self.anchored else [self.state.row]


class Pace:
    """How long chains should be, from how often predictions fail.

    Longer chains share more work, but all that follows a surprise is wasted: with a surprise once in n
    tests and a batch's fixed cost worth two rows, the cost per verdict is least near length 2 sqrt(n).
    """

    MEMORY = 100  # tests after which an observation counts for 1/e

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._tests, self._surprises = 16.0, 1.0

    @property
    def length(self) -> int:
        return max(1, min(self._longest, round(2 * math.sqrt(self._tests / self._surprises))))

    def observe(self, tests: int, surprised: bool) -> None:
        fade = math.exp(-tests / self.MEMORY)
        self._tests = self._tests * fade + tests
        self._surprises = max(self._surprises * fade + surprised, 1e-3)


class AcdcSearch:
    """ACDC with speculation.

    Args:
        graph: the full graph.
        threshold: tau; an edge is removed iff its delta is below.
        gates: see `Acdc`.
        window: longest chain of tests per step; 1 is the plain sequential search.
        verdicts: decided earlier; the search goes on after them.
        predictor: of verdicts; a wrong prediction costs time, never correctness.
    """

    def __init__(
        self,
        graph: Graph,
        threshold: float,
        gates: bool,
        window: int = 1,
        verdicts: Sequence[Verdict] = (),
        predictor: Predictor = predict_removal,
    ) -> None:
        self.graph, self.threshold, self.window, self._predictor = graph, threshold, window, predictor
        self.verdicts = list(verdicts)
        self.statistics = SearchStatistics()
        self._acdc = Acdc(graph, gates)
        self._pace = Pace(window)
        self._state = self._acdc.start()
        self._kept = 0
        self._current = 0.0
        # Whether ``_current`` is the score of the current circuit under the current anchor. A log that
        # ends within a turn tells that score only if it removed something there: else it is measured again.
        self._measured = False
        for verdict in verdicts:
            self._apply(verdict)

    def run(self) -> Steps:
        while self._state.test is not None:
            chain = self._chain()
            rows = [row for link in chain for row in link.rows]
            scores = yield rows
            decided = len(self.verdicts)
            used = self._accept(chain, scores)
            self._pace.observe(len(self.verdicts) - decided, surprised=used < len(rows))
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
        length = self._pace.length
        state, anchored = self._state, not self._measured
        while (test := state.test) is not None and len(chain) < length:
            chain.append(Link(state, self._predictor(test), anchored))
            state = self._acdc.advance(state, chain[-1].predicted)
            anchored = state.position == 0
        return chain

    def _accept(self, chain: list[Link], scores: Sequence[float]) -> int:
        """Records verdicts up to and including the first surprise; returns how many rows that took."""
        used = 0
        for link in chain:
            if link.anchored:
                self._current, self._measured = scores[used], True
            used += len(link.rows)
            verdict = self._judge(link.state, scores[used - 1])
            self.verdicts.append(verdict)
            self._apply(verdict)
            if verdict.kept != link.predicted:
                break
        return used

    def _judge(self, state: State, score: float) -> Verdict:
        test = state.tests[state.position]
        delta = score - self._current
        return Verdict(test.gate, test.index, score, delta, kept=not delta < self.threshold)

    def _apply(self, verdict: Verdict) -> None:
        self._kept += verdict.kept and not verdict.gate
        if not verdict.kept:
            self._current, self._measured = verdict.score, True
        self._state = self._acdc.advance(self._state, verdict.kept)
        if self._state.position == 0:
            self._measured = False

    def _scores(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        scores = np.full(self.graph.num_edges, np.nan)
        for verdict in self.verdicts:
            if not verdict.gate:
                scores[verdict.index] = verdict.delta
        return scores
