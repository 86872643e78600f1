"""Loading a checkpoint as a model of transformers: to compare with, and to generate text."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pahq_server.core.errors import InvalidRequestError


def load_causal_lm(directory: Path) -> Any:
    """Loads a checkpoint in float32 on the CPU, with eager attention, for inference.

    No code of the checkpoint is run, and nothing is downloaded.

    Raises InvalidRequestError (field ``model``) if transformers does not load the checkpoint, or would make
    up missing weights.
    """
    try:
        with quiet():
            # Imported here, because its optional parts warn on import.
            from transformers import AutoModelForCausalLM

            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=torch.float32,
                attn_implementation="eager",
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                return_dict=True,  # config.json may turn it off; it does not change results
            )
    except Exception as error:
        raise InvalidRequestError("model", f"transformers does not load it: {error}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise InvalidRequestError("model", f"transformers finds no weights for {', '.join(missing[:5])}")
    _use_stored_values(model)
    return model.eval()


def _use_stored_values(model: torch.nn.Module) -> None:
    """Replaces quantised weights by the float32 numbers that they stand for, as torchao reads them.

    Otherwise inputs would be rounded where the checkpoint asks for that, and numbers to the model's dtype.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            weight: Any = parameter.data
            if type(weight) is not torch.Tensor and hasattr(weight, "qdata"):
                floats = weight.dequantize(torch.float32)
                setattr(module, name, torch.nn.Parameter(floats, requires_grad=False))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars of transformers, and what libraries log below errors, out of standard error."""
    from transformers.utils import logging as library

    bars, disabled = library.is_progress_bar_enabled(), logging.root.manager.disable
    library.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        if bars:
            library.enable_progress_bar()
