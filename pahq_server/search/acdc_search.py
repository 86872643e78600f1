"""Running ACDC: hypotheses out, scores in, verdicts recorded.

Verdicts are sequential, but nearly always "remove". A step therefore asks for the scores of a chain of
tests at once, each of which assumes the predicted verdicts on those before it, and accepts them up to
the first surprise. Scores do not depend on the chain they were asked in, so neither do verdicts.
"""

from __future__ import annotations

import math
import time
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
    current: Row | None

    @property
    def rows(self) -> list[Row]:
        return [self.state.row] if self.current is None else [self.current, self.state.row]


class Pace:
    """How long chains should be, from how often predictions fail and what rows cost.

    Longer chains share more work, but all that follows a surprise is wasted. If every test is a surprise
    with probability p and a batch's fixed cost is worth c rows, the cost per verdict is least near length
    sqrt(2 c / p), where the expected number of surprises is sqrt(2 c p): that is a chain's budget. Senders
    differ in how often they surprise, and a test that probably will should be the last of its chain.
    Other jobs beside this one make its rows look dear, and its chains short: then the fixed cost is shared.
    """

    MEMORY = 100  # tests after which an observation counts for 1/e
    PRIOR = 4  # tests of a sender after which its own rate counts as much as that of all
    FIXED_S = 0.005  # what a batch costs beyond its rows, about
    MOST_ROWS = 0.5  # that the fixed cost is taken to be worth

    def __init__(self) -> None:
        self._tests, self._surprises = 16.0, 1.0
        self._of_sender: dict[int, tuple[int, int]] = {}
        self._row_s = 0.0

    @property
    def budget(self) -> float:
        """Expected surprises at which a chain ends."""
        fixed_rows = min(self.MOST_ROWS, self.FIXED_S / max(self._row_s, 1e-6))
        return math.sqrt(2 * fixed_rows * self._rate)

    @property
    def _rate(self) -> float:
        return self._surprises / self._tests

    def risk(self, sender: int) -> float:
        """Probability that the prediction for a test of this sender fails."""
        tests, surprises = self._of_sender.get(sender, (0, 0))
        return (surprises + self.PRIOR * self._rate) / (tests + self.PRIOR)

    def decided(self, sender: int, surprised: bool) -> None:
        """One verdict."""
        fade = math.exp(-1 / self.MEMORY)
        self._tests = self._tests * fade + 1
        self._surprises = max(self._surprises * fade + surprised, 1e-3)
        tests, surprises = self._of_sender.get(sender, (0, 0))
        self._of_sender[sender] = tests + 1, surprises + surprised

    def took(self, rows: int, seconds: float) -> None:
        """How long a batch took."""
        row_s = max(0.0, seconds - self.FIXED_S) / rows
        self._row_s += (row_s - self._row_s) / 4


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
        own_current: see `Prepared`.
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
        own_current: bool = False,
    ) -> None:
        self.graph, self.threshold, self.window, self._predictor = graph, threshold, window, predictor
        self.verdicts = list(verdicts)
        self.statistics = SearchStatistics()
        self._clock, self._own_current = clock, own_current
        self._acdc = Acdc(graph, gates)
        self._pace = Pace()
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
            self._pace.took(len(rows), self._clock() - started)
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
        risk, budget = 0.0, self._pace.budget
        state, measured = self._state, self._measured
        while (test := state.test) is not None and len(chain) < self.window and risk < budget:
            scene = self._scene(state)
            current = None if scene == measured else self._current_row(state)
            chain.append(Link(state, self._predictor(test), current))
            risk += self._pace.risk(self._sender(test))
            state = self._acdc.advance(state, chain[-1].predicted)
            measured = None if state.anchored else scene
        return chain

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
            surprised = verdict.kept != link.predicted
            self._pace.decided(self._sender(link.state.tests[link.state.position]), surprised)
            if surprised:
                break
        return used

    def _sender(self, test: Test) -> int:
        """The sender of a tested edge; gates count as one sender of their own."""
        return GATES if test.gate else self.graph.edge_ends(test.index)[0]

    def _scene(self, state: State) -> Scene:
        """What scores depend on besides the circuit: the heads under investigation, where they do."""
        own = state.row.own_receiver if self._own_current else None
        return () if own is None else self.graph.heads_behind(own)

    def _current_row(self, state: State) -> Row:
        """What measures the current circuit, to compare a test with."""
        if self._own_current:
            return Row(state.anchor, state.removed, state.row.own_receiver)
        # Nothing that counts was removed since: only edges into nodes that were dead already.
        return Row(state.anchor)

    def _judge(self, state: State, score: float) -> Verdict:
        test = state.tests[state.position]
        delta = score - self._current
        return Verdict(test.gate, test.index, score, delta, kept=not delta < self.threshold)

    def _apply(self, verdict: Verdict) -> None:
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
