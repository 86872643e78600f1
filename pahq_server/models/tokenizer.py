"""Tokenizing text exactly as the model's own tokenizer does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Tokenizer


class PretrainedTokenizer:
    """A tokenizer loaded by transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    def encode_plain(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def load_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint directory, or None if it has none. Raises InvalidRequestError."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((directory / name).is_file() for name in names):
        return None
    try:
        tokenizer = _pretrained(directory)
    except Exception as error:
        raise InvalidRequestError("model", f"its tokenizer cannot be read: {error!r}") from error
    return PretrainedTokenizer(tokenizer)


def _pretrained(directory: Path) -> Any:
    """The tokenizer as transformers reads it. Raises whatever transformers raises."""
    # Imported where it is needed, as all of transformers: 100 MB.
    from transformers import AutoTokenizer, PretrainedConfig

    model_type = json.loads((directory / "config.json").read_text("utf-8")).get("model_type")
    # transformers would read the configuration, too, and fail on some that are not its own.
    config = {"config": PretrainedConfig()} if model_type == "hooked_transformer" else {}
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, **config)
