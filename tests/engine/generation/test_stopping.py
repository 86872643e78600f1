"""Texts of samples: token by token the same as at once, stop texts across tokens, halves of characters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pahq_server.demo import model_path
from pahq_server.engine.generation.stopping import Detokenizer, SampleText, end_tokens, sample_text
from pahq_server.models.tokenizer import load_tokenizer


class Bytes:
    """A token per byte, and one for a word."""

    WORD = 256

    def encode_plain(self, text: str) -> list[int]:
        start, *rest = text.split(" Tom")
        ids = list(start.encode())
        for part in rest:
            ids += [self.WORD, *part.encode()]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        whole = b"".join(b" Tom" if token == self.WORD else bytes([token]) for token in ids)
        return whole.decode("utf-8", errors="replace")


class FirstSpaceLost(Bytes):
    """Drops a space at the beginning of a text, as decoders of SentencePiece do."""

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(ids).removeprefix(" ")


BYTES = Bytes()


def added(tokenizer: Detokenizer, ids: list[int], stop: tuple[str, ...]) -> tuple[str, int]:
    """The text, and how many tokens it took."""
    text = SampleText(tokenizer, [], stop)
    for count, token in enumerate(ids, start=1):
        if text.add(token):
            return text.finish(), count
    return text.finish(), len(ids)


def test_a_stop_text_may_span_tokens() -> None:
    ids = BYTES.encode_plain("abc Tom def")
    assert added(BYTES, ids, ()) == ("abc Tom def", len(ids))
    assert added(BYTES, ids, ("c To",)) == ("ab", 4)
    assert added(BYTES, ids, ("f", "e")) == ("abc Tom d", len(ids) - 1)
    # The one that is complete first ends the text, though another one begins before it.
    assert added(BYTES, ids, ("bc Tom d", "c")) == ("ab", 3)
    assert added(BYTES, ids, ("a",)) == ("", 1)


def test_of_two_stop_texts_in_one_token_the_first_counts() -> None:
    ids = BYTES.encode_plain("x Tom")
    assert added(BYTES, ids, ("m", "To")) == ("x ", len(ids))


def test_characters_of_several_tokens_come_whole() -> None:
    ids = BYTES.encode_plain("aé€😀b")
    text = SampleText(BYTES, [])
    grown = []
    for token in ids:
        text.add(token)
        grown.append(text.text)
    assert set(grown) == {"a", "aé", "aé€", "aé€😀", "aé€😀b"}
    assert added(BYTES, ids, ("€",)) == ("aé", 6)


def test_half_a_character_at_the_end_is_told() -> None:
    half = BYTES.encode_plain("a€")[:-1]
    assert sample_text(BYTES, [], half).startswith("a")
    assert sample_text(BYTES, [], half).endswith("\ufffd")


def test_spaces_after_the_prompt_are_kept() -> None:
    tokenizer = FirstSpaceLost()
    assert tokenizer.decode([Bytes.WORD]) == "Tom"
    assert sample_text(tokenizer, tokenizer.encode_plain("a"), [Bytes.WORD]) == " Tom"


def test_a_tokenizer_of_transformers_decodes() -> None:
    tokenizer = load_tokenizer(model_path(), lambda warning: None)
    assert isinstance(tokenizer, Detokenizer)
    prompt, ids = tokenizer.encode("Mary and John went"), tokenizer.encode(" to the store.")
    assert sample_text(tokenizer, prompt, ids) == " to the store."
    assert added(tokenizer, ids, ("he st",)) == (" to t", 3)


def test_texts_do_not_depend_on_when_tokens_come() -> None:
    ids = BYTES.encode_plain("é Tom went €uro 😀")
    whole = sample_text(BYTES, [3, 4], ids)
    for cut in range(len(ids)):
        text = SampleText(BYTES, [3, 4])
        for token in ids[:cut]:
            text.add(token)
        for token in ids[cut:]:
            text.add(token)
        assert text.finish() == text.finish() == whole


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, {}, ()),
        (None, {"eos_token_id": 3}, (3,)),
        ({}, {"eos_token_id": 3}, (3,)),
        ({"eos_token_id": [7, 2, 7]}, {"eos_token_id": 3}, (2, 7)),
        ({"eos_token_id": 50256}, {}, ()),
        ({"eos_token_id": -1}, {}, ()),
    ],
)
def test_end_tokens(
    generation: dict[str, object] | None, config: dict[str, object], expected: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_tokens(tmp_path, 10) == expected
