"""Measures how well a checkpoint does the built-in task "ioi"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pahq_server.tasks import ioi


@dataclass(frozen=True)
class Score:
    """Results of one set of prompts, means over prompts.

    Args:
        num_prompts: number of prompts.
        accuracy: share of prompts for which the answer is the most likely of all tokens.
        logit_difference: logit of the answer minus that of the wrong answer.
        corrupted_logit_difference: the same difference for the corrupted prompts.
    """

    num_prompts: int
    accuracy: float
    logit_difference: float
    corrupted_logit_difference: float


@dataclass(frozen=True)
class HubTokenizer:
    """Adapts a tokenizer of transformers to `core.task.Tokenizer`."""

    tokenizer: PreTrainedTokenizerBase

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def encode_plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def evaluate(path: Path, names: Sequence[str], num_prompts: int, seed: int) -> Score:
    """Measures a saved checkpoint, with its weights converted to float32.

    Args:
        path: folder of the checkpoint.
        names: to draw prompts from.
        num_prompts, seed: of the task.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = HubTokenizer(AutoTokenizer.from_pretrained(path))
    prompts = ioi.generate(tokenizer, num_prompts, seed, names)
    answers = torch.tensor([tokenizer.encode_plain(text) for text in prompts.answers])
    wrong = torch.tensor([tokenizer.encode_plain(text) for text in prompts.wrong_answers])
    clean = _last_logits(model, [tokenizer.encode(text) for text in prompts.clean])
    corrupted = _last_logits(model, [tokenizer.encode(text) for text in prompts.corrupted])
    return Score(
        num_prompts=num_prompts,
        accuracy=(clean.argmax(-1) == answers[:, 0]).double().mean().item(),
        logit_difference=_mean_difference(clean, answers, wrong),
        corrupted_logit_difference=_mean_difference(corrupted, answers, wrong),
    )


@torch.no_grad()
def _last_logits(model: PreTrainedModel, prompts: list[list[int]]) -> torch.Tensor:
    """Computes the logits at the last token of each prompt: [prompts, vocabulary]."""
    # Padding on the right needs no mask, since attention is causal and only the prompt's last token is read.
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    logits: torch.Tensor = model(input_ids=ids).logits[torch.arange(len(prompts)), last]
    return logits


def _mean_difference(logits: torch.Tensor, answers: torch.Tensor, wrong: torch.Tensor) -> float:
    return (logits.gather(1, answers) - logits.gather(1, wrong)).double().mean().item()
