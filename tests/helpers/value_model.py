"""A model with planted value neurons: known units that are active at tokens of a value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from helpers.random_models import gpt2
from pahq_server.core.task import TokenIds
from pahq_server.models.folding import fold
from pahq_server.models.loading import LoadedModel, load

WIDTH, HIDDEN, LAYERS, CONTEXT = 24, 96, 2, 32
# Tokens: of the value, of its opposite, of neither, and the two answers.
VALUE, OPPOSITE, NEUTRAL = range(8), range(8, 16), range(16, 30)
ANSWERS = (30, 31)


class ValueModel:
    """GPT-2 with random weights, in which k units are active at tokens of a value, and k at its opposite.

    One direction of the residual stream tells the value of a token: embeddings have it, and nothing else
    reads or writes it. All other units are always active or never, and none of them pushes either answer.

    Args:
        folder: where the model is saved.
        k: planted units of either side.
        seed: of the weights, and of which units are planted.
    """

    def __init__(self, folder: Path, k: int, seed: int = 0) -> None:
        model = gpt2(
            seed, n_layer=LAYERS, n_head=2, n_embd=WIDTH, n_inner=HIDDEN, vocab_size=32, n_positions=CONTEXT
        )
        draw = np.random.default_rng(seed)
        chosen = draw.choice(LAYERS * HIDDEN, 2 * k, replace=False)
        self.raised, self.lowered = np.sort(chosen[:k]), np.sort(chosen[k:])
        state = model.transformer
        direction = torch.zeros(WIDTH)
        direction[0], direction[1] = 1.0, -1.0  # layer norm leaves it: its mean is 0
        with torch.no_grad():
            answers = state.wte.weight[ANSWERS[0]] - state.wte.weight[ANSWERS[1]]
            for tokens in (state.wte.weight, state.wpe.weight):
                tokens -= torch.outer(tokens @ direction, direction) / 2
            state.wte.weight[list(VALUE)] += 4 * direction
            state.wte.weight[list(OPPOSITE)] -= 4 * direction
            answers -= direction * (answers @ direction) / 2
            for block in state.h:
                block.ln_1.weight.fill_(1), block.ln_1.bias.zero_()
                block.ln_2.weight.fill_(1), block.ln_2.bias.zero_()
                for product in (block.attn.c_proj, block.mlp.c_proj):
                    product.weight -= torch.outer(product.weight @ direction, direction) / 2
                    product.bias -= direction * (product.bias @ direction) / 2
                    product.weight *= 0.2
                away = block.mlp.c_proj.weight @ answers / answers.norm() ** 2
                block.mlp.c_proj.weight -= torch.outer(away, answers)
                block.mlp.c_proj.weight *= 0.1
                block.mlp.c_fc.weight *= 0.02
                sign = torch.from_numpy(np.where(draw.random(HIDDEN) < 0.5, 2.0, -2.0)).float()
                block.mlp.c_fc.bias.copy_(sign)
            for side, numbers in ((1.0, self.raised), (-1.0, self.lowered)):
                for number in numbers.tolist():
                    mlp = state.h[number // HIDDEN].mlp
                    mlp.c_fc.weight[:, number % HIDDEN] = side * direction
                    mlp.c_fc.bias[number % HIDDEN] = -0.5
                    mlp.c_proj.weight[number % HIDDEN] = side * 0.1 * answers / answers.norm()
        model.save_pretrained(folder)
        loaded = load(str(folder))
        self.loaded = LoadedModel(fold(loaded.model), None, "value")

    def texts(self, count: int, seed: int, tokens: range = VALUE) -> tuple[TokenIds, ...]:
        """Texts in which half of the tokens are of the value or of its opposite, the others of neither."""
        draw = np.random.default_rng(seed)
        return tuple(
            tuple(
                int(draw.choice(tokens if draw.random() < 0.5 else NEUTRAL))
                for _ in range(draw.integers(8, CONTEXT))
            )
            for _ in range(count)
        )
