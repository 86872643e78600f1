"""What looking at texts cannot avoid: a plain forward pass of transformers over them, without logits.

It imports nothing of PAHQ, and runs in a process of its own: ``python -m bench.neurons.floor MODEL LAYERS``,
where MODEL is a checkpoint's directory, or empty for GPT-2's shape with random weights. It prints CPU seconds
of a batch, and the peak of memory above the model, as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

TEXTS, TOKENS, REPEAT = 16, 64, 9


def token_ids(vocabulary: int) -> torch.Tensor:
    """Random texts of equal lengths: batches that plain transformers pads do not help the comparison."""
    return torch.randint(vocabulary, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(0))


def median_cpu_seconds(work: Any) -> float:
    times = []
    for _ in range(REPEAT):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def reset_peak() -> int:
    """Forgets the peak of resident memory until now; returns what is resident, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", "utf-8")
    return peak()


def peak() -> int:
    """The peak of resident memory, in bytes."""
    (line,) = (x for x in Path("/proc/self/status").read_text("utf-8").splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def main(source: str, layers: int) -> None:
    from transformers import AutoModel, GPT2Config, GPT2Model

    torch.set_num_threads(1)
    model: Any = AutoModel.from_pretrained(source) if source else GPT2Model(GPT2Config(n_layer=layers))
    model.eval()
    small, ids = torch.zeros(1, 3, dtype=torch.int64), token_ids(model.config.vocab_size)
    with torch.inference_mode():
        model(small)  # what is loaded at the first pass of a process is no cost of it
        before = reset_peak()
        model(ids)
        peak_bytes = peak() - before
        seconds = median_cpu_seconds(lambda: model(ids))
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
