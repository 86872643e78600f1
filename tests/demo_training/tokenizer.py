"""The demo model's tokenizer: one token per word or punctuation mark, with the space before it.

Of numbers two digits at a time are a token, so that a year is its century and the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
UNKNOWN = "<|unknown|>"

_SPACE = "▁"


def build(texts: Iterable[str], context: int) -> PreTrainedTokenizerFast:
    """Makes a tokenizer whose vocabulary is all words of the texts, in alphabetical order.

    Args:
        texts: the training text.
        context: longest input of the model, in tokens.
    """
    splitter = _splitter()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)}
    vocabulary = {word: index for index, word in enumerate([END, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _splitter() -> pre_tokenizers.PreTokenizer:
    """Splits texts into words, each with the space before it; a text without a leading space gets one."""
    spaces = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first", split=False)
    word_or_mark = Regex(rf"{_SPACE}?\d\d?|{_SPACE}?[^\W\d]+|[^\w{_SPACE}]")
    return pre_tokenizers.Sequence([spaces, pre_tokenizers.Split(word_or_mark, "isolated")])
