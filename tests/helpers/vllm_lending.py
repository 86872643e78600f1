"""One copy of the weights: vLLM's parameters lent to the server's executors, in vLLM's own worker.

Run as a program, in a process of its own: ``python -m helpers.vllm_lending CHECKPOINT`` prints, as JSON, for
each executor whether scores are the same as without lending, and how many bytes of its weights are vLLM's.

An experiment: it shows that a worker extension can lend the weights, and what stands in the way of doing so.

- The literal executor runs on vLLM's parameters alone, with the same bits. The sparse one wants weights of
  norms folded into the maps behind them, and so has copies of all maps but those out of heads and MLPs. They
  could be folded in vLLM, too, if its factor on attention scores were set to 1.
- Kernels round by the layout of a matrix. vLLM keeps matrices output by output, the sparse executor some of
  them input by input: scores on vLLM's layout differ in the last bits.
- On CPUs vLLM packs weights for oneDNN and frees them. Left as they are (here), products must be made
  otherwise; those of `precision.products` keep rows independent.
- The executors would have to live in vLLM's process, and with it the worker thread of the server.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import Objective, Work
from pahq_server.core.operations import ScorePasses
from pahq_server.core.task import PromptTask
from pahq_server.engine.engine import ModelEngine
from pahq_server.models import loading
from pahq_server.models.building import PLAIN
from pahq_server.models.checkpoint import Checkpoint, MappedCheckpoint, _View
from pahq_server.models.loading import LoadedModel, load

# Where vLLM keeps several matrices as one: its name, and theirs in order.
MERGED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class LentCheckpoint(MappedCheckpoint):
    """A checkpoint whose tensors are views of the parameters of a model of vLLM.

    Args:
        directory: of the checkpoint; only headers are read, and values once, to compare them.
        model: vLLM's.
    """

    def __init__(self, directory: Path, model: nn.Module) -> None:
        super().__init__(directory)
        self._model = model

    def get(self, name: str) -> Tensor:
        """Returns a view of vLLM's parameter. Raises ValueError if its values are not the checkpoint's."""
        stored = Checkpoint.get(self, name)
        kept = self._parameter(name).data
        # As it is; input by input instead of output by output; or padded.
        for lent in (kept, kept.T if kept.dim() == 2 else kept, kept[: stored.shape[0]]):
            if torch.equal(lent, stored):
                return lent.as_subclass(_View)
        raise ValueError(f"vLLM keeps {name} in another form")

    def _parameter(self, name: str) -> Tensor:
        *path, part, kind = name.split(".")
        for merged, parts in MERGED.items():
            if part in parts:
                module = self._model.get_submodule(".".join([*path, merged]))
                sizes: list[int] = list(module.output_sizes)
                return getattr(module, kind).split(sizes)[parts.index(part)]
        return self._model.get_parameter(name)


class Lender:
    """What vLLM's worker can be asked for (``worker_extension_cls``)."""

    def lend(self, directory: str) -> LoadedModel:
        """Returns the model of a checkpoint on vLLM's weights."""
        model: nn.Module = self.get_model()  # type: ignore[attr-defined]
        lent, _ = loading._assemble(Path(directory), lambda path: LentCheckpoint(path, model), PLAIN)
        # As plain tensors: subclasses are slow, and copies are wanted again from here on.
        lent = loading.replace(lent, weights=_plain(lent.weights))
        return LoadedModel(lent, None, "lent", directory=Path(directory))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.as_subclass(Tensor)
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        return loading.replace(value, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)})
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a dataclass."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def scores(loaded: LoadedModel, executor: str) -> tuple[list[float], list[Tensor]]:
    """Scores of the whole, the empty and some random circuits, and the weights that gave them."""
    engine = ModelEngine({"m": loaded}, executor)
    arch = loaded.model.architecture
    generator = torch.Generator().manual_seed(3)
    clean, corrupted = torch.randint(arch.vocabulary, (2, 4, 12), generator=generator).tolist()
    task = PromptTask(clean=tuple(map(tuple, clean)), corrupted=tuple(map(tuple, corrupted)))
    resolved = engine.resolve(Objective("m", task, "kl_divergence", "resample", "group", "fp32"))
    state = engine.open(resolved)
    graph = resolved.graph
    passes = [PatchedPass(BaseCircuit(Circuit.full(graph))), PatchedPass(BaseCircuit(Circuit.empty(graph)))]
    for _ in range(6):
        ablated = torch.randperm(graph.num_edges, generator=generator)[:9].tolist()
        passes.append(PatchedPass(BaseCircuit(Circuit.full(graph)), tuple(sorted(ablated))))
    (outcome,) = engine.run([Work(state, ScorePasses(passes))])
    if isinstance(outcome, Exception):
        raise outcome
    weights = list(tensors(engine.worker._served["m"].model.weights))
    engine.close(state)
    return [float(score) for score in outcome], weights


def main(directory: str) -> None:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
    }
    from vllm import EngineArgs, LLMEngine, SamplingParams, _custom_ops
    from vllm.inputs import tokens_input

    from pahq_server.precision.products import matmul

    # On CPUs vLLM packs weights for oneDNN, and frees them.
    _custom_ops._supports_onednn = False
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=directory,
            dtype="float32",
            enforce_eager=True,
            skip_tokenizer_init=True,
            max_num_seqs=4,
            kv_cache_memory_bytes=16 << 20,
            worker_extension_cls="helpers.vllm_lending.Lender",
            disable_log_stats=True,
        )
    )
    model = engine.model_executor.driver_worker.worker.get_model()
    for module in model.modules():
        if hasattr(module, "cpu_linear"):
            # Rows as independent of the batch as with packed weights.
            module.cpu_linear = lambda x, w, b: matmul(x, w.T) if b is None else matmul(x, w.T) + b

    def sample() -> list[int]:
        how = SamplingParams(seed=1, max_tokens=20, ignore_eos=True, detokenize=False)
        engine.add_request("sample", tokens_input([3, 4, 5, 6]), how)
        outputs = []
        while engine.has_unfinished_requests():
            outputs += engine.step()
        return list(outputs[-1].outputs[0].token_ids)

    before = sample()
    (lent,) = engine.collective_rpc("lend", args=(directory,))
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    report: dict[str, Any] = {}
    for executor in ("literal", "sparse"):
        own, _ = scores(load(directory), executor)
        found, weights = scores(lent, executor)
        shared = [w for w in weights if w.untyped_storage().data_ptr() in storages]
        report[executor] = {
            "same": found == own,
            "difference": max(abs(a - b) for a, b in zip(found, own, strict=True)),
            "bytes": sum(w.nbytes for w in weights),
            "shared": sum(w.nbytes for w in shared),
        }
    report["samples"] = sample() == before
    print(json.dumps(report), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
