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

from bench.parts import SkippedError
from bench.sampling import blind
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
# Groups that are drawn for simulations: three are few, and steps in simulations are the real ones.
GROUPS = 10
# All samples of a group at once.
WHOLE = "whole group"
# Nothing is known but the law of lengths, and samples are stopped at will: see `blind`.
BLIND = "law known, stops"
# What `auto` stands for is among them. The others are simulated only.
MEASURED = ("rounds", "fifo", "longest_first")
# Numbers of slots whose samples are compared too.
OTHER_SLOTS = (2, 7)
# How often the engine and plain vLLM generate in turns.
TURNS = 15
KV_BYTES = 64 << 20
# Groups that are put together of the samples of all groups, and decoded anew in simulations.
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
        self._children: list[int] = []
        self.sample(n=2, max_tokens=20, slots=2)
        self._children = _children()

    def sample(self, signals_of: int = 0, **asked: Any) -> Group:
        """Generates a group of samples; with signals of so many first tokens, whoever reads them."""
        parameters = GenerateParameters(**({"max_tokens": self.subject.max_tokens} | asked))
        parameters.check_for(self.resolved)
        run = SampleRun(self.resolved, parameters)
        finished: dict[int, FinishedSample] = {}
        signals: dict[int, tuple[TokenSignal, ...]] = {}
        state: EngineStateId = self._engine.open(self.resolved)
        seconds, cpu_seconds = time.perf_counter(), _cpu_seconds(self._children)
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
            finished |= {sample.key: sample for sample in run.take(outcome)}
        seconds = time.perf_counter() - seconds
        cpu_seconds = _cpu_seconds(self._children) - cpu_seconds
        self._engine.close(state)
        return Group(
            tuple(finished[key] for key in range(run.total)),
            tuple(signals.get(key, ())[:PROBE_TOKENS] for key in range(run.total)),
            run.figures(),
            run.policy,
            seconds,
            cpu_seconds,
        )

    def close(self) -> None:
        self._engine.stop()


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
    more = [
        model.sample(n=SAMPLES, seed=trial, slots=SAMPLES, policy="fifo") for trial in range(TRIALS, GROUPS)
    ]
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
        "replayed": _replayed(model, [*runs[WHOLE], *more]),
        "groups": GROUPS,
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
    """Figures of simulations of groups that are put together of all samples of some groups.

    Means over the mean lower bound or the mean peak of whole groups; "deviation" is that of steps over the
    lower bound from group to group. Beside the policies, `BLIND`.
    """
    pairs = [pair for group in groups for pair in zip(group.samples, group.signals, strict=True)]
    remaining = blind.expected_remaining([len(sample.ids) for sample, _ in pairs])
    prompt = len(model.resolved.task.clean[0])
    taken: dict[str, list[tuple[int, int]]] = {name: [] for name in (*POLICIES, BLIND)}
    bounds, wholes = [], []
    for number in range(REPLAYS):
        samples, signals = zip(*Random(number).sample(pairs, SAMPLES), strict=True)
        group = replace(groups[0], samples=samples, signals=signals)
        whole = _simulated(model, "fifo", group, SAMPLES)
        wholes.append(whole.peak_kv_tokens)
        for name in POLICIES:
            run = _simulated(model, name, group)
            taken[name].append((run.steps, run.peak_kv_tokens))
        bounds.append(run.lower_bound)
        lengths = [len(sample.ids) for sample in samples]
        taken[BLIND].append(blind.steps_and_peak(lengths, SLOTS, remaining, prompt))
    return {
        name: {
            "over_bound": statistics.mean(steps for steps, _ in made) / statistics.mean(bounds),
            "deviation": statistics.stdev(
                steps / bound for (steps, _), bound in zip(made, bounds, strict=True)
            ),
            "peak_of_whole": statistics.mean(peak for _, peak in made) / statistics.mean(wholes),
        }
        for name, made in taken.items()
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


def _children() -> list[int]:
    """The ids of this process's children."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(entry.parent.name))
    return found


def _cpu_seconds(children: Sequence[int]) -> float:
    """CPU time of this process and of some children."""
    # Linux derives the clock of a process from its id: see clock_getcpuclockid(3).
    return time.process_time() + sum(time.clock_gettime((~child << 3) | 2) for child in children)


if __name__ == "__main__":
    main()
