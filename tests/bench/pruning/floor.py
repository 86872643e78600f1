"""What a step of training cannot avoid: a forward and a backward pass of plain torch, to the inputs.

It imports nothing of PAHQ, and runs in a process of its own: ``python -m bench.pruning.floor LAYERS``. It
prints CPU seconds as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

PROMPTS, TOKENS, REPEAT = 32, 16, 5


def main(layers: int) -> None:
    """Measures GPT-2's shape with random weights; logits are made at the last tokens alone."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers)).eval().requires_grad_(False)
    ids = torch.randint(model.config.vocab_size, (PROMPTS, TOKENS))
    with torch.no_grad():
        full = model(ids, logits_to_keep=1).logits[:, -1].log_softmax(-1)

    def forward_and_backward() -> None:
        inputs = model.transformer.wte(ids).requires_grad_()
        found = model(inputs_embeds=inputs, logits_to_keep=1).logits[:, -1].log_softmax(-1)
        torch.autograd.grad(functional.kl_div(found, full, log_target=True, reduction="batchmean"), inputs)

    forward_and_backward()
    times = []
    for _ in range(REPEAT):
        start = time.process_time()
        forward_and_backward()
        times.append(time.process_time() - start)
    print(json.dumps({"seconds": statistics.median(times)}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
