"""Random edits of neurons, and a model of transformers that computes them by hooks, the slow obvious way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pahq_server.core.activations import Steering
from pahq_server.models.architecture import Architecture


def random_steering(seed: int, architecture: Architecture, share: float = 0.3) -> Steering:
    """Returns an edit that raises about ``share`` of a model's neurons, and lowers as many."""
    return sized_steering(seed, architecture.layers * architecture.d_mlp, share)


def sized_steering(seed: int, neurons: int, share: float = 0.3) -> Steering:
    source = np.random.default_rng(seed)
    shuffled, count = source.permutation(neurons), max(1, int(share * neurons))
    raised, lowered = np.sort(shuffled[:count]), np.sort(shuffled[count : 2 * count])
    return Steering(raised, source.uniform(0.1, 1.0, count), lowered)


def steered(model: Any, steering: Steering) -> Any:
    """Has a plain model of transformers compute with an edit from now on, and returns it."""
    functions = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("act", "act_fn", "activation_fn")
    ]
    assert len(functions) == model.config.num_hidden_layers
    for layer, function in enumerate(functions):

        def edited(module: nn.Module, _: Any, a: Tensor, layer: int = layer) -> Tensor:
            edit = a.clone()
            for number, amount in zip(steering.raised.tolist(), steering.amounts.tolist(), strict=True):
                if number // a.shape[-1] == layer:
                    edit[..., number % a.shape[-1]] = a[..., number % a.shape[-1]] + amount
            for number in steering.lowered.tolist():
                if number // a.shape[-1] == layer:
                    edit[..., number % a.shape[-1]] = torch.minimum(
                        a[..., number % a.shape[-1]], torch.tensor(0.0)
                    )
            return edit

        function.register_forward_hook(edited)
    return model
