"""Sums over all neurons of a batch of texts: CPU seconds and memory against a plain forward pass.

``python -m bench.neurons.capture MODEL LAYERS`` measures it in a process of its own, so that its peak is its
own; the arguments are those of `bench.neurons.floor`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from helpers.texts import Texts, whole

from bench.methods.subjects import STORIES
from bench.neurons import floor
from bench.parts import SkippedError
from bench.workloads import ids, random_gpt2
from pahq_server.memory.heap import hand_back_freed_memory, keep_freed_memory
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import LoadedModel, load

LAYERS, VOCABULARY, ROUNDS = 12, 50257, 3


def gpt2(layers: int = LAYERS, rounds: int = ROUNDS) -> dict[str, float]:
    """GPT-2's shape with random weights."""
    return compare("", layers, rounds)


def stories(rounds: int = ROUNDS) -> dict[str, float]:
    """stories260K, whose passes are so short that every call of torch counts.

    Raises SkippedError if the model is not here.
    """
    if not STORIES.is_dir():
        raise SkippedError("stories260K is not measured: ../shared/models is not here")
    return compare(str(STORIES), 0, rounds)


def compare(source: str, layers: int, rounds: int) -> dict[str, float]:
    """Measures both in turns, because the speed of the machine changes."""
    floors, captures = [], []
    for _ in range(rounds):
        floors.append(_process("bench.neurons.floor", source, layers))
        captures.append(_process("bench.neurons.capture", source, layers))
    median = {name: statistics.median(each[name] for each in captures) for name in captures[0]}
    pairs = list(zip(captures, floors, strict=True))
    return median | {
        "floor_seconds": statistics.median(each["seconds"] for each in floors),
        "floor_peak_bytes": statistics.median(each["peak_bytes"] for each in floors),
        "times_floor": statistics.median(own["seconds"] / least["seconds"] for own, least in pairs),
        "times_floor_peak": statistics.median(
            (own["peak_bytes"] - own["reducer_bytes"]) / least["peak_bytes"] for own, least in pairs
        ),
    }


def measured(source: str, layers: int) -> dict[str, float]:
    """Sums all neurons of the batch: CPU seconds, and the peak of memory above the model."""
    hand_back_freed_memory()  # as a server does while it loads models
    model = load(source, FOLDING) if source else _random(layers)
    arch = model.model.architecture
    texts = ids(floor.token_ids(arch.vocabulary))
    engine, spans = Texts(model, texts), whole(texts)
    small = Texts(model, [texts[0][:3]])
    small.sums(whole([texts[0][:3]]))  # see `floor`
    keep_freed_memory()
    before = floor.reset_peak()
    sums = engine.sums(spans)
    peak_bytes = floor.peak() - before
    return {
        "seconds": floor.median_cpu_seconds(lambda: engine.sums(spans)),
        "peak_bytes": float(peak_bytes),
        "reducer_bytes": float(sums.positive.nbytes + sums.total.nbytes + sums.squares.nbytes),
    }


def _random(layers: int) -> LoadedModel:
    return LoadedModel(random_gpt2(layers, FOLDING, vocabulary=VOCABULARY), None, "bench")


def _process(module: str, source: str, layers: int) -> dict[str, float]:
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", module, source, str(layers)],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
