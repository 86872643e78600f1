"""What attribution cannot avoid: forward and backward passes of plain torch, on a model of transformers.

It imports nothing of PAHQ, whose settings of the libraries would change its speed. It runs in a process of
its own and prints seconds as JSON: ``python -m bench.floor``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

PROMPTS, TOKENS, STEPS, REPEAT = 16, 16, 5, 3


def main() -> None:
    """Measures GPT-2 small with random weights; logits are made at the last tokens alone."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval().requires_grad_(False)
    vocabulary = model.config.vocab_size
    clean, corrupted = (torch.randint(vocabulary, (PROMPTS, TOKENS)) for _ in range(2))
    right, wrong = (torch.randint(vocabulary, (PROMPTS,)) for _ in range(2))
    prompts = torch.arange(PROMPTS)

    def forward(inputs: Tensor) -> Tensor:
        last = model(inputs_embeds=inputs, logits_to_keep=1).logits[:, -1]
        return (last[prompts, wrong] - last[prompts, right]).mean()

    def forwards() -> None:
        with torch.no_grad():
            for ids in (corrupted, clean):
                forward(model.transformer.wte(ids))

    def forward_and_backward() -> None:
        inputs = model.transformer.wte(clean).requires_grad_()
        torch.autograd.grad(forward(inputs), inputs)

    forwards()
    forward_and_backward()
    two, pair = _seconds(forwards), _seconds(forward_and_backward)
    # Of the two forward passes, the clean one is that of the backward pass.
    print(json.dumps({"one_gradient": two / 2 + pair, "mean_of_five": two + STEPS * pair}))


def _seconds(work: Callable[[], None]) -> float:
    """Median CPU seconds of the process."""
    times = []
    for _ in range(REPEAT):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
