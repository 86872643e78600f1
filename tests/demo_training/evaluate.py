"""Measures how well a checkpoint does the built-in tasks that it was trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from demo_training.names import HELD_OUT_NAMES, HELD_OUT_STARTS
from pahq_server.core.task import Prompt, PromptTask, Tokenizer
from pahq_server.tasks import greater_than, induction, ioi, pronoun, subject_verb

Generator = Callable[[Tokenizer, int, int], PromptTask]


def _held_out_names(tokenizer: Tokenizer, num_prompts: int, seed: int) -> PromptTask:
    return ioi.generate(tokenizer, num_prompts, seed, HELD_OUT_NAMES)


def _held_out_starts(tokenizer: Tokenizer, num_prompts: int, seed: int) -> PromptTask:
    return greater_than.generate(tokenizer, num_prompts, seed, HELD_OUT_STARTS)


def _held_out_persons(tokenizer: Tokenizer, num_prompts: int, seed: int) -> PromptTask:
    female, male = (
        [name for name in names if name in HELD_OUT_NAMES]
        for names in (pronoun.FEMALE_NAMES, pronoun.MALE_NAMES)
    )
    return pronoun.generate(tokenizer, num_prompts, seed, female, male)


# Of each task the prompts to measure it with, by what they are made of: that which its training text does not
# have, and what the server draws.
TASKS: Mapping[str, Mapping[str, Generator]] = {
    "ioi": {"held-out names": _held_out_names, "all names": ioi.generate},
    "greater_than": {"held-out start years": _held_out_starts, "all start years": greater_than.generate},
    "induction": {"new sequences": induction.generate},
    "pronoun": {"held-out names": _held_out_persons, "all names": pronoun.generate},
}
# Learned on the side; its sentences are too few to hold any out.
SIDE_TASKS: Mapping[str, Generator] = {"subject_verb": subject_verb.generate}


@dataclass(frozen=True)
class Score:
    """Results of one set of prompts, means over prompts.

    Args:
        num_prompts: number of prompts.
        accuracy: share of prompts for which the most likely of all tokens is right: the answer, or for
            "greater_than" any later year.
        above_wrong: share of prompts for which the answer is more likely than the wrong answer.
        logit_difference: logit of the answer minus that of the wrong answer.
        corrupted_logit_difference: the same difference for the corrupted prompts.
    """

    num_prompts: int
    accuracy: float
    above_wrong: float
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


def evaluate(path: Path, generate: Generator, num_prompts: int, seed: int) -> Score:
    """Measures a saved checkpoint, with its weights converted to float32.

    Args:
        path: folder of the checkpoint.
        generate: draws the prompts.
        num_prompts, seed: of the task.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = HubTokenizer(AutoTokenizer.from_pretrained(path))
    return score(model, tokenizer, generate(tokenizer, num_prompts, seed))


def score(model: PreTrainedModel, tokenizer: HubTokenizer, prompts: PromptTask) -> Score:
    """Measures a model on prompts."""
    answers = torch.tensor([_token(tokenizer, answer) for answer in prompts.answers])
    wrong = torch.tensor([_token(tokenizer, answer) for answer in prompts.wrong_answers])
    clean, corrupted = (_last_logits(model, tokenizer, texts) for texts in (prompts.clean, prompts.corrupted))
    differences = _differences(clean, answers, wrong)
    best = clean.argmax(-1).tolist()
    right = [
        token in _right(tokenizer, str(prompt), answer)
        for token, prompt, answer in zip(best, prompts.clean, answers.tolist(), strict=True)
    ]
    return Score(
        num_prompts=len(right),
        accuracy=sum(right) / len(right),
        above_wrong=(differences > 0).double().mean().item(),
        logit_difference=differences.mean().item(),
        corrupted_logit_difference=_differences(corrupted, answers, wrong).mean().item(),
    )


def _right(tokenizer: HubTokenizer, prompt: str, answer: int) -> set[int]:
    """Returns the tokens that are right after a prompt: all later years of the century, or the answer."""
    start = prompt.rpartition(" from the year ")[2].partition(" to the year ")[0]
    if not start.isdigit():
        return {answer}
    century, year = divmod(int(start), 100)
    return {tokenizer.encode_plain(f" {century}{later:02}")[-1] for later in range(year + 1, 100)}


def _token(tokenizer: HubTokenizer, answer: Prompt) -> int:
    (token,) = tokenizer.encode_plain(answer) if isinstance(answer, str) else answer
    return token


@torch.no_grad()
def _last_logits(model: PreTrainedModel, tokenizer: HubTokenizer, texts: tuple[Prompt, ...]) -> torch.Tensor:
    """Computes the logits at the last token of each prompt: [prompts, vocabulary]."""
    prompts = [tokenizer.encode(str(text)) for text in texts]
    # Padding on the right needs no mask, since attention is causal and only the prompt's last token is read.
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    logits: torch.Tensor = model(input_ids=ids).logits[torch.arange(len(prompts)), last]
    return logits


def _differences(logits: torch.Tensor, answers: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """Logit of the answer minus logit of the wrong answer: float64 [prompts]."""
    rows = torch.arange(len(logits))
    return (logits[rows, answers] - logits[rows, wrong]).double()
