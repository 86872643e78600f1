"""Sets of neurons that carry a value: which are more active in positive, and which in negative texts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pahq_client import checks, files, neuron_set_file
from pahq_client.errors import InvalidNeuronSetFile, InvalidRequest, OtherModel
from pahq_client.formatting import count_warnings, one_line
from pahq_client.node_circuit import NodeOverlap
from pahq_client.results import WithProvenance, check_same_revision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pahq_client.task import Prompt

SIDES = ("positive", "negative")


@dataclass(frozen=True)
class TokenPlace:
    """A token at which a neuron is active.

    Args:
        text: number of the text among those of its side, from 0 on.
        position: of the token in its text, from 0 on.
        value: the activation.
    """

    text: int
    position: int
    value: float


@dataclass(frozen=True)
class NeuronContext:
    """A token at which a neuron is active, with its text as far as that is known.

    Args:
        text, position, value: see `TokenPlace`.
        prompt: the text, as it was given; None where the set does not hold its texts.
        before, token, after: the tokens as the vocabulary writes them; empty where they are not known.
    """

    text: int
    position: int
    value: float
    prompt: Prompt | None = None
    before: tuple[str, ...] = ()
    token: str = ""
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Neuron:
    """A neuron that carries a value.

    Args:
        layer, unit: the unit of the layer's MLP, both from 0 on.
        delta: share of the positive texts' tokens at which its activation is above 0, minus that of the
            negative texts'.
        positive_share, negative_share: these shares.
        mean: of its activation over the texts in which it is more active: positive ones where delta is above
            0, else negative ones.
        q95: 95th percentile of the same, from 0 to 3, see docs/methods.md.
        places: where it is most active in these texts, the most active first.
    """

    layer: int
    unit: int
    delta: float
    positive_share: float
    negative_share: float
    mean: float
    q95: float
    places: tuple[TokenPlace, ...] = ()

    @property
    def name(self) -> str:
        """Its name, such as ``m3.u17``, as that of a hidden unit in a `NodeCircuit`."""
        return f"m{self.layer}.u{self.unit}"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class NeuronEdit:
    """What steering does to activations at every token, before the product with a gated MLP's other factor.

    Raised neurons get ``a + amount``, lowered ones ``min(a, 0)``. Neurons go by number: layer * d_mlp + unit.

    Args:
        raised: int64, in increasing order.
        amounts: of each raised neuron: float64.
        lowered: int64, in increasing order.
    """

    raised: NDArray[np.int64]
    amounts: NDArray[np.float64]
    lowered: NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class NeuronSet(WithProvenance):
    """Neurons that carry a value (ValueLocate, arXiv:2505.17712), by how often they are active.

    Two sets are equal when their canonical bytes are.

    Args:
        layers: how many the model has.
        d_mlp: how many neurons each has.
        raised: the neurons that are more often active in positive texts, the largest delta first. Steering
            with a strength above 0 raises them.
        lowered: those that are more often active in negative texts, the smallest delta first.
        texts: how many positive and negative texts there were.
        tokens: how many of their tokens counted.
        counted: which: ``all``, ``last``, or a hash of where in each text the first is.
        top_k: the most neurons of a side that were asked for.
        min_delta: the least delta that was asked for, without its sign.
        prompts: positive and negative texts, as they were given; None where they are not known.
        token_texts: for each side, by the number of a text, its tokens as the vocabulary writes them, for
            texts in which a neuron is most active, as far as that is known.
        control: the seed of a random set that `matched_control` made; None for neurons that were located.
            Its neurons have the figures of the ones that they stand for.
        provenance: as that of a `Circuit`.
        partial: whether the job was cancelled or failed before its end.
    """

    layers: int
    d_mlp: int
    raised: tuple[Neuron, ...]
    lowered: tuple[Neuron, ...]
    texts: tuple[int, int]
    tokens: tuple[int, int]
    counted: str
    top_k: int
    min_delta: float
    prompts: tuple[tuple[Prompt, ...], tuple[Prompt, ...]] | None = None
    token_texts: tuple[Mapping[int, tuple[str, ...]], Mapping[int, tuple[str, ...]]] = ({}, {})
    control: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False

    def __len__(self) -> int:
        return len(self.raised) + len(self.lowered)

    def __iter__(self) -> Iterator[Neuron]:
        yield from self.raised
        yield from self.lowered

    @property
    def per_layer(self) -> tuple[tuple[int, int], ...]:
        """For each layer how many of its neurons are raised, and how many lowered."""
        counts = [[0, 0] for _ in range(self.layers)]
        for side, neurons in enumerate((self.raised, self.lowered)):
            for neuron in neurons:
                counts[neuron.layer][side] += 1
        return tuple((raised, lowered) for raised, lowered in counts)

    @checks.known_arguments
    def top(self, n: int) -> NeuronSet:
        """Returns the set with at most the first ``n`` neurons of each side: those that differ most.

        Raises:
            InvalidRequest: n is below 1.
        """
        count = checks.integer("n", n)
        if count < 1:
            raise InvalidRequest("n", f"must be an integer from 1 on, got {count}")
        return replace(self, raised=self.raised[:count], lowered=self.lowered[:count])

    def numbers(self, neurons: Sequence[Neuron]) -> NDArray[np.int64]:
        """Returns neurons by number, layer * d_mlp + unit: int64, in the order given."""
        import numpy as np

        return np.array([neuron.layer * self.d_mlp + neuron.unit for neuron in neurons], np.int64)

    @checks.known_arguments
    def contexts(self, neuron: Neuron) -> tuple[NeuronContext, ...]:
        """Returns where a neuron of the set is most active, the most active first.

        Args:
            neuron: one of ``raised`` or ``lowered``.

        Raises:
            InvalidRequest: it is none of these.
        """
        if not isinstance(neuron, Neuron):
            detail = f"must be a Neuron of the set, got {type(neuron).__name__}"
            raise InvalidRequest("neuron", detail)
        if neuron not in (self.raised if neuron.delta > 0 else self.lowered):
            raise InvalidRequest("neuron", f"{neuron.name} is none of the {len(self)} neurons of the set")
        return self.contexts_of(neuron)

    def contexts_of(self, neuron: Neuron) -> tuple[NeuronContext, ...]:
        """Does what `contexts` does, for a neuron that is known to be one of the set."""
        side = 0 if neuron.delta > 0 else 1
        return tuple(self._context(side, place) for place in neuron.places)

    def _context(self, side: int, place: TokenPlace) -> NeuronContext:
        prompt = None if self.prompts is None else self.prompts[side][place.text]
        told = self.token_texts[side].get(place.text, ())
        at = place.position
        if at >= len(told):
            return NeuronContext(place.text, at, place.value, prompt)
        return NeuronContext(place.text, at, place.value, prompt, told[:at], told[at], told[at + 1 :])

    @checks.known_arguments
    def edit(self, strength: float) -> NeuronEdit:
        """Returns what steering with a strength g does.

        Above 0, raised neurons get q95 * g * sigmoid(10 (delta - .15)) more, and what lowered ones have above
        0 is taken away. Below 0, it is what the `swapped` set does with -g. With 0, nothing is done.

        Raises:
            InvalidRequest: the strength is no finite number.
        """
        import numpy as np

        g = checks.number("strength", strength)
        if not math.isfinite(g):
            raise InvalidRequest("strength", f"must be a finite number, got {g:g}")
        if g < 0:
            return self.swapped().edit(-g)
        if g == 0:
            nothing = np.empty(0, np.int64)
            return NeuronEdit(nothing, np.empty(0), nothing)
        numbers = self.numbers(self.raised)
        order = np.argsort(numbers)
        delta, q95 = (np.array([getattr(each, name) for each in self.raised]) for name in ("delta", "q95"))
        amounts = q95 * g / (1 + np.exp(-10 * (delta - 0.15)))
        return NeuronEdit(numbers[order], amounts[order], np.sort(self.numbers(self.lowered)))

    def swapped(self) -> NeuronSet:
        """Returns the set that positive and negative texts give when they are exchanged."""
        return replace(
            self,
            raised=tuple(map(_turned, self.lowered)),
            lowered=tuple(map(_turned, self.raised)),
            texts=self.texts[::-1],
            tokens=self.tokens[::-1],
            prompts=None if self.prompts is None else self.prompts[::-1],
            token_texts=self.token_texts[::-1],
        )

    @checks.known_arguments
    def matched_control(self, seed: int) -> NeuronSet:
        """Returns a random set to compare with: of each layer as many others, to which the same is done.

        No neuron of this set is in it. Each neuron stands for one of this set, whose figures it has.

        Args:
            seed: the same seed gives the same neurons.

        Raises:
            InvalidRequest: the seed is negative, or a layer has too few other neurons.
        """
        import numpy as np

        number = checks.integer("seed", seed)
        if number < 0:
            raise InvalidRequest("seed", f"must be an integer from 0 on, got {number}")
        draw = np.random.default_rng(number)
        free = np.ones((self.layers, self.d_mlp), bool)
        for neuron in self:
            free[neuron.layer, neuron.unit] = False
        drawn: list[list[int]] = []
        for layer, counts in enumerate(self.per_layer):
            others = np.flatnonzero(free[layer])
            if len(others) < sum(counts):
                detail = (
                    f"no control can be drawn: layer {layer} has {sum(counts)} neurons of the set, and "
                    f"{len(others)} others. Make the set smaller with top()"
                )
                raise InvalidRequest("seed", detail)
            drawn.append(draw.choice(others, sum(counts), replace=False).tolist())

        def other(neuron: Neuron) -> Neuron:
            return replace(neuron, unit=drawn[neuron.layer].pop(), places=())

        raised, lowered = (tuple(map(other, neurons)) for neurons in (self.raised, self.lowered))
        return replace(self, raised=raised, lowered=lowered, token_texts=({}, {}), control=number)

    @checks.known_arguments
    def compare(self, other: NeuronSet, *, allow_other_model: bool = False) -> Mapping[str, NodeOverlap]:
        """Compares the neurons of two sets, of ``raised`` and of ``lowered``: this one is a, the other is b.

        Args:
            other: the other set.
            allow_other_model: whether they may be of different models of the same sizes.

        Raises:
            InvalidRequest: the other is no NeuronSet.
            OtherModel: they are of different models, and that is not allowed, or of other sizes.
        """
        if not isinstance(other, NeuronSet):
            hint = "; read a file with NeuronSet.load" if isinstance(other, str | os.PathLike) else ""
            raise InvalidRequest("other", f"must be a NeuronSet, got {type(other).__name__}{hint}")
        check_same_revision(self, other, checks.flag("allow_other_model", allow_other_model))
        if (self.layers, self.d_mlp) != (other.layers, other.d_mlp):
            raise OtherModel(self.model_revision, other.model_revision, "these are of models of other sizes")
        found = {}
        for side in ("raised", "lowered"):
            a, b = (set(map(str, getattr(each, side))) for each in (self, other))
            found[side] = NodeOverlap(len(a & b), len(a - b), len(b - a))
        return found

    @classmethod
    @checks.known_arguments
    def load(cls, path: str | os.PathLike[str], *, allow_partial: bool = False) -> NeuronSet:
        """Reads a file of a neuron set.

        Args:
            path: path of the file.
            allow_partial: whether to read what a job found that did not come to its end.

        Raises:
            InvalidNeuronSetFile: it is not such a file, is damaged or has an unknown version, or is partial
                without ``allow_partial``.
            InvalidRequest: the path is none.
            OSError: it cannot be read.
        """
        name = files.path_text("path", path)
        found = neuron_set_file.decode(files.read(path), name)
        if found.partial and not allow_partial:
            detail = "holds what a job found that did not come to its end. Pass allow_partial=True to use it"
            raise InvalidNeuronSetFile(name, f"{detail} anyway")
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the set to a file, whole or not at all: a safetensors file with its provenance.

        Raises:
            InvalidNeuronSetFile: the provenance holds what JSON cannot express.
            InvalidRequest: the path is none.
            OSError: it cannot be written.
        """
        files.write(path, neuron_set_file.encode(self, files.path_text("path", path)))

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes a page that shows the neurons with the tokens that make them active: one file, no scripts.

        Raises:
            InvalidRequest: the path is none, is that of a folder, or cannot be written to.
            OSError: the file cannot be written.
        """
        from pahq_client.display import neurons, page

        page.check_target("path", path)
        files.write(path, neurons.page(self).encode("utf-8"))

    def canonical_bytes(self) -> bytes:
        """The file without ``provenance.run``: equal for two equal jobs on the same hardware.

        Raises:
            InvalidNeuronSetFile: the provenance holds what JSON cannot express.
        """
        return neuron_set_file.encode(self, "neuron set", run=False)

    def summary(self) -> str:
        """Says in one line what is in the set."""
        positive, negative = self.texts
        parts = [
            f"{len(self.raised)} neurons raised and {len(self.lowered)} lowered of "
            f"{self.layers * self.d_mlp}",
            f"{positive} positive and {negative} negative texts",
        ]
        if self.control is not None:
            parts.insert(0, f"random control {self.control}")
        if self.model:
            parts.append(f"model {one_line(self.model)}")
        parts += ["partial"] if self.partial else []
        return ", ".join([*parts, *count_warnings(self.warnings)])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        return self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def __repr__(self) -> str:
        return f"NeuronSet({self.summary()})"

    def _repr_html_(self) -> str:
        from pahq_client.display import neurons

        return neurons.notebook_html(self)


def _turned(neuron: Neuron) -> Neuron:
    """Returns a neuron as it is when positive and negative texts are exchanged."""
    positive, negative = neuron.negative_share, neuron.positive_share
    return replace(neuron, delta=-neuron.delta, positive_share=positive, negative_share=negative)
