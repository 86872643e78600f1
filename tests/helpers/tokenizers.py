"""Small tokenizers of every kind, made here, as transformers would load them."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pahq_server.models.tokenizer import PretrainedTokenizer

# An expression that takes time exponential in the length of a run of "a", up to a limit per position.
BOMB = r"(a|aa)+$"


def loaded(tokenizer: Tokenizer, **special: str) -> PretrainedTokenizer:
    return PretrainedTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special))


def llama_like(words: Iterable[str], bare: Iterable[str] = (), end: bool = False) -> PretrainedTokenizer:
    """Puts a space before every text; single characters, and these words, are tokens.

    Args:
        words: with a token that includes the space before them.
        bare: with a token that does not.
        end: whether texts end with a special token, too.
    """
    letters = "▁.,?!'" + "".join(chr(code) for code in (*range(48, 58), *range(65, 91), *range(97, 123)))
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(letter, -10.0) for letter in letters]
    pieces += [(f"▁{word}", -1.0) for word in dict.fromkeys(words)]
    pieces += [(word, -2.0) for word in dict.fromkeys(bare)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    single = "<s> $A </s>" if end else "<s> $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return loaded(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gpt_like(words: Iterable[str]) -> PretrainedTokenizer:
    """Byte-level, with all bytes; the words are tokens with and without the space before them."""
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [(word[: end - 1], word[end - 1]) for end in range(2, len(word) + 1)]
        for left, right in (*parts, ("Ġ", word)):
            if left + right not in vocabulary:
                vocabulary[left + right] = len(vocabulary)
                merges.append((left, right))
    # Merges of one word may get into the way of another's; a word that is a token is not split by any.
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return loaded(tokenizer)


def words_only(words: Iterable[str], unknown: str | None = None) -> PretrainedTokenizer:
    """A token per word; others raise, or are the unknown token."""
    known = [*dict.fromkeys(words), *([unknown] if unknown else [])]
    vocabulary = {word: i for i, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown or "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return loaded(tokenizer)


def letters_only(letters: str) -> PretrainedTokenizer:
    """A byte pair encoding without an unknown token: it leaves other letters out without a word."""
    return loaded(Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [])))


def with_bomb(expression: str = BOMB) -> Tokenizer:
    """Splits texts by an expression that may take for ever."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "b": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(expression), "isolated")
    return tokenizer
