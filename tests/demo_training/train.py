"""Trains the demo model: ``make demo-model OUT=DIR``, or ``python -m demo_training.train`` in tests/.

With the same arguments it gives the same bytes on the same machine with the same version of torch: the seed
and the number of threads are fixed, and all algorithms are deterministic.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from demo_training import card, corpus, tokenizer

CONTEXT = 64
# Sums are split between threads, so another number of them would change the last digits.
THREADS = 2


@dataclass(frozen=True)
class Recipe:
    """How the model is trained. A row is a sequence of `CONTEXT` tokens."""

    seed: int = 0
    steps: int = 4000
    rows_per_step: int = 16
    documents: int = 100_000
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100


def train(recipe: Recipe) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Trains a model; returns it in float32, with its tokenizer."""
    documents = corpus.generate(recipe.seed, recipe.documents)
    words = tokenizer.build(documents, CONTEXT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = GPT2LMHeadModel(_config(words))
        _fit(model, _pack(words, documents), recipe)
    return model.eval(), words


def _config(words: PreTrainedTokenizerFast) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(words),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=8,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        use_cache=False,
    )


def _pack(words: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """Packs the token ids of documents into rows: int64 [rows, CONTEXT].

    Each row begins with the beginning of a document, as prompts do; the last document of a row is cut off.
    """
    rows: list[list[int]] = []
    row: list[int] = []
    for ids in words(documents)["input_ids"]:
        row += [*ids, words.eos_token_id]
        if len(row) >= CONTEXT:
            rows.append(row[:CONTEXT])
            row = []
    return torch.tensor(rows)


def _fit(model: GPT2LMHeadModel, rows: torch.Tensor, recipe: Recipe) -> None:
    """Trains the model to predict the next token at all positions, in several passes over the rows."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    order = _shuffled(len(rows), recipe.steps * recipe.rows_per_step)
    for step, batch in enumerate(order.split(recipe.rows_per_step), start=1):
        loss = model(input_ids=rows[batch], labels=rows[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)


def _rate(step: int, recipe: Recipe) -> float:
    """Returns the factor on the learning rate: linear warm-up, then linear decay to zero."""
    left = (recipe.steps - step) / recipe.steps
    return min(1.0, (step + 1) / recipe.warmup_steps) * left


def _shuffled(rows: int, count: int) -> torch.Tensor:
    """Draws ``count`` indices of rows: passes over all rows, each in a new random order."""
    passes = -(-count // rows)
    return torch.cat([torch.randperm(rows) for _ in range(passes)])[:count]


def save(model: GPT2LMHeadModel, words: PreTrainedTokenizerFast, out: Path) -> None:
    """Saves a checkpoint of transformers in half precision."""
    model.half().save_pretrained(out)
    words.save_pretrained(out)


def main() -> None:
    defaults = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m demo_training.train", description="Train the demo model."
    )
    parser.add_argument("--out", type=Path, default=Path("demo-model"), help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps, help="optimizer steps")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    recipe = Recipe(seed=arguments.seed, steps=arguments.steps)
    save(*train(recipe), arguments.out)
    print(card.write(arguments.out, recipe.seed, recipe.steps, recipe.documents))


if __name__ == "__main__":
    main()
