"""What the model is asked to do: prompts of the caller, or a task that the server generates."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from pahq_client import checks, files, task_files
from pahq_client.errors import InvalidRequest

if TYPE_CHECKING:
    from pahq_client.aio import AsyncClient
    from pahq_client.client import Client
    from pahq_client.predictions import TaskCheck
    from pahq_client.samples import Sample, Samples

Prompt: TypeAlias = str | tuple[int, ...]
"""Text, or token ids."""
PromptLike: TypeAlias = str | Iterable[int]
AnswerLike: TypeAlias = str | int | Iterable[int]


class Checkable:
    """What can be asked about any task."""

    @overload
    def check(self, client: Client, model: str) -> TaskCheck: ...

    @overload
    def check(self, client: AsyncClient, model: str) -> Awaitable[TaskCheck]: ...

    def check(self, client: Client | AsyncClient, model: str) -> TaskCheck | Awaitable[TaskCheck]:
        """Measures how well the full model does this task; the same as ``client.check_task(model, task)``.

        Args:
            client: of a server that serves the model. With an AsyncClient, the result is to be awaited.
            model: name of a served model.

        Raises:
            InvalidRequest: an argument is wrong, or the task has no answers or wrong answers.
            NotFound: the server does not serve the model.
        """
        if not hasattr(client, "check_task"):
            detail = f"must be a Client or an AsyncClient, got {type(client).__name__}"
            raise InvalidRequest("client", detail)
        return client.check_task(model, self)  # type: ignore[arg-type]


@dataclass(frozen=True)
class BuiltinTask(Checkable):
    """A task that the server generates for the tokenizer of the served model.

    Its prompts depend on that tokenizer, so that only results have them: the ``task`` of a result that was
    asked for with ``include_prompts=True`` is a `Task` with the prompts that were drawn.

    Args:
        name: name of the generator, for example ``ioi``.
        num_prompts: how many prompt pairs.
        seed: the same seed gives the same prompts.

    Raises:
        InvalidRequest: an argument has the wrong type, or the name is that of a file.
    """

    name: str
    num_prompts: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        _set(self, "name", checks.text("task", self.name))
        if hint := _hint_at_file(self.name):
            raise InvalidRequest("task", f"{self.name!r} is not the name of a built-in task; {hint}")
        _set(self, "num_prompts", checks.integer("task.num_prompts", self.num_prompts, bits=32))
        _set(self, "seed", checks.integer("task.seed", self.seed))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            if name not in task_files.KEYS:
                raise AttributeError(
                    f"{type(self).__name__!r} has no attribute {name!r}", name=name, obj=self
                )
            detail = (
                f"a built-in task has no {name!r} of its own: a server draws its prompts for the "
                "tokenizer of its model. client.attribute(model, task, include_prompts=True).task has them"
            )
            raise AttributeError(detail, name=name, obj=self)


@dataclass(frozen=True)
class Task(Checkable):
    """Prompts of the caller. Whatever collections are given, the fields hold tuples.

    Args:
        clean: texts or lists of token ids.
        corrupted: pairwise with ``clean`` and of equal token length; may be left out for the ablations
            ``zero`` and ``mean``.
        answers: right answers, one token per prompt (text, or a token id); for task metrics only.
        wrong_answers: wrong answers, likewise.
        positions: ``"last"``, or the 0-based token positions at which the metric is read.

    Raises:
        InvalidRequest: an argument has the wrong type, and the field names the element; or there is no
            prompt, or not one corrupted prompt, answer or wrong answer for each.
    """

    clean: Iterable[PromptLike]
    corrupted: Iterable[PromptLike] | None = None
    answers: Iterable[AnswerLike] | None = None
    wrong_answers: Iterable[AnswerLike] | None = None
    positions: str | Iterable[int] = "last"

    def __post_init__(self) -> None:
        _set(self, "clean", read_prompts("task.clean", self.clean))
        if not self.clean:
            raise InvalidRequest("task.clean", "is empty: a task has at least one prompt")
        for name in ("corrupted", "answers", "wrong_answers"):
            value = getattr(self, name)
            if value is not None:
                _set(self, name, read_prompts(f"task.{name}", value, answers="answers" in name))
                _check_pairwise(name, getattr(self, name), self.clean)  # type: ignore[arg-type]
        _set(self, "positions", _positions(self.positions))

    @staticmethod
    @checks.known_arguments
    def ioi(num_prompts: int = 16, seed: int = 0) -> BuiltinTask:
        """Indirect object identification, generated by the server.

        Raises:
            InvalidRequest: an argument has the wrong type.
        """
        return BuiltinTask("ioi", num_prompts, seed)

    @staticmethod
    @checks.known_arguments
    def greater_than(num_prompts: int = 16, seed: int = 0) -> BuiltinTask:
        """Years that come later than another one, generated by the server; raises like `ioi`."""
        return BuiltinTask("greater_than", num_prompts, seed)

    @staticmethod
    @checks.known_arguments
    def induction(num_prompts: int = 16, seed: int = 0) -> BuiltinTask:
        """Random words that are repeated, generated by the server; raises like `ioi`."""
        return BuiltinTask("induction", num_prompts, seed)

    @staticmethod
    @checks.known_arguments
    def pronoun(num_prompts: int = 16, seed: int = 0) -> BuiltinTask:
        """The pronoun of a person's gender, generated by the server; raises like `ioi`."""
        return BuiltinTask("pronoun", num_prompts, seed)

    @staticmethod
    @checks.known_arguments
    def subject_verb(num_prompts: int = 16, seed: int = 0) -> BuiltinTask:
        """The verb in the number of its subject, generated by the server; raises like `ioi`."""
        return BuiltinTask("subject_verb", num_prompts, seed)

    @staticmethod
    @checks.known_arguments
    def docstring(num_prompts: int = 16, seed: int = 0) -> BuiltinTask:
        """The next parameter in a docstring, generated by the server; raises like `ioi`."""
        return BuiltinTask("docstring", num_prompts, seed)

    @staticmethod
    @checks.known_arguments
    def from_csv(
        path_or_file: task_files.Source,
        *,
        clean: str = "clean",
        corrupted: str | None = "corrupted",
        answers: str | None = "correct_idx",
        wrong_answers: str | None = "incorrect_idx",
        token_ids: bool | None = None,
        positions: str | Iterable[int] = "last",
        limit: int | None = None,
    ) -> Task:
        """Reads a task from a CSV file whose first row names the columns.

        By default these are ``clean`` and ``corrupted`` and, for the answers, those of EAP-IG, with token
        ids: ``correct_idx`` and ``incorrect_idx``; or else ``answer`` and ``wrong_answer``, with texts.
        Prompts are texts; spaces count. Other columns and empty rows are left out.

        Args:
            path_or_file: path, or an open file of text or bytes, in UTF-8.
            clean: the column of the clean prompts.
            corrupted: the column of the corrupted prompts; None for a task without.
            answers: the column of the answers; None for a task without. A column whose name ends in ``_idx``
                holds token ids, any other one texts, such as ``" Tom"``.
            wrong_answers: the column of the wrong answers, likewise.
            token_ids: whether answers are token ids, where the names of their columns do not tell.
            positions: as of `Task`.
            limit: at most so many rows.

        Raises:
            InvalidRequest: a column is missing, a row has the wrong form, or an argument is wrong. The error
                names the row; the first one is row 1.
            OSError: the file cannot be read.
        """
        columns = {"clean": clean, "corrupted": corrupted, "answers": answers, "wrong_answers": wrong_answers}
        return Task(**task_files.read_csv(path_or_file, columns, token_ids, limit), positions=positions)

    @staticmethod
    @checks.known_arguments
    def from_jsonl(
        path_or_file: task_files.Source,
        *,
        clean: str = "clean",
        corrupted: str | None = "corrupted",
        answers: str | None = "answer",
        wrong_answers: str | None = "wrong_answer",
        positions: str | Iterable[int] = "last",
        limit: int | None = None,
    ) -> Task:
        """Reads a task from a JSON Lines file: in each row an object with a pair of prompts and its answers.

        Prompts are texts or lists of token ids, answers texts or token ids. Other keys and empty rows are
        left out.

        Args:
            path_or_file: path, or an open file of text or bytes, in UTF-8.
            clean: the key of the clean prompts.
            corrupted: the key of the corrupted prompts; None for a task without.
            answers: the key of the answers; None for a task without.
            wrong_answers: the key of the wrong answers, likewise.
            positions: as of `Task`.
            limit: at most so many rows.

        Raises:
            InvalidRequest: a key is missing, a row has the wrong form, or an argument is wrong. The error
                names the row; the first one is row 1.
            OSError: the file cannot be read.
        """
        keys = {"clean": clean, "corrupted": corrupted, "answers": answers, "wrong_answers": wrong_answers}
        return Task(**task_files.read_jsonl(path_or_file, keys, limit), positions=positions)

    @staticmethod
    @checks.known_arguments
    def from_samples(
        samples: Samples | Iterable[Sample],
        positive: Callable[[Sample], object],
        *,
        negative: Callable[[Sample], object] | None = None,
        tokens: int | None = None,
        same_prompt: bool = True,
        answers: AnswerLike | Mapping[int, AnswerLike] | None = None,
        wrong_answers: AnswerLike | Mapping[int, AnswerLike] | None = None,
        limit: int | None = None,
    ) -> Task:
        """Makes contrast pairs of what the model itself said: of samples that do something and others.

        The prompt with a positive sample is a clean prompt, that with a negative one its corrupted prompt, as
        token ids, without the token that ended a sample. Both of a pair have the same number of tokens. Each sample is in one pair at most; a
        PahqWarning says how many are left out.

        Args:
            samples: as `Client.generate` returns them.
            positive: says of a Sample whether it does what a circuit is to be found for, for example
                ``lambda sample: "happy" in sample.text``.
            negative: says of a Sample whether it is one to compare with; None for all that are not positive.
            tokens: only so many tokens of each sample are taken, so that more of them have partners. What is
                said later does not count then, though the functions see all of it.
            same_prompt: whether both samples of a pair follow the same prompt.
            answers: the right answer after each clean prompt, one token; or one for each prompt's number.
            wrong_answers: the wrong answer, likewise.
            limit: at most so many pairs.

        Raises:
            InvalidRequest: an argument is wrong, or there is no pair.
        """
        # Imported here, since samples have prompts.
        from pahq_client.sample_pairs import contrast_pairs

        return Task(
            **contrast_pairs(samples, positive, negative, tokens, same_prompt, answers, wrong_answers, limit)
        )

    @staticmethod
    def load(path_or_file: task_files.Source) -> Task:
        """Reads a task from a JSON file: an object with the arguments of `Task` as keys, as `save` writes it.

        Raises:
            InvalidRequest: the file does not describe a task.
            OSError: the file cannot be read.
        """
        return Task(**task_files.read_json(path_or_file))

    def save(self, path: files.PathLike) -> None:
        """Writes the task to a JSON file, for `load` and for ``pahq --task``.

        Raises:
            InvalidRequest: the path is none.
            OSError: the file cannot be written.
        """
        content = {key: value for key in task_files.KEYS if (value := getattr(self, key)) is not None}
        task_files.write_json(path, content)


for _kind in (BuiltinTask, Task):
    _kind.__init__ = checks.known_arguments(_kind.__init__)  # type: ignore[method-assign]

TaskLike: TypeAlias = Task | BuiltinTask | str
"""A task, or the name of a built-in one with its usual size and seed 0."""


def as_task(task: TaskLike) -> Task | BuiltinTask:
    """Resolves the name of a built-in task. Raises InvalidRequest for anything that is no task."""
    if isinstance(task, Task | BuiltinTask):
        return task
    if isinstance(task, str):
        return BuiltinTask(task)
    hint = f"; {_hint_at_file(str(task))}" if isinstance(task, os.PathLike) else ""
    raise InvalidRequest("task", f"must be a Task or the name of a task, got {type(task).__name__}{hint}")


def _hint_at_file(name: str) -> str:
    """Says how to read the file that a name seems to be of; empty for a name that is none."""
    path = PurePath(name)
    if path.suffix in _READERS:
        return f"read the file with Task.{_READERS[path.suffix]}({name!r})"
    if path.suffix or path.name != name:
        return "read a file with Task.load (JSON), Task.from_jsonl or Task.from_csv"
    return ""


_READERS = {".json": "load", ".jsonl": "from_jsonl", ".csv": "from_csv"}


def task_of(run: Mapping[str, Any]) -> Task | BuiltinTask | None:
    """Returns the task that ``run`` of a provenance describes; None if there is none.

    Prompts that came with the result are preferred to the name of a built-in task: another tokenizer gives
    other prompts for it.
    """
    prompts, about = run.get("prompts"), run.get("task")
    try:
        if isinstance(prompts, Mapping):
            given = {key: prompts.get(key) or None for key in ("corrupted", "answers", "wrong_answers")}
            positions = prompts.get("positions")
            return Task(
                prompts.get("clean"),  # type: ignore[arg-type]
                **given,
                positions="last" if positions is None else positions,
            )
        if isinstance(about, Mapping) and "name" in about:
            return BuiltinTask(about["name"], about.get("num_prompts", 16), about.get("seed", 0))
    except InvalidRequest:  # a file that was written by another tool
        pass
    return None


def _set(instance: object, name: str, value: object) -> None:
    object.__setattr__(instance, name, value)  # frozen for callers, not for its own constructor


def read_prompts(field: str, value: object, answers: bool = False) -> tuple[Prompt, ...]:
    """Checks prompts, or answers. Raises InvalidRequest that names the element of ``field``."""
    read = _answer if answers else _prompt
    return tuple(read(f"{field}[{i}]", item) for i, item in enumerate(checks.items(field, value)))


def _check_pairwise(name: str, values: tuple[Prompt, ...], clean: tuple[Prompt, ...]) -> None:
    """Raises InvalidRequest unless there is one value for each clean prompt."""
    if len(values) != len(clean):
        what = "prompts" if name == "corrupted" else name.replace("_", " ")
        detail = f"must be one for each clean prompt, got {len(values)} {what} for {len(clean)}"
        raise InvalidRequest(f"task.{name}", detail)


def _prompt(field: str, value: object) -> Prompt:
    if isinstance(value, str):
        return checks.text(field, value)
    try:
        ids = checks.items(field, value)
    except InvalidRequest:
        raise InvalidRequest(
            field, f"must be text or a list of token ids, got {type(value).__name__}"
        ) from None
    return tuple(_token(field, i, token) for i, token in enumerate(ids))


def _token(field: str, index: int, value: object) -> int:
    try:
        return checks.integer(field, value)
    except InvalidRequest as error:
        raise InvalidRequest(field, f"token {index} {error.detail}") from None


def _answer(field: str, value: object) -> Prompt:
    single = hasattr(value, "__index__") and not hasattr(value, "__len__")
    return _prompt(field, (value,)) if single else _prompt(field, value)


def _positions(value: object) -> str | tuple[int, ...]:
    field = "task.positions"
    if isinstance(value, str):
        if value != "last":
            raise InvalidRequest(field, f'must be "last" or a list of positions, got {value!r}')
        return value
    return tuple(checks.integer(f"{field}[{i}]", p) for i, p in enumerate(checks.items(field, value)))
