"""Finding neurons that carry a value, as a method of jobs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from pahq_server.core.activations import (
    BIN_WIDTH,
    BINS,
    DescribeNeurons,
    NeuronDetails,
    NeuronSums,
    Span,
    SumNeurons,
    TopTokensOfNeurons,
    count_tokens,
    part_tokens,
    span_parts,
)
from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.operations import Operation
from pahq_server.methods.base import Method, MethodContext, Steps
from pahq_server.methods.neurons.artifact import KIND, VERSION, neuron_set_bytes
from pahq_server.methods.neurons.choice import ChosenNeurons, Described, choose, percentiles
from pahq_server.methods.neurons.journal import (
    CHECKPOINT_S,
    DETAILS,
    SUMS,
    Recorded,
    details_record,
    sums_record,
)
from pahq_server.methods.neurons.parameters import NeuronsParameters, check_objective

# Where a neuron is most active: so many tokens are named.
CONTEXTS = 5
# Fewer texts of a side say more of these texts than of the value.
FEW_TEXTS = 12
# Every text is run twice: for the sums, and to describe what was chosen by them.
RUNS = 2

R = TypeVar("R", NeuronSums, NeuronDetails)


class Neurons(Method[NeuronsParameters]):
    """Finds the neurons that are more often active in positive than in negative texts, and the others.

    The artifact is a neuron set. Its journal records are sums over parts of the texts (`journal`).
    """

    name, parameters, unit = "neurons", NeuronsParameters, "texts"
    needs_activations = ablates = False

    def stored(self, parameters: NeuronsParameters) -> dict[str, Any]:
        return {**vars(parameters), "starts": list(parameters.starts)}

    def read_stored(self, fields: Mapping[str, Any]) -> NeuronsParameters:
        return self.read({**fields, "starts": tuple(fields.get("starts", ()))})

    def described(self, parameters: NeuronsParameters) -> dict[str, object]:
        fields = dict(vars(parameters))
        del fields["starts"]
        return {**fields, "counted": parameters.counted}

    def check(self, parameters: NeuronsParameters, resolved: ResolvedObjective) -> None:
        check_objective(resolved)
        parameters.spans(resolved.task)

    def total(self, parameters: NeuronsParameters, resolved: ResolvedObjective) -> int:
        return RUNS * len(resolved.task.clean)

    def weight(self, parameters: NeuronsParameters, resolved: ResolvedObjective) -> float:
        return float(RUNS)

    def warnings(self, parameters: NeuronsParameters, resolved: ResolvedObjective) -> tuple[str, ...]:
        return tuple(_of_texts(parameters, resolved))

    def run(self, context: MethodContext[NeuronsParameters]) -> Steps:
        return (yield from _Run(context).steps())


class _Run:
    """One run of the method.

    Args:
        context: of the job.
    """

    def __init__(self, context: MethodContext[NeuronsParameters]) -> None:
        self._context, self._asked = context, context.parameters
        self._layout = check_objective(context.resolved)
        self._neurons = self._layout.layers * self._layout.d_mlp
        self._task_tokens = context.resolved.task.num_tokens
        self._spans = self._asked.spans(context.resolved.task)
        most = part_tokens(self._layout)
        self._parts = tuple(span_parts(spans, most) for spans in self._spans)
        self._recorded = Recorded.of(context.journal)
        self._since = context.clock()

    def steps(self) -> Steps:
        sums = []
        for side in (0, 1):
            sums.append((yield from self._sum(side)))
        asked = self._asked
        chosen = choose(sums[0], sums[1], asked.top_k, asked.min_delta)
        described = []
        for side in (0, 1):
            described.append((yield from self._describe(side, chosen[side])))
        self._tell(DETAILS[1], len(self._parts[1]))
        return self._artifact((described[0], described[1]), (sums[0].tokens, sums[1].tokens))

    def _sum(self, side: int) -> Generator[Operation, Any, NeuronSums]:
        stage = SUMS[side]
        found = yield from self._add_up(
            stage,
            self._parts[side],
            lambda spans: SumNeurons(spans, self._neurons, self._task_tokens),
            self._recorded.sums(stage, self._neurons),
            lambda done, sums: sums_record(stage, done, sums),
        )
        return found

    def _describe(self, side: int, chosen: ChosenNeurons) -> Generator[Operation, Any, Described]:
        count, stage = len(chosen.numbers), DETAILS[side]
        if not count:
            nothing = TopTokensOfNeurons(
                np.empty((0, CONTEXTS)), *(np.empty((0, CONTEXTS), np.int64) for _ in range(2))
            )
            return Described(chosen, np.empty(0), nothing)
        order = np.argsort(chosen.numbers)  # operations name neurons in increasing order
        numbers = chosen.numbers[order]
        found = yield from self._add_up(
            stage,
            self._parts[side],
            lambda spans: DescribeNeurons(spans, numbers, CONTEXTS, self._task_tokens),
            self._recorded.details(stage, count, CONTEXTS),
            lambda done, details: details_record(stage, done, details),
        )
        back = np.argsort(order)
        top = TopTokensOfNeurons(found.top.values[back], found.top.texts[back], found.top.positions[back])
        return Described(chosen, percentiles(found.histogram[back], chosen.silent), top)

    def _add_up(
        self,
        stage: int,
        parts: Sequence[Sequence[Span]],
        operation: Callable[[Sequence[Span]], Operation],
        known: tuple[int, R | None],
        record: Callable[[int, R], bytes],
    ) -> Generator[Operation, Any, R]:
        """Runs the parts that were not run, adds up what they give, and records that now and then.

        Args:
            stage: see `journal`.
            parts: of the texts.
            operation: returns what the engine is asked for a part.
            known: how many parts were run by earlier processes, and what they add up to.
            record: returns the record of the first parts.
        """
        done, added = known
        if done > len(parts) or (done > 0) != (added is not None):
            raise ValueError(f"the journal tells of {done} parts of {len(parts)}")
        while done < len(parts):
            self._tell(stage, done)
            found: R = yield operation(parts[done])
            added, done = found if added is None else added + found, done + 1
            self._context.count(tokens=count_tokens(parts[done - 1]))
            now = self._context.clock()
            if done == len(parts) or now - self._since >= CHECKPOINT_S:
                self._recorded.add(record(done, added))
                self._context.record(self._recorded.last(), alone=True)
                self._since = now
        assert added is not None
        return added

    def _tell(self, stage: int, parts: int) -> None:
        """Reports how many texts were run, in both runs together."""
        texts = [len(spans) for spans in self._spans]
        side = stage % 2
        done = sum(map(len, self._parts[side][:parts])) + (texts[0] if side else 0)
        if stage in DETAILS:
            done += sum(texts)
        words = "describing neurons" if stage in DETAILS else "counting active neurons"
        self._context.tell(Progress(done, f"{words} of {'negative' if side else 'positive'} texts"))

    def _artifact(self, sides: tuple[Described, Described], tokens: tuple[int, int]) -> Artifact:
        texts = len(self._spans[0]), len(self._spans[1])
        data = neuron_set_bytes(sides, self._asked, self._layout, texts, tokens)
        raised, lowered = (len(side.chosen.numbers) for side in sides)
        figures = {"raised": float(raised), "lowered": float(lowered)}
        return Artifact(KIND, VERSION, data, figures, tuple(_of_neurons(sides, self._asked)))


def _of_texts(parameters: NeuronsParameters, resolved: ResolvedObjective) -> Iterator[str]:
    """Yields what may mislead about the neurons, as far as the texts show it."""
    texts = resolved.task.clean
    sides = texts[: parameters.positive], texts[parameters.positive :]
    few = [
        f"{len(side)} {name}"
        for side, name in zip(sides, ("positive", "negative"), strict=True)
        if len(side) < FEW_TEXTS
    ]
    if few:
        yield (
            f"There are only {' and '.join(few)} texts: neurons may differ because of what these texts "
            f"happen to be about. Give at least {FEW_TEXTS} of each side."
        )
    both = len(set(sides[0]) & set(sides[1]))
    if both:
        yield (
            f"{both} texts are both positive and negative: they hide what differs. Give each text to one "
            "side only."
        )


def _of_neurons(sides: tuple[Described, Described], parameters: NeuronsParameters) -> Iterator[str]:
    """Yields what may mislead about the chosen neurons."""
    found = sum(len(side.chosen.numbers) for side in sides)
    if not found:
        yield (
            f"No neuron was found: none is active at {parameters.min_delta:g} more of the tokens of one "
            "side than of the other. Use texts that differ more, or a smaller min_delta."
        )
    for side, name in zip(sides, ("positive", "negative"), strict=True):
        if len(side.chosen.numbers) == parameters.top_k:
            yield (
                f"{parameters.top_k} neurons of the {name} texts were taken, and there may be more with a "
                "difference of min_delta. Use a larger top_k for all of them."
            )
    end = BIN_WIDTH * (BINS - 1)
    beyond = sum(int((side.q95 >= end).sum()) for side in sides)
    if beyond:
        yield (
            f"The 95th percentile of {beyond} of {found} neurons is above {end:g}, which is the most that is "
            f"told apart: {end:g} stands for it, and steering raises these neurons by less than it should. "
            "Use a larger strength if that is too little."
        )
