"""Models to sample from: the demo model, and a random Llama whose samples have lengths of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from helpers import random_models
from torch import Tensor

from pahq_server.demo import model_path

# Special tokens of the Llama: the end of a sample, and the first and the last token of each prompt.
END, FIRST, LAST = 0, 1, 2
SPECIAL = 3
TOPICS, WORDS = 6, 40
VOCABULARY = SPECIAL + TOPICS * WORDS
WIDTH, PROMPT = 256, 16
# Axes of the residual stream: what all tokens have, the first token's mark, its share of all tokens so far;
# then one axis per topic.
CONSTANT, MARK, SHARE_OF_FIRST, TOPIC = 0, 1, 2, 3
# By how much the log of the probability of an end is less after t tokens, prompt included: YOUTH / t. Young
# samples hardly ever end.
YOUTH = 300.0


@dataclass(frozen=True)
class Subject:
    """A model and what it is asked for.

    Args:
        name: in words.
        directory: of its checkpoint.
        prompt: a text, or token ids where it has no tokenizer.
        max_tokens: the most of each sample.
        speed: whether its speed is compared with plain vLLM's; once per shape.
    """

    name: str
    directory: Path
    prompt: str | tuple[int, ...]
    max_tokens: int
    speed: bool = True


def demo(_: Path) -> Subject:
    return Subject("demo", model_path(), "When Mary and John", 56)


def lasting_topics(directory: Path) -> Subject:
    """Lengths are about lognormal: median 87, deviation of logs .59, of which first tokens tell .36."""
    _llama(directory, faith=12.0, hazards=(-5.5, -0.5))
    return Subject("Llama, lasting topics", directory, _prompt(), 320)


def fading_topics(directory: Path) -> Subject:
    """Likewise: median 61, deviation .64, of which first tokens tell .20. A few samples end at the cap."""
    _llama(directory, faith=9.0, hazards=(-6.0, 0.0))
    return Subject("Llama, fading topics", directory, _prompt(), 320, speed=False)


def _prompt() -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1)
    middle = torch.randint(SPECIAL, VOCABULARY, (PROMPT - 2,), generator=generator).tolist()
    return FIRST, *middle, LAST


def _llama(directory: Path, faith: float, hazards: tuple[float, float]) -> None:
    """Saves a Llama of 4 layers and a width of 256, random but for what decides when a sample ends.

    Its words belong to six topics. The first word is of any topic, each further one nearly always of that of
    the word before it. A topic has its own probability of an end, which the first tokens' distributions show;
    and a sample is the less likely to end the younger it is, by the share of the prompt's first token among
    all tokens, which a head of the first layer measures.

    Args:
        directory: of the checkpoint.
        faith: how much likelier words of the same topic are than others, as a difference of logits.
        hazards: the least and the most of the topics' log-probabilities of an end, in old samples.
    """
    model = random_models.llama(
        seed=3,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=512,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        eos_token_id=END,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Queries and keys are so small that all tokens are attended to alike.
            parameter.copy_(torch.ones_like(parameter) if "norm" in name else parameter * 0.05)
        first = model.model.layers[0].self_attn
        embedding = model.model.embed_tokens.weight
        embedding[:, : TOPIC + TOPICS] = 0
        embedding[:, CONSTANT] = 1
        embedding[LAST, TOPIC + TOPICS :] = 0
        embedding[FIRST, MARK] = 1
        for topic in range(TOPICS):
            embedding[_words(topic), TOPIC + topic] = 1
        # The mark, as large as the norm makes it, divided by the number of tokens.
        first.v_proj.weight[0] = 0
        first.v_proj.weight[0, MARK] = 1
        first.o_proj.weight[SHARE_OF_FIRST] = 0
        first.o_proj.weight[SHARE_OF_FIRST, 0] = 0.5
        _unembed(model.lm_head.weight, embedding, faith, hazards)
    model.save_pretrained(directory)


def _unembed(unembedding: Tensor, embedding: Tensor, faith: float, hazards: tuple[float, float]) -> None:
    """Sets what the axes with a meaning say about the next token."""

    def size(token: int) -> float:
        """By how much a norm enlarges the embedding of a token."""
        return float(WIDTH**0.5 / embedding[token].norm())

    word = size(SPECIAL)
    unembedding[:, : TOPIC + TOPICS] = 0
    unembedding[:SPECIAL, CONSTANT] = -30 / word
    share = 0.5 * size(FIRST)
    unembedding[END, SHARE_OF_FIRST] = -YOUTH / share / word
    unembedding[END, CONSTANT] = 0
    words_of_a_topic = torch.tensor(float(WORDS)).log() + faith
    steps = torch.linspace(*hazards, TOPICS)
    for topic in range(TOPICS):
        unembedding[_words(topic), TOPIC + topic] = faith / word
        unembedding[END, TOPIC + topic] = (words_of_a_topic + steps[topic]) / word


def _words(topic: int) -> slice:
    return slice(SPECIAL + topic * WORDS, SPECIAL + (topic + 1) * WORDS)


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    make.__name__: make for make in (demo, lasting_topics, fading_topics)
}
