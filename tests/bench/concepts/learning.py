"""Learns once in a process of its own, so that its memory is its own.

``python -m bench.concepts.learning LEARNER FOLDER CODES OUT`` prints figures as JSON, and writes the codes
and those of all tokens into OUT.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.attribution import peak, reset_peak
from bench.concepts.learners import Learned, learner_of
from bench.concepts.states import States
from pahq_server.memory.heap import hand_back_freed_memory

TESTS = Path(__file__).parents[2]
WARM_UP_STATES, WARM_UP_CODES = 40 * 16, 8


def in_process(learner: str, states: States, codes: int) -> tuple[dict[str, float], Learned]:
    """Learns in a new process: its figures, and what it learned."""
    paths = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "learned.npz"
        command = [sys.executable, "-m", "bench.concepts.learning", learner, str(states.folder), str(codes)]
        done = subprocess.run(
            [*command, str(out)],
            check=True,
            stdout=subprocess.PIPE,
            env=os.environ | threads | {"PYTHONPATH": paths},
        )
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        with np.load(out) as found:
            learned = Learned(found["codes"], found["own"], figures)
    return figures, learned


def measured(learner: str, states: States, codes: int) -> tuple[dict[str, float], Learned]:
    """Learns here: CPU seconds, and the peak of resident memory above what texts and libraries take."""
    hand_back_freed_memory()  # as a server does while it loads models
    _warm_up(learner, states)
    assert states.texts, "texts are the task's, not the learner's"
    before = reset_peak()
    started = time.process_time()
    learned = learner_of(learner)(states, codes)
    seconds = time.process_time() - started
    figures = {
        "cpu_seconds": seconds,
        "peak_bytes": float(peak() - before),
        "perplexity": learned.perplexity,
        "used": float(len(np.unique(learned.own))),
        "states": float(len(learned.own)),
        **learned.figures,
    }
    return figures, learned


def _warm_up(learner: str, states: States) -> None:
    """Learns from very few states: what is loaded at the first time in a process is no cost of a learner."""
    with tempfile.TemporaryDirectory() as folder:
        length = len(states.texts[0]) - 1
        texts = -(-WARM_UP_STATES // length)
        few = States.written(Path(folder), np.array(states.texts[:texts]), states.rows(0, texts * length))
        learner_of(learner, steps=2)(few, WARM_UP_CODES)


def main(learner: str, folder: str, codes: str, out: str) -> None:
    torch.set_num_threads(1)
    figures, learned = measured(learner, States(Path(folder)), int(codes))
    np.savez(out, codes=learned.codes, own=learned.own)
    print(json.dumps(figures))


if __name__ == "__main__":
    arguments: Any = sys.argv[1:]
    main(*arguments)
