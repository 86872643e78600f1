"""Throughput of the generator on vLLM against plain vLLM: ``LLM.generate(n=32)`` with as many slots.

Runs in the environment of vLLM; each contestant in processes of its own, in turns: those of plain vLLM do not
rest while they wait. Of each the best round counts, the one that was disturbed least, and the CPU time of
all its processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SAMPLES, SLOTS, ROUNDS, TURNS = 32, 8, 5, 2
KV_BYTES = 256 << 20
PROMPT = tuple(range(5, 25))
# How many tokens every sample has, by model; none of the models knows an end token here.
LENGTHS = {"demo": 40, "llama": 64}


def measure() -> dict[str, Any]:
    """Measures all models, each in a process of its own."""
    if not PYTHON.exists():
        raise SystemExit("vLLM is not installed: make test-vllm installs it")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
        # A thread each: plain vLLM leaves a core to its other processes.
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TORCHDYNAMO_DISABLE": "1",
    }

    def run(*arguments: str) -> dict[str, Any]:
        command = [str(PYTHON), "-m", "bench.sampling.throughput", *arguments]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    results = {}
    with tempfile.TemporaryDirectory() as name:
        for model in LENGTHS:
            directory = Path(name) / model
            runs: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
            for _ in range(TURNS):
                for contestant, own in runs.items():
                    own.append(run(model, contestant, str(directory)))
            best = {who: max(rate for each in own for rate in each["rates"]) for who, own in runs.items()}
            cpu = {who: min(each["cpu_s"] for each in own) for who, own in runs.items()}
            results[model] = {
                "runs": runs,
                "ratio": best["ours"] / best["plain"],
                "cpu_ratio": cpu["plain"] / cpu["ours"],
                "samples": SAMPLES,
                "slots": SLOTS,
            }
    return results


def _llama(directory: Path) -> None:
    """Saves a random Llama of 32 million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
    rest = {"intermediate_size": 1408, "vocab_size": 8192, "max_position_embeddings": 512}
    ends = {"eos_token_id": None, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(**sizes, **rest, **ends)).save_pretrained(directory)


def _demo(directory: Path) -> None:
    """Saves the demo model without its end token."""
    from pahq_server.demo import model_path

    shutil.copytree(model_path(), directory, dirs_exist_ok=True)
    for name in ("config.json", "generation_config.json"):
        text = json.loads((directory / name).read_text("utf-8")) | {"eos_token_id": None}
        (directory / name).write_text(json.dumps(text), "utf-8")


def _ours(directory: Path, length: int) -> tuple[Callable[[], int], Callable[[], None]]:
    """Returns what generates once, and what ends it."""
    from pahq_server.core.generation import SampleRequest, Sampling
    from pahq_server.engine.generation.vllm_backend import load_generator
    from pahq_server.models.loading import load

    generator = load_generator(load(str(directory)), KV_BYTES)
    how = Sampling(length, logprobs=True)

    def generate() -> int:
        waiting, running, tokens = list(range(SAMPLES)), set[int](), 0
        while waiting or running:
            while waiting and len(running) < SLOTS:
                key = waiting.pop(0)
                generator.add((0, key), SampleRequest(key, PROMPT, 977 * key, how))
                running.add(key)
            generator.run([(0, key) for key in running], steps=16)
            for key in list(running):
                sample = generator.sample((0, key))
                if sample.finish:
                    tokens += len(sample.ids)
                    generator.drop((0, key))
                    running.remove(key)
        return tokens

    return generate, generator.close


def _plain(directory: Path, length: int) -> tuple[Callable[[], int], Callable[[], None]]:
    """Returns what generates once, and what ends it: nothing, since it ends with this process."""
    from vllm import LLM, SamplingParams

    texts = (directory / "tokenizer.json").exists()
    llm = LLM(
        model=str(directory),
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=SLOTS,
        kv_cache_memory_bytes=KV_BYTES,
        skip_tokenizer_init=not texts,
        disable_log_stats=True,
    )
    how = SamplingParams(n=SAMPLES, max_tokens=length, seed=1, ignore_eos=True, detokenize=texts)

    def generate() -> int:
        (found,) = llm.generate({"prompt_token_ids": list(PROMPT)}, how, use_tqdm=False)
        return sum(len(each.token_ids) for each in found.outputs)

    return generate, lambda: None


def _cpu_s() -> float:
    """CPU seconds of this process and all that it has started."""
    import psutil

    me = psutil.Process()
    times = [each.cpu_times() for each in (me, *me.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def main(model: str, contestant: str, directory: Path) -> None:
    if not directory.exists():
        {"demo": _demo, "llama": _llama}[model](directory)
    length = LENGTHS[model]
    generate, close = (_ours if contestant == "ours" else _plain)(directory, length)
    generate()  # warms up
    before, rates = _cpu_s(), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        assert generate() == SAMPLES * length
        rates.append(SAMPLES * length / (time.perf_counter() - start))
    cpu = (_cpu_s() - before) / ROUNDS
    close()
    print(json.dumps({"rates": rates, "cpu_s": cpu}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
