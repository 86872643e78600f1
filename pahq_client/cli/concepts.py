"""Commands about concepts in states: ``concepts``, and what ``compare`` does with two codebooks."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from pahq_client import files
from pahq_client.cli.neurons import read_texts
from pahq_client.cli.options import waiting
from pahq_client.cli.output import print_json, put, save_and_print
from pahq_client.codebook import Codebook
from pahq_client.discover import learn_concepts

_OPTIONS = (
    *("layer", "layers", "codes", "neighbours", "temperature", "steps", "batch", "learning_rate", "memory"),
    *("decoder_layers", "decoder_heads", "seed", "max_states", "skip", "long_texts", "precision"),
    "include_prompts",
)


def learn(arguments: Namespace) -> None:
    """Learns concepts, prints them and writes the file asked for."""
    if arguments.out is not None:
        files.check_target("--out", arguments.out)  # before the work, not after
    texts = read_texts("--texts", arguments.texts)
    options: Any = {name: getattr(arguments, name) for name in _OPTIONS}
    found = learn_concepts(arguments.model, texts, **options, **waiting(arguments))
    save_and_print(found, arguments)


def compare(a: Codebook, b: Codebook, arguments: Namespace) -> None:
    """Prints pairs of concepts of two codebooks, the most similar first."""
    pairs = a.compare(b, allow_other_model=arguments.allow_other_model)
    if arguments.json:
        print_json([{"a": mine.name, "b": near.concept.name, "cosine": near.cosine} for mine, near in pairs])
        return
    put("a", "b", "cosine", "tokens of a", "tokens of b")
    for mine, near in pairs:
        tokens = (
            " ".join(token.text or str(token.id) for token in concept.tokens[:5])
            for concept in (mine, near.concept)
        )
        put(mine, near.concept, f"{near.cosine:.4f}", *tokens)
