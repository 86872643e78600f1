"""Sampling from models through the engine: steps, memory and speed of every policy, by one backend.

The parent runs this module once per backend, with the interpreter of the environment that has its library,
and reads what it prints.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.sampling.simulator import Run, decode
from bench.sampling.subjects import SUBJECTS, Subject
from bench.sampling.workloads import Workload
from pahq_server.core.engine import EngineStateId, Objective, ResolvedObjective, Work
from pahq_server.core.generation import Decoded, TokenSignal
from pahq_server.core.task import PromptTask
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.generation.backend import GenerationBackend
from pahq_server.methods.generate.admission import PROBE_TOKENS, admission
from pahq_server.methods.generate.parameters import GenerateParameters
from pahq_server.methods.generate.policies import POLICIES
from pahq_server.methods.generate.samples import FinishedSample
from pahq_server.methods.generate.sampling import STEPS, SampleRun
from pahq_server.models.loading import load

SAMPLES, SLOTS, TRIALS = 32, 4, 3
# All samples of a group at once.
WHOLE = "whole group"
# What `auto` stands for is among them. The others are simulated only.
MEASURED = ("rounds", "fifo", "longest_first")
# Numbers of slots whose samples are compared too.
OTHER_SLOTS = (2, 7)
# How often the engine and plain vLLM generate in turns.
TURNS = 15
KV_BYTES = 64 << 20
# Groups that are put together of the samples of all trials, and decoded anew in simulations.
REPLAYS = 200
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Group:
    """A group of samples that was generated.

    Args:
        samples: in order.
        signals: of each, those of its first tokens.
        figures: see `SampleRun.figures`.
        policy: what ran.
        seconds: wall time.
        cpu_seconds: of this process and its children.
    """

    samples: tuple[FinishedSample, ...]
    signals: tuple[tuple[TokenSignal, ...], ...]
    figures: dict[str, int]
    policy: str
    seconds: float
    cpu_seconds: float


class Model:
    """A subject that is served by an engine."""

    def __init__(self, subject: Subject, backend: GenerationBackend) -> None:
        self.subject = subject
        self._engine = ModelEngine({"model": load(str(subject.directory))}, generation=backend)
        task = PromptTask(clean=(subject.prompt,))
        objective = Objective("model", task, "kl_divergence", "resample", "group", "fp32")
        self.resolved: ResolvedObjective = self._engine.resolve(objective, activations=False)
        # Makes the generator, and makes it compute once.
        self.sample(n=2, max_tokens=20, slots=2)

    def sample(self, signals_of: int = 0, **asked: Any) -> Group:
        """Generates a group of samples, with the signals of so many first tokens even if nobody reads them."""
        parameters = GenerateParameters(**({"max_tokens": self.subject.max_tokens} | asked))
        parameters.check_for(self.resolved)
        run = SampleRun(self.resolved, parameters)
        signals: dict[int, tuple[TokenSignal, ...]] = {}
        ended: dict[int, FinishedSample] = {}
        state: EngineStateId = self._engine.open(self.resolved)
        seconds, cpu_seconds = time.perf_counter(), _cpu_seconds()
        while (operation := run.next_operation()) is not None:
            if signals_of:
                requests = [replace(each, signals=signals_of) for each in operation.requests]
                operation = replace(operation, requests=requests)
            (outcome,) = self._engine.run([Work(state, operation)])
            if isinstance(outcome, Exception):
                raise outcome
            assert isinstance(outcome, Decoded)
            for request, sample in zip(operation.requests, outcome.samples, strict=True):
                if len(signals.get(request.key, ())) == len(request.prefix) < PROBE_TOKENS:
                    signals[request.key] = (*signals.get(request.key, ()), *sample.signals)
            ended |= {sample.key: sample for sample in run.take(outcome)}
        seconds, cpu_seconds = time.perf_counter() - seconds, _cpu_seconds() - cpu_seconds
        self._engine.close(state)
        return Group(
            tuple(ended[key] for key in range(run.total)),
            tuple(signals.get(key, ())[:PROBE_TOKENS] for key in range(run.total)),
            run.figures(),
            run.policy,
            seconds,
            cpu_seconds,
        )

    def close(self) -> None:
        self._engine.stop()


class SkippedError(Exception):
    """A part cannot be measured here. The message says why, and what to do."""


def by_transformers() -> dict[str, Any]:
    return _in_process(sys.executable, "transformers")


def by_vllm() -> dict[str, Any]:
    """Raises SkippedError where vLLM's environment is missing."""
    python = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
    if not python.exists():
        raise SkippedError(
            f"vLLM is not measured: there is no {python}. make test-vllm makes it; VLLM_PYTHON names another"
        )
    return _in_process(str(python), "vllm")


def _in_process(python: str, backend: str) -> dict[str, Any]:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "proto" / "gen", ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "bench.sampling.real", backend]
    run = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=("transformers", "vllm"))
    parser.add_argument("subjects", nargs="*", default=list(SUBJECTS), help=f"of {', '.join(SUBJECTS)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    with TemporaryDirectory() as folder:
        for name in options.subjects:
            subject = SUBJECTS[name](Path(folder) / name)
            figures[subject.name] = measure(subject, options.backend)
    print(json.dumps(figures))


def measure(subject: Subject, backend: str) -> dict[str, Any]:
    """Generates groups by every policy, and all at once, and compares the samples."""
    model = Model(subject, _backend(backend))
    runs: dict[str, list[Group]] = {name: [] for name in (WHOLE, *MEASURED)}
    differ = compared = 0
    for trial in range(TRIALS):
        for name, made in runs.items():
            whole = name == WHOLE
            made.append(
                model.sample(
                    n=SAMPLES,
                    seed=trial,
                    slots=SAMPLES if whole else SLOTS,
                    policy="fifo" if whole else name,
                    # Simulations of these samples read them, whatever the policy.
                    signals_of=PROBE_TOKENS,
                )
            )
            compared += SAMPLES
            differ += _differing(made[-1], runs[WHOLE][trial])
    for slots in OTHER_SLOTS:
        other = model.sample(n=SAMPLES, seed=0, slots=slots)
        auto, compared = other.policy, compared + SAMPLES
        differ += _differing(other, runs[WHOLE][0])
    figures = {
        "auto": auto,
        "differ": differ,
        "compared": compared,
        "runs": {name: _figures(made) for name, made in runs.items()},
        "as_simulated": all(
            _simulated(model, name, group).steps == group.figures["steps"]
            for name, made in runs.items()
            if name != WHOLE
            for group in made
        ),
        "replayed": _replayed(model, runs[WHOLE]),
    }
    if backend == "vllm" and subject.speed:
        figures["plain"] = _against_plain_vllm(model)
    model.close()
    return figures


def _backend(name: str) -> GenerationBackend:
    if name == "vllm":
        from pahq_server.engine.generation.vllm_backend import VllmBackend

        return VllmBackend(KV_BYTES)
    from pahq_server.engine.generation.transformers_backend import TransformersBackend

    return TransformersBackend(KV_BYTES)


def _differing(group: Group, reference: Group) -> int:
    """Counts the samples whose tokens differ."""
    pairs = zip(group.samples, reference.samples, strict=True)
    return sum(ours.ids != theirs.ids for ours, theirs in pairs)


def _figures(groups: Sequence[Group]) -> dict[str, Any]:
    """Figures of one policy: a number per trial."""
    names = ("steps", "lower_bound", "peak_kv_tokens", "prompt_tokens_computed", "tokens")
    figures: dict[str, Any] = {name: [group.figures[name] for group in groups] for name in names}
    figures["seconds"] = [group.seconds for group in groups]
    figures["cpu_seconds"] = [group.cpu_seconds for group in groups]
    return figures


def _simulated(model: Model, policy: str, group: Group, slots: int = SLOTS) -> Run:
    """Decodes a group of samples that were generated once more, in a simulation."""
    offer, task = model.resolved.generation, model.resolved.task
    assert offer is not None
    workload = Workload(
        tuple(len(sample.ids) for sample in group.samples),
        (0,) * len(group.samples),
        len(task.clean[0]),
        group.signals,
    )
    made = admission(
        policy,
        workload.prompts,
        slots,
        model.subject.max_tokens,
        prompt_tokens=workload.prompt_tokens,
    )
    return decode(made, workload, slots, STEPS)


def _replayed(model: Model, groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """Mean figures of simulations of groups that are put together of all samples of some groups."""
    pairs = [pair for group in groups for pair in zip(group.samples, group.signals, strict=True)]
    runs: dict[str, list[Run]] = {name: [] for name in POLICIES}
    wholes = []
    for number in range(REPLAYS):
        samples, signals = zip(*Random(number).sample(pairs, SAMPLES), strict=True)
        group = replace(groups[0], samples=samples, signals=signals)
        wholes.append(_simulated(model, "fifo", group, SAMPLES))
        for name, made in runs.items():
            made.append(_simulated(model, name, group))
    bound = statistics.mean(run.lower_bound for run in runs["fifo"])
    peak = statistics.mean(run.peak_kv_tokens for run in wholes)
    return {
        name: {
            "over_bound": statistics.mean(run.steps for run in made) / bound,
            "peak_of_whole": statistics.mean(run.peak_kv_tokens for run in made) / peak,
        }
        for name, made in runs.items()
    }


def _against_plain_vllm(model: Model) -> dict[str, list[float]]:
    """Tokens per second through the engine and by `vllm.LLM`, in turns: by wall time and by CPU time.

    By `vllm.LLM` without seeds, so that no sample could be drawn again, and with a seed for each.
    """
    # As `vllm_backend` sets it for its process.
    os.environ |= {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
    }
    from vllm import LLM, SamplingParams

    offer, (prompt,) = model.resolved.generation, model.resolved.task.clean
    assert offer is not None
    plain = LLM(
        str(model.subject.directory),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=offer.context,
        max_num_seqs=SLOTS,
        kv_cache_memory_bytes=KV_BYTES,
        enforce_eager=True,
        seed=0,
    )
    asked = {
        "max_tokens": model.subject.max_tokens,
        "stop_token_ids": list(offer.end_tokens),
        "ignore_eos": True,
        "detokenize": False,
    }
    figures: dict[str, list[float]] = defaultdict(list)
    plain.generate({"prompt_token_ids": list(prompt)}, SamplingParams(n=2, **asked), use_tqdm=False)
    for turn in range(TURNS):
        group = model.sample(n=SAMPLES, seed=100 + turn, slots=SLOTS)
        figures["ours"].append(group.figures["tokens"] / group.seconds)
        figures["ours_cpu"].append(group.figures["tokens"] / group.cpu_seconds)
        for name, seed in (("plain", None), ("seeded", 100 + turn)):
            seconds, cpu_seconds = time.perf_counter(), time.process_time()
            (output,) = plain.generate(
                {"prompt_token_ids": list(prompt)},
                SamplingParams(n=SAMPLES, seed=seed, **asked),
                use_tqdm=False,
            )
            tokens = sum(len(each.token_ids) for each in output.outputs)
            figures[name].append(tokens / (time.perf_counter() - seconds))
            figures[f"{name}_cpu"].append(tokens / (time.process_time() - cpu_seconds))
    return figures


def _cpu_seconds() -> float:
    """CPU time of this process and of its children that are there."""
    total, ticks = time.process_time(), os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total


if __name__ == "__main__":
    main()
