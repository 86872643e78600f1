"""Tokenizers return token ids, or raise UntokenizableError with the reason."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from helpers.shared import shared_model
from helpers.tokenizers import gpt_like, letters_only, llama_like, loaded, with_bomb, words_only
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from pahq_server.core.task import UntokenizableError, VocabularyTokenizer
from pahq_server.models.tokenizer import PretrainedTokenizer, load_tokenizer


def fail(why: str) -> None:
    pytest.fail(why)


class Odd:
    """A stand-in for a tokenizer of transformers, which does what a test tells it to do."""

    unk_token_id = None

    def __init__(self, does: Callable[[], Any]) -> None:
        self._does = does

    def __call__(self, text: str, **options: object) -> dict[str, Any]:
        return {"input_ids": self._does()}

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}


def raises(error: BaseException) -> Callable[[], Any]:
    def do() -> Any:
        raise error

    return do


class Panic(BaseException):
    """Like the panics of Rust, this is no Exception."""


NO_UNKNOWN = {
    "words": lambda: words_only(["A", "B"]),
    "word pieces": lambda: loaded(Tokenizer(models.WordPiece({"A": 0}, unk_token="[UNK]"))),
    "pairs whose unknown token is not there": lambda: loaded(
        Tokenizer(models.BPE({"A": 0}, [], unk_token="<unk>"))
    ),
    "unigrams": lambda: loaded(Tokenizer(models.Unigram([("A", -1.0)], None))),
}


@pytest.mark.parametrize("kind", NO_UNKNOWN)
def test_texts_without_tokens_where_there_is_no_unknown_one(kind: str) -> None:
    tokenizer = NO_UNKNOWN[kind]()
    assert tokenizer.encode("A") == tokenizer.encode_plain("A") == [0]
    for encode in (tokenizer.encode, tokenizer.encode_plain):
        with pytest.raises(UntokenizableError, match=r"(?i)unk.*no unknown token to stand for it"):
            encode("D")


def test_a_panic_of_the_library_is_an_error_of_the_text() -> None:
    tokenizer = loaded(with_bomb(r"(a+)+$"))
    with pytest.raises(UntokenizableError, match="retry-limit"):
        tokenizer.encode("a" * 40 + "!")
    assert tokenizer.encode("b") == [1]


@pytest.mark.parametrize(
    "error", [TypeError("odd"), KeyError("x"), Panic("index out of bounds"), SystemError()]
)
def test_whatever_is_raised(error: BaseException) -> None:
    with pytest.raises(UntokenizableError) as caught:
        PretrainedTokenizer(Odd(raises(error))).encode("a")
    assert str(error) in str(caught.value) or type(error).__name__ in str(caught.value)


def test_what_is_no_fault_of_the_text_stays_what_it_is() -> None:
    error: BaseException = ValueError()  # for the first call, in the constructor
    tokenizer = PretrainedTokenizer(Odd(lambda: raises(error)()))
    for error in (MemoryError(), KeyboardInterrupt(), SystemExit()):
        with pytest.raises(type(error)):
            tokenizer.encode("a")


@pytest.mark.parametrize("found", [[1, None], [1.0], ["a"], [True]])
def test_what_is_no_id(found: list[object]) -> None:
    with pytest.raises(UntokenizableError, match="instead of token ids"):
        PretrainedTokenizer(Odd(lambda: found)).encode_plain("a")


@pytest.mark.parametrize("make", [lambda: gpt_like(["a"]), lambda: llama_like(["a"])])
def test_odd_texts(make: Callable[[], PretrainedTokenizer]) -> None:
    tokenizer = make()
    with pytest.raises(UntokenizableError, match=r"U\+D800, at character 1"):
        tokenizer.encode("a\ud800")
    for text in ("", "a\0b", "\u202e", "x" * 50_000, " " * 5000, "\U0001f642", "</s>", "e\u0301"):
        ids = tokenizer.encode(text)
        assert all(type(token) is int for token in ids)
        assert len(tokenizer.token_strings(ids)) == len(ids)


def test_what_a_vocabulary_tells() -> None:
    tokenizer = llama_like(["Tom"], end=True)
    assert isinstance(tokenizer, VocabularyTokenizer)
    assert tokenizer.token_strings(tokenizer.encode(" Tom")) == ["<s>", "▁", "▁Tom", "</s>"]
    assert tokenizer.token_strings([10_000, -1, 2**70]) == ["<10000>", "<-1>", f"<{2**70}>"]
    assert tokenizer.longest_token_bytes == len("▁Tom".encode())
    assert tokenizer.unknown_id == 0
    assert words_only(["A"], "<unk>").unknown_id == 1
    assert words_only(["A"]).unknown_id is None
    # The unknown token of transformers may be one that the encoding never uses.
    end = Tokenizer(models.BPE({"a": 0, "<end>": 1}, []))
    assert loaded(end, unk_token="<end>").unknown_id is None


def test_characters_that_are_left_out() -> None:
    assert letters_only("ABC").left_out("AxByxC") == "xy"
    assert letters_only("ABC").encode("AxB") == [0, 1], "the library leaves them out without a word"
    for complete in (gpt_like(["a"]), llama_like(["a"]), words_only(["a"])):
        assert complete.left_out("aé\U0001f642\0") == ""


def test_characters_of_which_a_byte_is_left_out() -> None:
    tokenizer = Tokenizer(models.BPE({byte: i for i, byte in enumerate("Ġabc")}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert loaded(tokenizer).left_out("a bé c") == "é"


def test_what_is_normalized_to_known_characters_is_not_left_out() -> None:
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate("abc")}, []))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert loaded(tokenizer).left_out("A bC d\n") == "d"


def test_a_configured_truncation_has_no_effect_and_no_race() -> None:
    inner = Tokenizer(models.BPE({"a": 0}, []))
    inner.enable_truncation(2)
    tokenizer = loaded(inner)
    found: list[int] = []

    def encode() -> None:
        found.extend(len(tokenizer.encode("a" * 9)) for _ in range(200))

    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [9] * 800


@pytest.mark.parametrize(
    ("name", "text"), [("tinytalk-gptneo-hf", " Lily and Tom"), ("stories260K-hf", "Tom saw a dog.")]
)
def test_real_tokenizers_give_what_transformers_gives(name: str, text: str) -> None:
    from transformers import AutoTokenizer

    directory = shared_model(name)
    tokenizer, theirs = load_tokenizer(directory, fail), AutoTokenizer.from_pretrained(directory)
    assert tokenizer is not None
    assert tokenizer.encode(text) == theirs(text)["input_ids"]
    assert tokenizer.encode_plain(text) == theirs(text, add_special_tokens=False)["input_ids"]


# Tokens as text


def decoding(tokenizer: PretrainedTokenizer, decoder: Any) -> PretrainedTokenizer:
    tokenizer._tokenizer.backend_tokenizer.decoder = decoder
    return tokenizer


@pytest.mark.parametrize("token", [" Tom", "Tom", "\n", " "])
def test_what_a_token_adds_to_a_text(token: str) -> None:
    tokenizer = decoding(gpt_like(["Tom", "to"]), decoders.ByteLevel())
    (id,) = tokenizer.encode_plain(token)
    for before in ("gave it to", "", "x" * 100):
        assert tokenizer.texts_after(tokenizer.encode(before), [id, id]) == [token, token]


def test_spaces_that_a_decoder_drops_at_the_beginning_of_a_text_are_there() -> None:
    tokenizer = decoding(llama_like(["Tom", "to"], bare=["Tom"]), decoders.Metaspace())
    ids = [tokenizer._tokenizer.get_vocab()[token] for token in ("▁Tom", "Tom", "</s>")]
    assert tokenizer._tokenizer.decode(ids[:1]) == "Tom"
    before = tokenizer.encode("to")
    assert tokenizer.texts_after(before, ids[:2]) == [" Tom", "Tom"]
    assert "</s>" in tokenizer.texts_after(before, ids)[2]


def test_what_is_no_whole_text_is_as_in_the_vocabulary() -> None:
    tokenizer = decoding(gpt_like(["Tom"]), decoders.ByteLevel())
    first, second = tokenizer.encode_plain("é")
    assert tokenizer.texts_after(tokenizer.encode("Tom"), [first]) == tokenizer.token_strings([first])
    assert tokenizer.texts_after([first], [second]) == tokenizer.token_strings([second])
    assert tokenizer.texts_after([], [10**6, -1]) == ["<1000000>", "<-1>"]


@pytest.mark.parametrize("does", [raises(Panic("lost")), raises(ValueError("no")), lambda: None])
def test_decoders_that_fail(does: Callable[[], Any]) -> None:
    tokenizer = gpt_like(["Tom"])
    tokenizer._tokenizer = Odd(does)
    tokenizer._tokenizer.decode = lambda *ids, **options: does()
    tokenizer._tokenizer.convert_ids_to_tokens = lambda token: f"token {token}"
    assert tokenizer.texts_after([1], [2]) == ["token 2"]
