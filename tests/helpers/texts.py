"""Activations of texts on an engine in this process, and their twins: text after text, value by value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from helpers.reference import Pass
from pahq_server.core.activations import (
    CaptureStates,
    DescribeNeurons,
    NeuronDetails,
    NeuronSums,
    ScoreContinuations,
    Span,
    Steering,
    SumNeurons,
)
from pahq_server.core.engine import Objective, Work
from pahq_server.core.operations import Operation
from pahq_server.core.task import PromptTask, TokenIds
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.transformers_model import load_causal_lm
from pahq_server.models.architecture import Model
from pahq_server.models.loading import LoadedModel

# Changes the activations of a layer's neurons, [tokens, d_mlp].
Edit = Callable[[int, Tensor], Tensor]


def whole(texts: Sequence[TokenIds]) -> list[Span]:
    """Spans of all tokens."""
    return [Span(number, 0, len(ids)) for number, ids in enumerate(texts)]


class Texts:
    """Texts on a model of the engine.

    Args:
        loaded: the model, as it is or folded.
        texts: token ids.
        precision: policy.
        engine: of the model under the name "model"; None to make one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        texts: Sequence[TokenIds],
        precision: str = "fp32",
        engine: ModelEngine | None = None,
    ) -> None:
        self.arch = loaded.model.architecture
        self._total = sum(map(len, texts))
        self._engine = engine or ModelEngine({"model": loaded})
        objective = Objective("model", PromptTask(tuple(texts)), "kl_divergence", "zero", "group", precision)
        self._state = self._engine.open(self._engine.resolve(objective, activations=False))

    def run(self, operation: Operation) -> Any:
        """The result of an operation, checked. Raises the error that is its outcome."""
        outcome = self.run_unchecked(operation)
        operation.check(outcome)
        return outcome

    def run_unchecked(self, operation: Operation) -> Any:
        (outcome,) = self._engine.run([Work(self._state, operation)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def sums(self, spans: Sequence[Span]) -> NeuronSums:
        found: NeuronSums = self.run(SumNeurons(spans, self.arch.layers * self.arch.d_mlp, self._total))
        return found

    def details(self, spans: Sequence[Span], neurons: Sequence[int], top: int) -> NeuronDetails:
        chosen = np.array(neurons, dtype=np.int64)
        found: NeuronDetails = self.run(DescribeNeurons(spans, chosen, top, self._total))
        return found

    def states(self, spans: Sequence[Span], layers: Sequence[int]) -> NDArray[np.float32]:
        operation = CaptureStates(spans, tuple(layers), self.arch.d_model, self._total)
        found: NDArray[np.float32] = self.run(operation)
        return found

    def scores(self, spans: Sequence[Span], steering: Steering | None = None) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self.run(ScoreContinuations(spans, steering, self._total))
        return found

    def close(self) -> None:
        self._engine.close(self._state)


class _Recorded(Pass):
    """A pass that writes down the activations of its layers, and edits them."""

    neurons: list[Tensor]
    edit: Edit

    def _activation(self, x: Tensor) -> Tensor:
        found = self.edit(len(self.neurons), super()._activation(x))
        self.neurons.append(found)
        return found


class ReferenceTwin:
    """Texts by the reference of the graph's semantics: any architecture, in float64.

    Args:
        model: plain, in float64.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    def run(self, ids: TokenIds, edit: Edit = lambda _, x: x) -> tuple[Tensor, Tensor, Tensor]:
        """Activations [layers, tokens, d_mlp], states [layers + 1, tokens, d_model] and logits of a text."""
        run = _Recorded(self._model, "group", ids, None, {})
        run.neurons, run.edit = [], edit
        logits, layers = run.run(), self._model.weights.layers
        states = [run.outputs["input"]]
        for index, layer in enumerate(layers):
            own = (f"m{index}", *(f"a{index}.h{head}" for head in range(self._model.architecture.heads)))
            written = [run.outputs[name] for name in own if name in run.outputs]
            states.append(states[-1] + layer.b_o + sum(written))
        neurons = torch.stack(run.neurons) if run.neurons else torch.zeros(len(layers), len(ids), 0)
        return neurons, torch.stack(states), logits


class TransformersTwin:
    """Texts by transformers' own model in float64, with forward hooks.

    Args:
        directory: the checkpoint.
    """

    def __init__(self, directory: Path) -> None:
        self._model = load_causal_lm(directory).double()
        self._edit: Edit = lambda _, x: x
        self._neurons: list[Tensor] = []
        for name, module in self._model.named_modules():
            if name.rsplit(".", 1)[-1] in ("act", "act_fn", "activation_fn"):
                module.register_forward_hook(self._hook)

    def _hook(self, module: object, inputs: object, output: Tensor) -> Tensor:
        flat = output.reshape(-1, output.shape[-1])
        found = self._edit(len(self._neurons), flat)
        self._neurons.append(found)
        return found.view(output.shape)

    @torch.no_grad()
    def run(self, ids: TokenIds, edit: Edit = lambda _, x: x) -> tuple[Tensor, Tensor, Tensor]:
        """Activations [layers, tokens, d_mlp], states [layers + 1, tokens, d_model] and logits of a text.

        The last state is after the final norm, as transformers has it.
        """
        self._edit, self._neurons = edit, []
        found = self._model(torch.tensor([ids]), output_hidden_states=True)
        return torch.stack(self._neurons), torch.cat(found.hidden_states), found.logits[0]


Twin = ReferenceTwin | TransformersTwin


def twin_neurons(twin: Twin, texts: Sequence[TokenIds], spans: Sequence[Span]) -> Tensor:
    """Activations of the looked-at tokens, dense: [tokens, layers * d_mlp]."""
    found = [twin.run(texts[span.text])[0][:, span.first : span.last] for span in spans]
    return torch.cat([x.transpose(0, 1).flatten(1) for x in found])


def edit_of(steering: Steering, d_mlp: int) -> Edit:
    """The edit, neuron by neuron."""

    def edit(layer: int, x: Tensor) -> Tensor:
        x = x.clone()
        for neuron, amount in zip(steering.raised.tolist(), steering.amounts.tolist(), strict=True):
            if neuron // d_mlp == layer:
                x[:, neuron % d_mlp] += amount
        for neuron in steering.lowered.tolist():
            if neuron // d_mlp == layer:
                x[:, neuron % d_mlp] = torch.where(x[:, neuron % d_mlp] < 0, x[:, neuron % d_mlp], 0.0)
        return x

    return edit
