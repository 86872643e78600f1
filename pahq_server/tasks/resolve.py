"""From a task as sent by a client to token ids, with every check that needs no model run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import BuiltinTask, Prompt, PromptTask, TaskSpec, TokenIds, Tokenizer, TokenTask
from pahq_server.tasks import ioi

BUILTIN_TASKS = ("ioi",)
# Largest number of prompts that a built-in task generates.
MAX_GENERATED = 10_000


@dataclass(frozen=True)
class Limits:
    """What a model accepts: token ids below ``vocabulary``, at most ``context`` tokens per prompt.

    Answers are outputs: their ids are below ``output_vocabulary``.
    """

    vocabulary: int
    output_vocabulary: int
    context: int


def resolve(spec: TaskSpec, tokenizer: Tokenizer | None, limits: Limits) -> TokenTask:
    """Tokenizes and checks a task. Raises InvalidRequestError that names field, prompt and value."""
    spec = expand(spec, tokenizer)
    clean = _prompts("task.clean", spec.clean, tokenizer, limits)
    if not clean:
        raise InvalidRequestError("task.clean", "at least one prompt is needed")
    corrupted = _prompts("task.corrupted", spec.corrupted, tokenizer, limits) or None
    if corrupted is not None:
        _check_pairs(clean, corrupted)
    answers = _answers("task.answers", spec.answers, len(clean), tokenizer, limits)
    wrong = _answers("task.wrong_answers", spec.wrong_answers, len(clean), tokenizer, limits)
    _check_positions(spec.positions, clean)
    return TokenTask(clean, corrupted, answers, wrong, spec.positions)


def expand(spec: TaskSpec, tokenizer: Tokenizer | None) -> PromptTask:
    """The prompts of a task: as they are, or generated. Raises as `resolve` does."""
    return _generate(spec, tokenizer) if isinstance(spec, BuiltinTask) else spec


def _generate(spec: BuiltinTask, tokenizer: Tokenizer | None) -> PromptTask:
    if spec.name not in BUILTIN_TASKS:
        raise InvalidRequestError(
            "task", f"unknown task {spec.name!r}; built-in tasks: {list(BUILTIN_TASKS)}"
        )
    if tokenizer is None:
        raise InvalidRequestError("task", f"{spec.name!r} is text, but the model has no tokenizer")
    if spec.num_prompts > MAX_GENERATED:
        raise InvalidRequestError("task.num_prompts", f"{spec.num_prompts} is more than {MAX_GENERATED}")
    prompts = ioi.generate(tokenizer, spec.num_prompts, spec.seed)
    return PromptTask(
        tuple(prompts.clean), tuple(prompts.corrupted), tuple(prompts.answers), tuple(prompts.wrong_answers)
    )


def _prompts(
    field: str, prompts: Sequence[Prompt], tokenizer: Tokenizer | None, limits: Limits
) -> tuple[TokenIds, ...]:
    return tuple(_prompt(f"{field}[{i}]", prompt, tokenizer, limits) for i, prompt in enumerate(prompts))


def _prompt(field: str, prompt: Prompt, tokenizer: Tokenizer | None, limits: Limits) -> TokenIds:
    ids = tuple(_tokenizer(field, tokenizer).encode(prompt)) if isinstance(prompt, str) else prompt
    if not ids:
        raise InvalidRequestError(field, "the prompt is empty")
    if len(ids) > limits.context:
        raise InvalidRequestError(field, f"{len(ids)} tokens, but the model's context is {limits.context}")
    _check_ids(field, ids, limits.vocabulary)
    return ids


def _answers(
    field: str, answers: Sequence[Prompt], prompts: int, tokenizer: Tokenizer | None, limits: Limits
) -> TokenIds | None:
    if not answers:
        return None
    if len(answers) != prompts:
        raise InvalidRequestError(field, f"{len(answers)} answers for {prompts} prompts")
    return tuple(_answer(f"{field}[{i}]", answer, tokenizer, limits) for i, answer in enumerate(answers))


def _answer(field: str, answer: Prompt, tokenizer: Tokenizer | None, limits: Limits) -> int:
    text = isinstance(answer, str)
    ids = _tokenizer(field, tokenizer).encode_plain(answer) if isinstance(answer, str) else answer
    if len(ids) != 1:
        shown = f"{answer!r} is " if text else ""
        raise InvalidRequestError(field, f"{shown}{len(ids)} tokens; an answer is exactly one token")
    _check_ids(field, ids, limits.output_vocabulary)
    return int(ids[0])


def _tokenizer(field: str, tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise InvalidRequestError(field, "is text, but the model has no tokenizer: send token ids")
    return tokenizer


def _check_ids(field: str, ids: Sequence[int], vocabulary: int) -> None:
    for token in ids:
        if not 0 <= token < vocabulary:
            raise InvalidRequestError(field, f"token id {token} is outside of [0, {vocabulary})")


def _check_pairs(clean: tuple[TokenIds, ...], corrupted: tuple[TokenIds, ...]) -> None:
    if len(clean) != len(corrupted):
        raise InvalidRequestError("task.corrupted", f"{len(corrupted)} prompts for {len(clean)} clean ones")
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        if len(a) != len(b):
            detail = f"pair {i}: the clean prompt has {len(a)} tokens, the corrupted one {len(b)}"
            raise InvalidRequestError(f"task.corrupted[{i}]", detail)


def _check_positions(positions: tuple[int, ...] | None, clean: tuple[TokenIds, ...]) -> None:
    if positions is None:
        return
    if not positions:
        raise InvalidRequestError("task.positions", "at least one position is needed")
    if len(set(positions)) != len(positions):
        raise InvalidRequestError("task.positions", f"positions repeat in {list(positions)}")
    for position in positions:
        for i, ids in enumerate(clean):
            if not 0 <= position < len(ids):
                detail = f"position {position} is outside of prompt {i}, which has {len(ids)} tokens"
                raise InvalidRequestError("task.positions", detail)
