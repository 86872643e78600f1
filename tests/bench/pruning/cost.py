"""What training costs: CPU seconds of a step against plain torch, and memory against a mask of edges.

``python -m bench.pruning.cost LAYERS`` measures it in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.pruning import KL, layout_of

from bench import measure, workloads
from bench.attribution import peak, reset_peak
from bench.pruning import floor
from pahq_server.core.engine import Objective, Work
from pahq_server.core.pruning import NODE_KINDS, Penalty, TrainedSteps, Training, TrainMasks
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.engine.engine import ModelEngine
from pahq_server.memory.heap import hand_back_freed_memory, keep_freed_memory
from pahq_server.models.architecture import Model
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import LoadedModel

TESTS = Path(__file__).parents[2]
LAYERS, VOCABULARY, REPEAT, ROUNDS = 12, 50257, 5, 3


def run(layers: int = LAYERS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measures steps and their floor in turns, because the speed of the machine changes."""
    floors, steps = [], []
    for _ in range(rounds):
        floors.append(_process("bench.pruning.floor", layers)["seconds"])
        steps.append(_process("bench.pruning.cost", layers))
    median = {name: statistics.median(each[name] for each in steps) for name in steps[0]}
    ratios = [step["step_seconds"] / least for step, least in zip(steps, floors, strict=True)]
    senders = 1 + layers * (12 + 1)
    receivers = layers * (3 * 12 + 1) + 1
    one = floor.PROMPTS * floor.TOKENS * 768 * 4
    return median | {
        "floor_seconds": statistics.median(floors),
        "times_floor": statistics.median(ratios),
        "senders_bytes": senders * one,
        "receivers_bytes": receivers * one,
        "peak_of_senders": median["peak_bytes"] / (senders * one),
        "peak_of_senders_and_receivers": median["peak_bytes"] / ((senders + receivers) * one),
    }


def measured_steps(layers: int) -> dict[str, float]:
    """Trains masks of GPT-2's shape: CPU seconds of a step, and the peak of memory above the model."""
    hand_back_freed_memory()  # as a server does while it loads models
    # What is loaded at the first step of a process is no cost of a method.
    small = workloads.gpt2_shape(1, tokens=3, changed=(1,), prompts=2)
    Steps(workloads.random_gpt2(1, FOLDING, 16, 2), small.task).step()
    workload = workloads.gpt2_shape(
        layers, tokens=floor.TOKENS, changed=(0, 6, 10), prompts=floor.PROMPTS, vocabulary=VOCABULARY
    )
    model = workload.folded()
    keep_freed_memory()
    before = reset_peak()
    steps = Steps(model, workload.task)
    first = measure.cpu_seconds(steps.step)
    seconds = measure.cpu_seconds(steps.step, REPEAT)
    return {"step_seconds": seconds, "first_step_seconds": first, "peak_bytes": float(peak() - before)}


class Steps:
    """Training of the masks of a model on a task.

    Args:
        model: folded.
        task: clean and corrupted prompts.
    """

    def __init__(self, model: Model, task: TokenTask) -> None:
        self._engine = ModelEngine({"model": LoadedModel(model, None, "bench")})
        prompts = PromptTask(task.clean, task.corrupted or ())
        objective = Objective("model", prompts, KL, "resample", "group", "fp32")
        self._state = self._engine.open(self._engine.resolve(objective, activations=False))
        self._layout = layout_of(model.architecture)
        zeros = np.zeros(self._layout.size, dtype=np.float32)
        self._training = Training(zeros + 2, zeros, zeros, 0, 2.0)

    def step(self) -> None:
        operation = TrainMasks(self._layout, self._training, 1, Penalty(dict.fromkeys(NODE_KINDS, 1e-4)))
        (outcome,) = self._engine.run([Work(self._state, operation)])
        operation.check(outcome)
        assert isinstance(outcome, TrainedSteps)
        self._training = outcome.training


def _process(module: str, layers: int) -> dict[str, float]:
    command = [sys.executable, "-m", module, str(layers)]
    paths = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured_steps(int(sys.argv[1]))))
