"""Checkpoints in the layout of torchao's safetensors support, made of checkpoints of floats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import Float8Tensor, Int8Tensor, PerRow
from transformers import AutoModelForCausalLM, PreTrainedModel, TorchAoConfig

from pahq_server.precision.policy import Format
from pahq_server.precision.quantized import LARGEST, quantize, rounded

INDEX = "model.safetensors.index.json"


def by_torchao(w: Tensor, form: Format) -> Tensor:
    """A weight [O, I] as torchao quantises it by default: codes of int8 go down to -128."""
    found: Tensor = (Int8Tensor if form is Format.INT8 else Float8Tensor).from_hp(w, granularity=PerRow())
    return found


def by_us(w: Tensor, form: Format) -> Tensor:
    """A weight [O, I] as this server quantises it: codes of int8 from -127 to 127."""
    return quantize(w.float().T, form).weight


def on_the_grid(w: Tensor, form: Format, heads: int = 1) -> Tensor:
    """A weight [O, I] nearby whose numbers are codes times scales exactly, also when it is quantised again.

    The largest code of each row is that of the format, in the inputs of each of ``heads`` heads; and scales
    have 8 bits of fraction, so that their products with codes are exact in float32.
    """
    scale = (w.abs().amax(1, keepdim=True) / LARGEST[form]).bfloat16().float()
    codes = rounded(w, scale, form).float().view(len(w), heads, -1)
    by_head = w.view(codes.shape)
    at = by_head.abs().argmax(-1, keepdim=True)
    return codes.scatter_(-1, at, by_head.gather(-1, at).sign() * LARGEST[form]).view(w.shape) * scale


def is_projection(name: str) -> bool:
    """Whether a tensor is the weight of a linear map inside a layer: what transformers has quantised."""
    embeds = any(part in name for part in ("embed", "lm_head", "wte", "wpe"))
    return name.endswith(".weight") and "norm" not in name and ".ln_" not in name and not embeds


def quantize_files(
    source: Path,
    target: Path,
    form: Format,
    quantize: Callable[[Tensor, Format], Tensor] = by_us,
    which: Callable[[str], bool] = is_projection,
) -> Path:
    """Saves a checkpoint, file by file, with the weights ``which`` quantised; returns its directory."""
    target.mkdir(parents=True, exist_ok=True)
    described: dict[str, str] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kept = {n: quantize(w, form) if which(n) else w for n, w in tensors.items()}
        parts[path.name], metadata = flatten_tensor_state_dict(kept)
        names = json.loads(described.get("tensor_names", "[]")) + json.loads(metadata["tensor_names"])
        described |= metadata | {"tensor_names": json.dumps(names)}
    for name, tensors in parts.items():
        save_file(
            {n: t.contiguous() for n, t in tensors.items()}, target / name, {**described, "format": "pt"}
        )
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["quantization_config"] = torchao_config(form).to_dict()
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    if (source / INDEX).exists():
        files = {tensor: name for name, tensors in parts.items() for tensor in tensors}
        (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}), "utf-8")
    return target


def torchao_config(form: Format) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return TorchAoConfig((Int8WeightOnlyConfig if form is Format.INT8 else Float8WeightOnlyConfig)(version=2))


def save_by_transformers(
    model: PreTrainedModel, directory: Path, form: Format, dtype: torch.dtype, **options: Any
) -> Path:
    """Saves a model as transformers does, quantised by its TorchAoConfig."""
    plain = directory.with_name(f"{directory.name}-plain")
    model.save_pretrained(plain)
    config = torchao_config(form)
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, dtype=dtype).save_pretrained(
        directory, **options
    )
    shutil.rmtree(plain)
    return directory


def dequantized_files(source: Path, target: Path) -> Path:
    """Saves the floats that a quantised checkpoint stands for, as torchao reads it: the slow twin."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    floats = {
        name: w.dequantize(torch.float32) if hasattr(w, "qdata") else w.detach()
        for name, w in model.state_dict().items()
    }
    if model.config.tie_word_embeddings:
        floats.pop("lm_head.weight", None)
    target.mkdir(parents=True, exist_ok=True)
    save_file({name: w.clone().contiguous() for name, w in floats.items()}, target / "model.safetensors")
    config = json.loads((source / "config.json").read_text("utf-8"))
    config.pop("quantization_config")
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    return target
