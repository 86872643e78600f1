"""Tokenizing text exactly as the model's own tokenizer does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Tokenizer
from pahq_server.models.files import CONFIG, check_regular, read_json

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class PretrainedTokenizer:
    """A tokenizer loaded by transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    def encode_plain(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def load_tokenizer(directory: Path, warn: Callable[[str], None]) -> Tokenizer | None:
    """The tokenizer of a checkpoint directory.

    Args:
        directory: of the checkpoint.
        warn: called with a sentence that says why there is none, if there are files of one.

    Returns:
        None where there is none that can be used: the model then takes token ids, and no text.
    """
    if not any((directory / name).exists() for name in _TOKENIZER_FILES):
        return None
    try:
        for name in _TOKENIZER_FILES:
            if (directory / name).exists():
                check_regular(directory / name)
        return PretrainedTokenizer(_pretrained(directory))
    except (KeyboardInterrupt, SystemExit):
        raise
    # The tokenizers library is written in Rust: what it panics on is no Exception.
    except BaseException as error:  # noqa: BLE001
        why = error.detail if isinstance(error, InvalidRequestError) else str(error).strip() or repr(error)
        if not (directory / "tokenizer.json").exists():
            why += (
                ". Only tokenizer.json is sure to be readable: save it with save_pretrained() of "
                "transformers, where the packages of the original tokenizer are installed"
            )
        warn(f"serving token ids only, its tokenizer cannot be read: {why}")
        return None


def _pretrained(directory: Path) -> Any:
    """The tokenizer as transformers reads it. Raises whatever transformers raises."""
    # Imported where it is needed, as all of transformers: 100 MB.
    from transformers import AutoTokenizer, PretrainedConfig

    model_type = read_json(directory / CONFIG).get("model_type")
    # transformers would read the configuration, too, and fail on some that are not its own.
    config = {"config": PretrainedConfig()} if model_type == "hooked_transformer" else {}
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, **config)
