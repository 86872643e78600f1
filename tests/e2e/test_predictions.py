"""What a real server says of the demo model: next tokens, and whether it does a task."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
from helpers.unchecked_tasks import unchecked_task

from pahq_client import AsyncClient, Client, InvalidRequest, JobFailed, NotFound, PahqWarning, Task, TaskCheck

CLEAN = " Lily and Tom went to the park. Lily gave the ball to"
CORRUPTED = " Max and Sara went to the park. Ben gave the ball to"
LONGER = " Once upon a time, Anna and Tom went to the park. Anna gave the ball to"
ROWS = (
    (CLEAN, CORRUPTED, " Tom", " Lily"),
    (LONGER, LONGER.replace("Anna and Tom", "Max and Ben"), " Tom", " Anna"),
)
TASK = Task(*zip(*ROWS, strict=True))


def test_the_demo_model_knows_who_gets_the_ball(client: Client) -> None:
    text, ids = client.predict("demo", [CLEAN, client.tokenize("demo", CLEAN)[0].ids], k=3)
    assert text.tokens == ids.tokens
    assert text.tokens[0].text == " Tom"
    assert text.tokens[0].id == client.tokenize("demo", " Tom")[0].answer_id
    probabilities = [token.probability for token in text.tokens]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0.5 < probabilities[0] < sum(probabilities) <= 1
    best, second, _ = text.tokens
    odds = math.exp(best.logit - second.logit)
    assert best.probability / second.probability == pytest.approx(odds, rel=1e-6)


def test_prompts_of_unequal_lengths_do_not_change_each_other(client: Client) -> None:
    prompts = [CLEAN, LONGER, " Lily", [5, 6, 7]]
    together = client.predict("demo", prompts)
    for prediction, prompt in zip(together, prompts, strict=True):
        (alone,) = client.predict("demo", [prompt])
        assert [token.id for token in alone.tokens] == [token.id for token in prediction.tokens]
        for a, b in zip(alone.tokens, prediction.tokens, strict=True):
            assert a.logit == pytest.approx(b.logit, abs=1e-4)
            assert a.probability == pytest.approx(b.probability, abs=1e-5)


def test_models_without_a_tokenizer_give_ids(client: Client) -> None:
    (prediction,) = client.predict("plain", [[1, 2, 3]], k=100)
    assert len(prediction.tokens) == 7  # all there are
    assert sorted(token.id for token in prediction.tokens) == list(range(7))
    assert {token.text for token in prediction.tokens} == {""}
    assert sum(token.probability for token in prediction.tokens) == pytest.approx(1.0)


def test_the_demo_model_does_its_task(client: Client) -> None:
    for task in (Task.ioi(8, seed=3), TASK):
        check = task.check(client, "demo")
        assert check == client.check_task("demo", task)
        assert check.suspicions == ()
        assert check.clean.above_wrong == check.clean.likeliest == 1.0
        assert check.corrupted is not None
        assert check.clean.logit_difference > check.corrupted.logit_difference + 1
    assert check.num_prompts == 2


def test_figures_are_those_of_evaluations_and_predictions(client: Client) -> None:
    """The full model's metric is minus the mean difference; the empty circuit's is the corrupted run's."""
    check = TASK.check(client, "demo")
    assert check.corrupted is not None
    measured = client.evaluate("demo", TASK, [], metric="logit_difference")
    assert check.clean.logit_difference == pytest.approx(-measured.full, abs=1e-4)
    assert check.corrupted.logit_difference == pytest.approx(-measured.empty, abs=1e-4)
    for accuracy, prompts in ((check.clean, TASK.clean), (check.corrupted, TASK.corrupted)):
        best = [prediction.tokens[0].text for prediction in client.predict("demo", prompts or (), k=1)]
        assert accuracy.likeliest == best.count(" Tom") / 2


def test_positions(client: Client) -> None:
    """An answer that is right at one of two positions."""
    ids = client.tokenize("demo", CLEAN)[0].ids
    last = len(ids) - 1
    answer, wrong = (client.tokenize("demo", text)[0].answer_id for text in (" Tom", " Lily"))
    assert answer is not None
    assert wrong is not None
    both = Task([ids], answers=[answer], wrong_answers=[wrong], positions=[last, 0])
    alone = [
        Task([ids], answers=[answer], wrong_answers=[wrong], positions=[position]) for position in (last, 0)
    ]
    with pytest.warns(PahqWarning, match="nothing but the first token"):
        checks = [task.check(client, "demo").clean for task in (*alone, both)]
    for name in ("above_wrong", "likeliest", "logit_difference"):
        first, second, mean = (getattr(check, name) for check in checks)
        assert mean == pytest.approx((first + second) / 2, abs=1e-5)
    assert checks[0].likeliest == 1.0


def test_corrupted_prompts_that_corrupt_nothing_are_suspicious(client: Client) -> None:
    same = Task(TASK.clean, TASK.clean, TASK.answers, TASK.wrong_answers)
    with pytest.warns(PahqWarning, match="clean and the corrupted prompt are the same"):
        check = same.check(client, "demo")
    assert check.clean == check.corrupted
    assert "like the clean ones" in check.verdict
    assert check.warnings


def test_what_a_model_gets_wrong_is_suspicious(client: Client) -> None:
    turned = Task(TASK.clean, TASK.corrupted, TASK.wrong_answers, TASK.answers)
    check = turned.check(client, "demo")
    assert check.clean.above_wrong == 0.0
    assert "does not do the task" in check.verdict


@pytest.mark.parametrize(
    ("task", "field", "words"),
    [
        (Task([CLEAN], [CORRUPTED]), "task.answers", "Add answers to the task, one for each clean prompt"),
        (Task([CLEAN], [CORRUPTED], [" Tom"]), "task.wrong_answers", "Add wrong_answers"),
        (Task([CLEAN], [" Max"], [" Tom"], [" Lily"]), "task.corrupted[0]", "tokens"),
        (Task([CLEAN], None, [" Tom"], [" Lily"], [99]), "task.positions", "outside of prompt 0"),
        (unchecked_task(clean=[]), "task.clean", "at least one prompt"),
    ],
)
def test_tasks_that_cannot_be_checked(client: Client, task: Task, field: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        task.check(client, "demo")
    assert caught.value.field == field
    assert words in caught.value.detail


@pytest.mark.parametrize(
    ("model", "texts", "k", "field", "words"),
    [
        ("demo", [], 5, "texts", "at least one prompt"),
        ("demo", ["a", ""], 5, "texts[1]", "the prompt is empty"),
        ("demo", [[10**9]], 5, "texts[0]", "outside of"),
        ("demo", [[1] * 10_000], 5, "texts[0]", "context"),
        ("demo", "a", 101, "k", "must be from 1 to 100, got 101"),
        ("plain", "a", 5, "texts[0]", "the model has no tokenizer: send token ids"),
    ],
)
def test_texts_that_cannot_be_predicted(
    client: Client, model: str, texts: list[str], k: int, field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.predict(model, texts, k)
    assert caught.value.field == field
    assert words in caught.value.detail


def test_an_unknown_model(client: Client) -> None:
    with pytest.raises(NotFound):
        client.predict("other", "a")
    with pytest.raises(NotFound):
        client.check_task("other", "ioi")


def test_a_task_in_a_file(client: Client, tmp_path: Path) -> None:
    """The same task from every kind of file, answers as ids or as texts."""
    cells = (",".join(map(json.dumps, row)) for row in ROWS)
    (tmp_path / "t.csv").write_text("\n".join(["clean,corrupted,right,wrong", *cells]))
    TASK.save(tmp_path / "t.json")
    ids = [token.answer_id for token in client.tokenize("demo", [" Tom", " Lily", " Tom", " Anna"])]
    rows = [(*row[:2], *answers) for row, answers in zip(ROWS, (ids[:2], ids[2:]), strict=True)]
    names = ("clean", "corrupted", "answer", "wrong_answer")
    lines = (json.dumps(dict(zip(names, row, strict=True))) for row in rows)
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    tasks = [
        Task.from_csv(tmp_path / "t.csv", answers="right", wrong_answers="wrong"),
        Task.load(tmp_path / "t.json"),
        Task.from_jsonl(tmp_path / "t.jsonl"),
    ]
    assert tasks[0] == tasks[1] == TASK
    assert len({repr(task.check(client, "demo")) for task in tasks}) == 1


def test_many_at_once(client: Client) -> None:
    """Beside each other and beside evaluations, every caller gets what it gets alone."""
    expected = TASK.check(client, "demo"), client.predict("demo", CLEAN)

    async def ask() -> list[object]:
        async with AsyncClient(client.address) as other:
            evaluations = asyncio.gather(*(other.evaluate("demo", "ioi", []) for _ in range(10)))
            calls = [(other.check_task("demo", TASK), other.predict("demo", CLEAN)) for _ in range(10)]
            found = await asyncio.gather(*(call for pair in calls for call in pair))
            await evaluations
            return found

    found = asyncio.run(ask())
    assert all(isinstance(each, TaskCheck) for each in found[::2])
    assert {repr(each) for each in found[::2]} == {repr(expected[0])}
    assert {repr(each) for each in found[1::2]} == {repr(expected[1])}


def test_only_logits_have_to_be_finite(client: Client) -> None:
    """The squares of this model's logits overflow."""
    with pytest.raises(JobFailed):
        client.evaluate("overflowing", Task([[1, 2]], [[1, 3]]), [], metric="l2")
    assert client.predict("overflowing", [[1, 2]], k=1)[0].tokens[0].probability == 1.0
    task = Task([[1, 2]], [[1, 3]], [1], [2])
    assert math.isfinite(task.check(client, "overflowing").clean.logit_difference)
