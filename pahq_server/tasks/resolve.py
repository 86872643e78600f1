"""Resolving a task: from prompts and answers as a client sent them to token ids.

Everything is checked here that can be checked without running the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import (
    BuiltinTask,
    Prompt,
    PromptTask,
    TaskSpec,
    TokenIds,
    TokenizedText,
    Tokenizer,
    TokenTask,
)
from pahq_server.tasks.answers import AnswerReader, first_difference
from pahq_server.tasks.builtin import BUILTIN_TASKS
from pahq_server.tasks.texts import Limits, TaskTexts, never, quoted

# Most prompts that a built-in task generates.
MAX_GENERATED = 10_000
# Limits of one call of `tokenize`, so that its response fits into one message.
MAX_SHOWN_TEXTS, MAX_SHOWN_TOKENS, MAX_SHOWN_BYTES = 1000, 100_000, 8 * 2**20


def has_text(spec: TaskSpec) -> bool:
    """Whether a task contains text, so that resolving it needs a tokenizer."""
    if isinstance(spec, BuiltinTask):
        return True
    return any(
        isinstance(prompt, str)
        for prompts in (spec.clean, spec.corrupted, spec.answers, spec.wrong_answers)
        for prompt in prompts
    )


@dataclass(frozen=True)
class ResolvedTask:
    """A task that has been tokenized and checked.

    Args:
        task: the token ids.
        prompts: the prompts and answers as they were sent or generated.
        warnings: sentences for the client about what is allowed but probably not meant.
    """

    task: TokenTask
    prompts: PromptTask
    warnings: tuple[str, ...]


def resolve(spec: TaskSpec, tokenizer: Tokenizer | None, limits: Limits) -> TokenTask:
    """Tokenizes and checks a task like `resolve_task`, and returns the token ids alone."""
    return resolve_task(spec, tokenizer, limits).task


def resolve_task(
    spec: TaskSpec, tokenizer: Tokenizer | None, limits: Limits, out_of_time: Callable[[], bool] = never
) -> ResolvedTask:
    """Tokenizes and checks a task.

    Args:
        spec: as the client sent it.
        tokenizer: of the model; None if it has none.
        limits: of the model.
        out_of_time: called before each text; True if nobody waits for the result any more.

    Raises:
        InvalidRequestError: with field, prompt and value.
        OutOfTimeError: if ``out_of_time`` returned True.
    """
    texts = TaskTexts(tokenizer, limits, out_of_time)
    prompts = _generate(spec, tokenizer, texts) if isinstance(spec, BuiltinTask) else spec
    clean = _prompts("task.clean", prompts.clean, texts)
    if not clean:
        raise InvalidRequestError("task.clean", "at least one prompt is needed")
    corrupted = _prompts("task.corrupted", prompts.corrupted, texts) or None
    if corrupted is not None:
        _check_pairs(clean, corrupted, texts)
    answers = _answers("task.answers", prompts.answers, prompts, clean, texts)
    wrong = _answers("task.wrong_answers", prompts.wrong_answers, prompts, clean, texts)
    _check_positions(prompts.positions, clean)
    task = TokenTask(clean, corrupted, answers, wrong, prompts.positions)
    return ResolvedTask(task, prompts, texts.warnings)


def tokenize(
    texts: Sequence[str],
    special: bool,
    prompt: str,
    tokenizer: Tokenizer | None,
    limits: Limits,
    out_of_time: Callable[[], bool] = never,
) -> list[TokenizedText]:
    """Shows how texts are tokenized, as prompts and as answers.

    Args:
        texts: to tokenize.
        special: whether to add the tokenizer's special tokens to prompts, as tasks do.
        prompt: to which the texts would be answers; empty for none.
        tokenizer: of the model; None if it has none.
        limits: of the model.
        out_of_time: called before each text; True if nobody waits for the result any more.

    Raises:
        InvalidRequestError: with the text.
        OutOfTimeError: if ``out_of_time`` returned True.
    """
    if not texts:
        raise InvalidRequestError("texts", "at least one text is needed")
    if len(texts) > MAX_SHOWN_TEXTS:
        raise InvalidRequestError(
            "texts", f"{len(texts)} texts; at most {MAX_SHOWN_TEXTS} are taken at a time"
        )
    reading = TaskTexts(tokenizer, limits, out_of_time, MAX_SHOWN_TOKENS)
    if prompt:
        reading.ids("prompt", prompt)
    found: list[TokenizedText] = []
    tokens = size = 0
    for i, text in enumerate(texts):
        ids = reading.ids(f"texts[{i}]", text, special)
        tokens += len(ids)
        if tokens > MAX_SHOWN_TOKENS:
            detail = f"more than {MAX_SHOWN_TOKENS} tokens in all; ask for fewer or shorter texts at a time"
            raise InvalidRequestError("texts", detail)
        found.append(_shown(text, ids, prompt, reading))
        size += sum(len(part.encode()) for part in (text, found[-1].note, *found[-1].tokens))
        if size > MAX_SHOWN_BYTES:
            detail = f"they and their tokens are more than {MAX_SHOWN_BYTES} bytes in all; ask for fewer or"
            raise InvalidRequestError("texts", f"{detail} shorter texts at a time")
    return found


def _shown(text: str, ids: TokenIds, prompt: str, reading: TaskTexts) -> TokenizedText:
    """Describes the tokens of a text, and which token it is as an answer, or why it is not one token."""

    def strings(ids: Sequence[int]) -> tuple[str, ...]:
        known = reading.vocabulary
        return tuple(map(str, ids) if known is None else known.token_strings(ids))

    alone = reading.separate_warnings()
    try:
        answer = AnswerReader(alone, prompt).read("", text)
        _check_ids("", (answer,), reading.limits.output_vocabulary, alone)
    except InvalidRequestError as error:
        return TokenizedText(text, ids, strings(ids), None, "", error.detail)
    note = " ".join(message.removeprefix(": ") for message in alone.warnings)
    return TokenizedText(text, ids, strings(ids), answer, strings((answer,))[0], note)


def _generate(spec: BuiltinTask, tokenizer: Tokenizer | None, texts: TaskTexts) -> PromptTask:
    """Generates the prompts of a built-in task."""
    if spec.name not in BUILTIN_TASKS:
        raise InvalidRequestError(
            "task", f"unknown task {spec.name!r}; built-in tasks: {list(BUILTIN_TASKS)}"
        )
    if tokenizer is None:
        raise InvalidRequestError("task", f"{spec.name!r} is text, but the model has no tokenizer")
    if spec.num_prompts < 1:
        raise InvalidRequestError("task.num_prompts", f"must be at least 1, got {spec.num_prompts}")
    if spec.num_prompts > MAX_GENERATED:
        raise InvalidRequestError("task.num_prompts", f"{spec.num_prompts} is more than {MAX_GENERATED}")
    return BUILTIN_TASKS[spec.name](texts, spec.num_prompts, spec.seed)


def _prompts(field: str, prompts: Sequence[Prompt], texts: TaskTexts) -> tuple[TokenIds, ...]:
    """Tokenizes and checks the prompts of a field."""
    texts.check_total(field, prompts)
    found: list[TokenIds] = []
    tokens = 0
    for i, prompt in enumerate(prompts):
        found.append(_prompt(f"{field}[{i}]", prompt, texts))
        tokens += len(found[-1])
        texts.check_memory(tokens)
    return tuple(found)


def _prompt(field: str, prompt: Prompt, texts: TaskTexts) -> TokenIds:
    """Tokenizes and checks one prompt, and warns about what the model will not see of it."""
    ids = texts.ids(field, prompt) if isinstance(prompt, str) else prompt
    if not ids:
        detail = (
            f": the tokenizer leaves out all of {quoted(prompt)}"
            if isinstance(prompt, str) and prompt
            else ""
        )
        raise InvalidRequestError(field, f"the prompt is empty{detail}")
    limits = texts.limits
    if len(ids) > limits.context:
        raise InvalidRequestError(field, f"{len(ids)} tokens, but the model's context is {limits.context}")
    _check_ids(field, ids, limits.vocabulary, texts if isinstance(prompt, str) else None)
    if isinstance(prompt, str):
        _warn_about_losses(field, prompt, ids, texts)
    return ids


def _warn_about_losses(field: str, prompt: str, ids: TokenIds, texts: TaskTexts) -> None:
    """Warns about what the model will not see of a text: unknown tokens, characters that are left out."""
    vocabulary = texts.vocabulary
    if vocabulary is None:
        return
    at = [i for i, token in enumerate(ids) if token == vocabulary.unknown_id]
    if at and vocabulary.token_strings([ids[at[0]]])[0] not in prompt:
        where = ", ".join(map(str, at[:5])) + (", …" if len(at) > 5 else "")
        detail = (
            f"{quoted(prompt)} has something that is not in the model's vocabulary: at position {where} is "
            f"the unknown token {texts.shown([ids[at[0]]])}, which says nothing. Use other words."
        )
        texts.warn("unknown", f"{field}: {detail}")
    lost = vocabulary.left_out(prompt)
    if lost:
        detail = (
            f"the model's tokenizer has no token for {quoted(lost)} and leaves it out of {quoted(prompt)}"
        )
        texts.warn("left out", f"{field}: {detail}, so that the model never sees it. Use other characters.")


def _answers(
    field: str, answers: Sequence[Prompt], spec: PromptTask, clean: tuple[TokenIds, ...], texts: TaskTexts
) -> TokenIds | None:
    """Returns the token of each prompt's answer; None if there are no answers."""
    if not answers:
        return None
    if len(answers) != len(clean):
        raise InvalidRequestError(field, f"{len(answers)} answers for {len(clean)} prompts")
    found: list[int] = []
    for i, (answer, prompt, ids) in enumerate(zip(answers, spec.clean, clean, strict=True)):
        at_end = spec.positions is None or spec.positions == (len(ids) - 1,)
        found.append(_answer(f"{field}[{i}]", answer, AnswerReader(texts, prompt, at_end), texts))
    return tuple(found)


def _answer(field: str, answer: Prompt, reader: AnswerReader, texts: TaskTexts) -> int:
    if isinstance(answer, str):
        token = reader.read(field, answer)
    elif len(answer) != 1:
        raise InvalidRequestError(field, f"{len(answer)} tokens; an answer is exactly one token")
    else:
        token = int(answer[0])
    _check_ids(field, (token,), texts.limits.output_vocabulary, texts if isinstance(answer, str) else None)
    return token


def _check_ids(field: str, ids: Sequence[int], vocabulary: int, texts: TaskTexts | None) -> None:
    """Raises InvalidRequestError for ids outside the vocabulary; quotes tokens that come from text."""
    for token in ids:
        if not 0 <= token < vocabulary:
            detail = f"token id {token} is outside of [0, {vocabulary})"
            if texts is not None and texts.vocabulary is not None:
                detail = (
                    f"{detail}: the tokenizer has the token {texts.shown([token])}, but the model does not;"
                )
                detail = f"{detail} use another word"
            raise InvalidRequestError(field, detail)


def _check_pairs(clean: tuple[TokenIds, ...], corrupted: tuple[TokenIds, ...], texts: TaskTexts) -> None:
    """Raises InvalidRequestError unless every clean prompt has a corrupted one of the same length."""
    if len(clean) != len(corrupted):
        raise InvalidRequestError("task.corrupted", f"{len(corrupted)} prompts for {len(clean)} clean ones")
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        if len(a) != len(b):
            detail = f"pair {i}: the clean prompt has {len(a)} tokens, the corrupted one {len(b)}"
            if texts.vocabulary is not None:
                mark = first_difference(a, b)
                detail = f"{detail}; clean: {texts.shown(a, mark)}; corrupted: {texts.shown(b, mark)}"
            raise InvalidRequestError(f"task.corrupted[{i}]", detail)


def _check_positions(positions: tuple[int, ...] | None, clean: tuple[TokenIds, ...]) -> None:
    """Raises InvalidRequestError unless the positions are different and inside of every prompt."""
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
