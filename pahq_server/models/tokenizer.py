"""The tokenizer of a served model: that of its checkpoint, loaded by transformers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Tokenizer, UntokenizableError
from pahq_server.models.files import CONFIG, check_regular, read_json

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SURROGATE = re.compile("[\ud800-\udfff]")
# The characters that stand for a space in vocabularies (SentencePiece, GPT-2).
_SPACES = "\u2581\u0120"
# What decoders write for bytes that are no character.
_NO_CHARACTER = "\ufffd"
# How many tokens before one are decoded with it: enough for what a decoder does at the beginning of a text.
_CONTEXT = 8


class PretrainedTokenizer:
    """A tokenizer of transformers, as a `core.task.VocabularyTokenizer`.

    Args:
        tokenizer: as transformers has loaded it.

    Attributes:
        longest_token_bytes: length of the longest token in UTF-8.
        unknown_id: id of the token that stands for any unknown text; None if there is none.
    """

    def __init__(self, tokenizer: Any) -> None:
        # With parallelism all tokenizers share one pool of threads, and one that hangs blocks all others.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._tokenizer = tokenizer
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.longest_token_bytes = max((len(token.encode()) for token in vocabulary), default=1)
        # The Rust tokenizer inside; None for tokenizers that are written in Python.
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.unknown_id = self._find_unknown_id()
        self._complete = self._has_every_byte(vocabulary)
        self._lost: dict[str, bool] = {}
        # The first call resets settings such as truncation, which must not happen while another thread
        # tokenizes. So it is made here.
        with suppress(UntokenizableError):
            self.encode("")

    def encode(self, text: str) -> list[int]:
        """Returns token ids, with special tokens. Raises UntokenizableError."""
        return self._encode(text, special=True)

    def encode_plain(self, text: str) -> list[int]:
        """Returns token ids, without special tokens. Raises UntokenizableError."""
        return self._encode(text, special=False)

    def _encode(self, text: str, special: bool) -> list[int]:
        half = _SURROGATE.search(text)
        if half is not None:
            detail = f"it holds half of a surrogate pair, U+{ord(half[0]):04X}, at character {half.start()}"
            raise UntokenizableError(f"{detail}, which is no character")
        try:
            # transformers calls `encode_batch` of the tokenizers library, which releases the GIL.
            found = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
            raise
        # A panic of the tokenizers library, which is written in Rust, is no Exception.
        except BaseException as error:  # noqa: BLE001
            raise UntokenizableError(_reason(error)) from None
        ids = list(found)
        # Some tokenizers return None for tokens that the vocabulary lacks. Booleans are no ids either.
        if not all(type(token) is int for token in ids):
            raise UntokenizableError(f"the tokenizer gave {ids[:8]} instead of token ids")
        return ids

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Returns tokens as the vocabulary writes them; "<7>" for an id that it does not have."""
        return [self._token_string(token) for token in ids]

    def _token_string(self, token: int) -> str:
        try:
            found = self._tokenizer.convert_ids_to_tokens(token)
        except (IndexError, KeyError, OverflowError, TypeError, ValueError):
            found = None
        return found if isinstance(found, str) else f"<{token}>"

    def texts_after(self, before: Sequence[int], ids: Sequence[int]) -> list[str]:
        """Returns what each token adds to the text of the tokens ``before`` it, such as " Tom".

        That is more than its own text where a tokenizer drops spaces at the beginning of texts. A token that
        is no whole text, such as a byte of a character, is returned as the vocabulary writes it.
        """
        context = list(before[-_CONTEXT:])
        start = self._decoded(context)
        return [
            self._added(start, self._decoded([*context, token])) or self._token_string(token) for token in ids
        ]

    def _added(self, start: str | None, whole: str | None) -> str:
        """Returns what ``whole`` has after ``start``; empty if it does not begin so or is no whole text."""
        if start is None or whole is None or not whole.startswith(start):
            return ""
        added = whole[len(start) :]
        return "" if _NO_CHARACTER in added else added

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of tokens, special ones included; empty if they have none."""
        return self._decoded(list(ids)) or ""

    def _decoded(self, ids: list[int]) -> str | None:
        """Returns the text of tokens; None if they have none."""
        try:
            found = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
            raise
        # A panic of the tokenizers library, which is written in Rust, is no Exception.
        except BaseException:  # noqa: BLE001
            return None
        return found if isinstance(found, str) else None

    def left_out(self, text: str) -> str:
        """Returns the characters of a text, each once, that the tokenizer silently leaves out.

        Only byte pair encodings without an unknown token and without tokens for all bytes leave anything out.
        """
        if self._complete:
            return ""
        for added in self._tokenizer.get_added_vocab():
            text = text.replace(added, "")
        return "".join(char for char in dict.fromkeys(text) if self._is_lost(char))

    def _is_lost(self, char: str) -> bool:
        known = self._lost.get(char)
        if known is None:
            known = self._lost[char] = not all(map(self._has_token, self._units(char)))
        return known

    def _units(self, char: str) -> str:
        """Returns what byte pair encoding looks up for a character: itself, its normal form, or its bytes."""
        normalizer, splitter = self._backend.normalizer, self._backend.pre_tokenizer
        units = char if normalizer is None else normalizer.normalize_str(char)
        if splitter is not None:
            units = "".join(word for word, _ in splitter.pre_tokenize_str(units))
        # A space that the tokenizer puts before every text is no part of this character.
        return units if char.isspace() else units.lstrip(_SPACES)

    def _has_token(self, unit: str) -> bool:
        model = self._backend.model
        forms = (
            unit,
            f"{model.continuing_subword_prefix or ''}{unit}",
            f"{unit}{model.end_of_word_suffix or ''}",
        )
        return any(self._backend.token_to_id(form) is not None for form in forms)

    def _find_unknown_id(self) -> int | None:
        if self._backend is None or type(self._backend.model).__name__ == "Unigram":
            found = self._tokenizer.unk_token_id
        else:
            # The unknown token that transformers names may be one that the encoding never uses.
            name = getattr(self._backend.model, "unk_token", None)
            found = self._backend.token_to_id(name) if name else None
        return found if isinstance(found, int) else None

    def _has_every_byte(self, vocabulary: dict[str, int]) -> bool:
        """Tells whether every character has tokens, or is replaced by the unknown token."""
        model: Any = None if self._backend is None else self._backend.model
        if type(model).__name__ != "BPE" or model.unk_token:
            return True
        parts = (self._backend.normalizer, self._backend.pre_tokenizer)
        if any(part is not None and b'"ByteLevel"' in part.__getstate__() for part in parts):
            from tokenizers.pre_tokenizers import ByteLevel

            return all(unit in vocabulary for unit in ByteLevel.alphabet())
        return bool(model.byte_fallback) and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))


def _reason(error: BaseException) -> str:
    """Returns the first line of an error's message, with an explanation where it is about unknown tokens."""
    text = str(error).strip() or repr(error)
    if "UNK" in text or "unk_id" in text or "Unk token" in text:
        text = f"{text}. Some of the text has no token, and the tokenizer no unknown token to stand for it"
    return text.splitlines()[0][:300]


def load_tokenizer(directory: Path, warn: Callable[[str], None]) -> Tokenizer | None:
    """Loads the tokenizer of a checkpoint.

    Args:
        directory: of the checkpoint.
        warn: called with a sentence for the operator if there are files of a tokenizer that cannot be loaded.

    Returns:
        None if there is no usable tokenizer. The model then takes token ids only.
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
    # A panic of the tokenizers library, which is written in Rust, is no Exception.
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
    """Loads a tokenizer with transformers. Raises whatever transformers raises."""
    # Imported here because transformers takes 100 MB.
    from transformers import AutoTokenizer, PretrainedConfig

    model_type = read_json(directory / CONFIG).get("model_type")
    # transformers would also read config.json, which is not in its format here.
    config = {"config": PretrainedConfig()} if model_type == "hooked_transformer" else {}
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, **config)
