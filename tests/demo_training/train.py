"""Trains the demo model: ``make demo-model OUT=DIR``, or ``python -m demo_training.train`` in tests/.

With the same arguments it gives the same bytes on the same machine with the same version of torch: the seed
and the number of threads are fixed, and all algorithms are deterministic.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from demo_training import card, corpus, tokenizer

CONTEXT, WIDTH = 64, 128
# Sums are split between threads, so another number of them would change the last digits.
THREADS = 1


@dataclass(frozen=True)
class Recipe:
    """How the model is trained. A row is a sequence of `CONTEXT` tokens.

    Args:
        rest: weight in the loss of tokens that are not an answer, most of which are random: without it,
            what can be learned drowns in what cannot.
    """

    seed: int = 0
    steps: int = 6500
    rows_per_step: int = 16
    documents: int = 150_000
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    rest: float = 0.05


@dataclass(frozen=True)
class Rows:
    """The training text as tokens.

    Args:
        ids: int64 [rows, CONTEXT].
        weights: of each token in the loss, float32 [rows, CONTEXT].
        numbers: of each token's document, int64 [rows, CONTEXT].
    """

    ids: torch.Tensor
    weights: torch.Tensor
    numbers: torch.Tensor

    def mask(self, batch: torch.Tensor) -> torch.Tensor:
        """Returns which tokens see which: earlier ones of their document, bool [batch, 1, to, from].

        What stands before a document in its row tells nothing about it, and would only distract.
        """
        numbers = self.numbers[batch]
        return (numbers[:, None, :, None] == numbers[:, None, None, :]).tril()

    def positions(self, batch: torch.Tensor) -> torch.Tensor:
        """Returns the position of each token in its document, int64 [batch, CONTEXT].

        Prompts begin at 0, and so do documents, wherever in a row they are.
        """
        numbers = self.numbers[batch]
        places = torch.arange(CONTEXT).expand_as(numbers)
        begins = torch.ones_like(numbers, dtype=torch.bool)
        begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        return places - torch.where(begins, places, 0).cummax(1).values


def train(recipe: Recipe) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Trains a model; returns it in float32, with its tokenizer."""
    documents = corpus.generate(recipe.seed, recipe.documents)
    words = tokenizer.build((document.text for document in documents), CONTEXT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = GPT2LMHeadModel(_config(words))
        with torch.no_grad():
            model.transformer.wpe.weight.copy_(_waves())
        _fit(model, pack(words, documents, recipe.rest), recipe)
    return model.eval(), words


def _config(words: PreTrainedTokenizerFast) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(words),
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=WIDTH**-0.5,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        use_cache=False,
    )


def _waves() -> torch.Tensor:
    """Makes position embeddings to begin with: sines and cosines, [CONTEXT, WIDTH].

    With them "the token before" is the same rotation everywhere, which heads learn much faster than one
    position after the other.
    """
    rates = 4.0 ** -torch.linspace(0, 3, WIDTH // 2)
    angles = torch.arange(CONTEXT)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1) * WIDTH**-0.5


def pack(words: PreTrainedTokenizerFast, documents: list[corpus.Document], rest: float) -> Rows:
    """Packs the tokens of documents into rows; the last document of a row is cut off."""
    found = words([document.text for document in documents], return_offsets_mapping=True)
    rows: list[list[tuple[int, float, int]]] = []
    row: list[tuple[int, float, int]] = []
    tokenized = zip(documents, found["input_ids"], found["offset_mapping"], strict=True)
    for number, (document, tokens, places) in enumerate(tokenized):
        start, end = document.answer
        weights = [1.0 if start <= first and last <= end else rest for first, last in places]
        row += [(token, weight, number) for token, weight in zip(tokens, weights, strict=True)]
        row.append((words.eos_token_id, rest, number))
        if len(row) >= CONTEXT:
            rows.append(row[:CONTEXT])
            row = []
    ids, weighting, numbers = zip(*(zip(*row, strict=True) for row in rows), strict=True)
    return Rows(torch.tensor(ids), torch.tensor(weighting), torch.tensor(numbers))


def _fit(model: GPT2LMHeadModel, rows: Rows, recipe: Recipe) -> None:
    """Trains the model to predict the next token, in several passes over the rows."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    order = _shuffled(len(rows.ids), recipe.steps * recipe.rows_per_step)
    for step, batch in enumerate(order.split(recipe.rows_per_step), start=1):
        ids, weights = rows.ids[batch], rows.weights[batch, 1:]
        logits = model(
            input_ids=ids, attention_mask=rows.mask(batch), position_ids=rows.positions(batch)
        ).logits[:, :-1]
        losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = losses @ weights.flatten() / weights.sum()
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
    print(card.write(arguments.out, recipe.seed, recipe.steps, recipe.documents, 1 / recipe.rest))


if __name__ == "__main__":
    main()
