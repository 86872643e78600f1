"""What divides states into concepts: the codebooks of this package, and baselines from libraries.

``python -m bench.concepts.methods METHOD FOLDER COUNT`` measures one in a process of its own, so that its
memory is its own, and prints the figures as JSON. The files of states are mapped: what is counted is memory
that is not that of a file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering, KMeans

from bench.concepts.faithfulness import chosen_rows, faithfulness
from bench.concepts.states import WINDOW, States
from pahq_server.core.concepts import (
    AssignCodes,
    CodebookSettings,
    CodebookTraining,
    Memory,
    StartCodebook,
    StateBatch,
    TrainCodebook,
)
from pahq_server.engine.concepts.training import assign, start, train
from pahq_server.methods.concepts import method as concepts
from pahq_server.methods.concepts.parameters import BATCH, CODES, NEIGHBOURS, STEPS

CPU = torch.device("cpu")
COSTS = (1, 1)  # of no meaning here: nothing is scheduled
SAE_L1 = 0.3
AT_ONCE = concepts.ASSIGNED_AT_ONCE

Floats = NDArray[np.float32]
# The code of each state, and the direction of each code.
Found = tuple[NDArray[np.int64], Floats]


def codebook(
    x: Floats, y: Floats, memory: Memory = "quantized", codes: int = CODES, steps: int = STEPS, seed: int = 0
) -> Found:
    """Learns a codebook as the method ``concepts`` does: the best of some starts, steps, all codes.

    Args:
        x, y: states of the lower and of the higher layer, [N, d]; N is a multiple of `WINDOW`.
        memory: what the decoder attends to.
        codes: K.
        steps: of training.
        seed: of everything.
    """
    settings = CodebookSettings(x.shape[1], codes, steps, min(NEIGHBOURS, codes), memory=memory, seed=seed)
    draw, windows = np.random.default_rng(seed), len(x) // WINDOW

    def batch(states: int) -> StateBatch:
        chosen = draw.permutation(windows)[: max(1, states // WINDOW)]
        rows = (chosen[:, None] * WINDOW + np.arange(WINDOW)).ravel()
        return StateBatch(x[rows], y[rows], (WINDOW,) * len(chosen))

    states = batch(max(concepts.START_STATES, concepts.START_STATES_PER_CODE * codes))
    starts = [
        start(StartCodebook(settings, states, attempt, *COSTS), CPU) for attempt in range(concepts.ATTEMPTS)
    ]
    now: CodebookTraining = min(starts, key=lambda each: each.distance).training
    while now.step < steps:
        batches = [batch(BATCH) for _ in range(min(concepts.MOST_STEPS_AT_ONCE, steps - now.step))]
        now = train(TrainCodebook(settings, now, batches, *COSTS), CPU).training
    encoder, own = now.weights[: settings.encoder_weights], np.empty(len(x), np.int64)
    for first in range(0, len(x), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        own[part] = assign(AssignCodes(encoder, now.codes, x[part], *COSTS), CPU).codes
    return own, now.codes


def k_means(x: Floats, _: Floats) -> Found:
    """scikit-learn's k-means, once."""
    found = KMeans(CODES, n_init=1, random_state=0).fit(x)
    return found.labels_.astype(np.int64), found.cluster_centers_


def ward(x: Floats, _: Floats) -> Found:
    """Agglomerative clusters by Ward's criterion, by scikit-learn; a direction is that of the mean."""
    codes = AgglomerativeClustering(CODES).fit_predict(x).astype(np.int64)
    return codes, np.stack([x[codes == code].mean(0) for code in range(CODES)])


def sparse_autoencoder(x: Floats, _: Floats) -> Found:
    """A sparse autoencoder with as many units, L1 and ReLU; a state's code is its most active unit.

    It has as many steps of as many states as a codebook.
    """
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(x.shape[1], CODES), torch.nn.Linear(CODES, x.shape[1])
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    draw = np.random.default_rng(0)
    scale = float(np.linalg.norm(x[:4096], axis=1).mean())
    for _ in range(STEPS):
        states = torch.from_numpy(x[np.sort(draw.integers(0, len(x), BATCH))]) / scale
        active = encoder(states - decoder.bias).relu()
        norms = decoder.weight.norm(dim=0)
        error = (decoder(active) - states).pow(2).sum(1).mean()
        loss = error + SAE_L1 / CODES**0.5 * (active * norms).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        norms = decoder.weight.norm(dim=0)
        codes = [
            (encoder(torch.tensor(x[first : first + AT_ONCE]) / scale - decoder.bias).relu() * norms).argmax(
                1
            )
            for first in range(0, len(x), AT_ONCE)
        ]
        return torch.cat(codes).numpy(), decoder.weight.T.numpy().copy()


METHODS: dict[str, Callable[[Floats, Floats], Found]] = {
    "clvq": codebook,
    "clvq_continuous": lambda x, y: codebook(x, y, "continuous"),
    "vqlc": lambda x, y: codebook(x, x),
    "k_means": k_means,
    "ward": ward,
    "sae": sparse_autoencoder,
}


def measured(name: str, folder: Path, count: int) -> dict[str, Any]:
    """Measures a method in a process of its own."""
    command = [sys.executable, "-m", "bench.concepts.methods", name, str(folder), str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def figures_of(name: str, folder: Path, count: int) -> dict[str, Any]:
    """Runs a method: CPU seconds, the peak of memory, use of codes, and what taking them away does."""
    torch.set_num_threads(1)
    states = States(folder, count)
    x, y = states.low, states.high
    few = slice(0, 64 * WINDOW)
    METHODS["k_means"](x[few], y[few])  # what is loaded at first is no cost of any
    with AnonymousPeak() as memory:
        started = time.process_time()
        codes, directions = METHODS[name](x, y)
        seconds = time.process_time() - started
    share = np.bincount(codes, minlength=len(directions)) / len(codes)
    used = share[share > 0]
    rows, classes = chosen_rows(states.following)
    return {
        "seconds": seconds,
        "peak_bytes": memory.peak,
        "used": len(used),
        "perplexity": float(np.exp(-(used * np.log(used)).sum())),
        "accuracy": faithfulness(np.ascontiguousarray(x[rows]), classes, codes[rows], directions),
    }


class AnonymousPeak:
    """Samples the memory of this process that is not that of files, as far as it grows in the block."""

    def __enter__(self) -> AnonymousPeak:
        self._before, self.peak, self._end = _anonymous(), 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._end.wait(0.02):
            self.peak = max(self.peak, _anonymous() - self._before)


def _anonymous() -> int:
    text = Path("/proc/self/status").read_text("utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    print(json.dumps(figures_of(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
