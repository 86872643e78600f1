"""The methods: each finds scores of all edges, or circuits, on a server, and tells what that cost."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.methods.server import Cost, MeasuredServer
from bench.methods.subjects import Subject
from pahq_client import Circuit, Client, EdgeScores

KL, LOGIT_DIFFERENCE = "kl_divergence", "logit_difference"
# Thresholds of a search, in units of the subject's: a curve needs circuits of many sizes.
LADDER = (16, 8, 4, 2, 1, 1 / 2, 1 / 4, 1 / 8)
# Those whose circuits of plain ACDC give the sizes at which all methods are compared.
COMPARED = (4, 1, 1 / 4)
PLAIN = "acdc, none"
# Gradients cost so little that single measurements are noisy.
REPEATS = 3
RANDOM_SEEDS = range(3)


@dataclass(frozen=True)
class Found:
    """What a method found for a subject.

    Args:
        cost: of the scores, or of the search at the subject's threshold.
        evaluations: circuits that were measured for it, or runs in which a gradient was taken.
        scores: of methods that score edges: one, or several draws whose figures are averaged.
        circuits: of methods that search: the circuits of `LADDER`.
        sized: of methods that search: circuits of at most the sizes that were asked for.
    """

    cost: Cost
    evaluations: int
    scores: tuple[EdgeScores, ...] = ()
    circuits: tuple[Circuit, ...] = ()
    sized: tuple[Circuit, ...] = ()

    @property
    def at_threshold(self) -> Circuit:
        """The circuit of a search at the subject's threshold."""
        return self.circuits[LADDER.index(1)]


class Finder(ABC):
    """A method with its arguments."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called."""

    def row(self, subject: Subject) -> str:
        """Returns the name of its figures in a subject's table."""
        return self.name

    @abstractmethod
    def find(self, server: MeasuredServer, subject: Subject, sizes: Sequence[int]) -> Found:
        """Finds scores or circuits.

        Args:
            server: has nothing else to do.
            subject: the model and the task.
            sizes: numbers of edges at which circuits are compared; empty for plain ACDC, whose circuits give
                them.
        """


@dataclass(frozen=True)
class Scoring(Finder):
    """A method that scores all edges.

    Args:
        method: its name for the client.
        metric: what the scores are about.
        gradients: runs in which it takes a gradient; None for a pass per edge.
    """

    method: str
    metric: str = LOGIT_DIFFERENCE
    gradients: int | None = 1

    @property
    def name(self) -> str:
        return self.method if self.metric == LOGIT_DIFFERENCE else f"{self.method} (KL)"

    def scores(self, client: Client, subject: Subject) -> EdgeScores:
        return client.attribute(subject.model, subject.prompts(), self.method, metric=self.metric)

    def find(self, server: MeasuredServer, subject: Subject, sizes: Sequence[int]) -> Found:
        repeats = 1 if self.gradients is None else REPEATS
        runs = [server.measured(lambda: self.scores(server.client, subject)) for _ in range(repeats)]
        scores = runs[0][0]
        return Found(
            _median([cost for _, cost in runs]), self.gradients or len(scores.scores), scores=(scores,)
        )


@dataclass(frozen=True)
class Search(Finder):
    """ACDC under the KL divergence.

    Args:
        grouping: what it tests at once.
        region: gives the scores of the edges that it starts from, and its cost and gradients count with those
            of the search; None to start from all edges.
    """

    grouping: str
    region: Scoring | None = None

    @property
    def name(self) -> str:
        return f"acdc, {self.grouping}" + (f" in {self.region.name}'s best" if self.region else "")

    def row(self, subject: Subject) -> str:
        if self.region is None:
            return self.name
        return f"acdc, {self.grouping} in {self.region.name}'s {self._share(subject):.0%}"

    def _share(self, subject: Subject) -> float:
        """How many of the edges it starts from, as a share of all."""
        return subject.gim_share if self.region == Scoring("gim") else subject.eap_ig_share

    def find(self, server: MeasuredServer, subject: Subject, sizes: Sequence[int]) -> Found:
        client, task = server.client, subject.prompts()
        within: Circuit | None = None

        def search(threshold: float | None, edges: int | None = None) -> Circuit:
            found = client.discover(
                *(subject.model, task, threshold),
                metric=KL,
                grouping=self.grouping,
                within=within,
                edges=edges,
            )
            assert isinstance(found, Circuit)
            return found

        def from_the_start() -> Circuit:
            nonlocal within
            if self.region:
                within = self.region.scores(client, subject).top(fraction=self._share(subject))
            return search(subject.threshold)

        at_threshold, cost = server.measured(from_the_start)
        ladder = {step: at_threshold if step == 1 else search(step * subject.threshold) for step in LADDER}
        sized = [search(None, size) for size in sizes] or [ladder[step] for step in COMPARED]
        gradients = (self.region.gradients if self.region else None) or 0
        return Found(
            cost,
            at_threshold.num_evaluations + gradients,
            circuits=tuple(ladder.values()),
            sized=tuple(sized),
        )


@dataclass(frozen=True)
class Chance(Finder):
    """Random scores: what any other method must beat."""

    @property
    def name(self) -> str:
        return "random"

    def find(self, server: MeasuredServer, subject: Subject, sizes: Sequence[int]) -> Found:
        pattern, _ = server.measured(lambda: server.client.attribute(subject.model, subject.prompts(), "eap"))
        draws = (np.random.default_rng(seed).standard_normal(len(pattern.scores)) for seed in RANDOM_SEEDS)
        scores = (EdgeScores(each, pattern.graph, self.name, pattern.metric) for each in draws)
        return Found(Cost(0.0, 0.0), 0, scores=tuple(scores))


FINDERS: tuple[Finder, ...] = (
    Search("none"),  # first: the others are compared with its circuits,
    Scoring("single_edge", KL, None),  # and with these scores
    Scoring("single_edge", LOGIT_DIFFERENCE, None),
    Search("gates"),
    Search("bisect"),
    Search("bisect", Scoring("gim")),
    Search("bisect", Scoring("eap_ig", KL, gradients=5)),
    Scoring("gim"),
    Scoring("eap_ig", gradients=5),
    Scoring("eap_ig", KL, gradients=5),
    Scoring("clean_corrupted", gradients=2),
    Scoring("relp"),
    Scoring("eap"),
    Chance(),
)


def _median(costs: Sequence[Cost]) -> Cost:
    middle: Callable[[list[float]], float] = statistics.median
    # The first run takes the memory that the others find.
    return Cost(middle([each.cpu_seconds for each in costs]), max(each.peak_mib for each in costs))
