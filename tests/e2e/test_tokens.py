"""Tokens of real models: shown, decided in context, and refused in words that help."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator

import pytest
from helpers.shared import shared_model

from pahq_client import Client, InvalidRequest, PahqWarning, Task
from pahq_client.cli import main

from .process import ServerProcess

PROMPT = " Lily and Tom went to the park. Lily gave the ball to"


@pytest.fixture(scope="module")
def real() -> Iterator[Client]:
    """A client of a server with models whose tokenizers differ: of words, of Llama's kind, of GPT-2's."""
    models = {
        "words": shared_model("gptnano-sort-gpt2-hf"),
        "llama": shared_model("stories260K-hf"),
        "gpt": shared_model("tinytalk-gptneo-hf"),
    }
    with ServerProcess(models) as process, Client(process.address) as connected:
        yield connected


def test_texts_as_the_demo_tokenizes_them(client: Client) -> None:
    tom, both = client.tokenize("demo", [" Tom", " Tom and"], prompt=PROMPT)
    assert (len(tom.ids), tom.answer_id, tom.answer_note) == (1, tom.ids[0], "")
    assert (both.ids[0], both.answer_id) == (tom.answer_id, None)
    assert "is 2 tokens: " in both.answer_note


def test_the_command(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "--model", "demo", "--server", server.address, "--json", " Tom"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["ids"] == [found["answer_id"]]


@pytest.mark.parametrize("text", ["D", "A B D", "\x00"])
def test_texts_without_tokens_are_refused_by_name(real: Client, text: str) -> None:
    for task, field in ((Task([text]), "task.clean[0]"), (Task([[0, 1]], answers=[text]), "task.answers[0]")):
        with pytest.raises(
            InvalidRequest, match=r"cannot be tokenized: .*send (a token id|token ids)"
        ) as caught:
            real.estimate("words", task, 0.1, ablation="zero")
        assert caught.value.field == field


def test_the_built_in_task_does_not_fit_every_model(real: Client) -> None:
    with pytest.raises(InvalidRequest, match="ioi needs 5 names that are single tokens"):
        real.estimate("words", "ioi", 0.1)


def test_an_answer_that_is_one_token_in_context_only(real: Client) -> None:
    prompt = "The girl was sad. Then"
    with pytest.raises(InvalidRequest, match=r"' she' is 2 tokens: '▁', '▁she'; .*; try 'she'"):
        real.estimate("llama", Task([[1, 2]], answers=[" she"]), 0.1, ablation="zero")
    space, bare = real.tokenize("llama", [" she", "she"], prompt=prompt)
    assert space.answer_token == "▁she"
    assert bare.answer_id == space.answer_id
    task = Task([prompt], answers=[" she"], wrong_answers=[" he"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        real.estimate("llama", task, 0.1, metric="logit_difference", ablation="zero")
    assert not [warning for warning in caught if "task.answers" in str(warning.message)]


def test_a_word_without_its_space_is_warned_of(real: Client) -> None:
    task = Task([PROMPT], answers=["Tom"], wrong_answers=[" Lily"])
    with pytest.warns(PahqWarning, match=r"task.answers\[0\]: 'Tom' is the token 'Tom' .*' Tom'"):
        real.estimate("gpt", task, 0.1, metric="logit_difference", ablation="zero")


def test_a_text_of_megabytes_is_refused_before_it_is_tokenized(client: Client) -> None:
    for text in ("x " * 7_000_000, " " * 14_000_000):
        with pytest.raises(InvalidRequest, match=r"14000000 bytes; at most [0-9]+ are taken") as caught:
            client.estimate("demo", Task(["a", text]), 0.1, ablation="zero")
        assert caught.value.field == "task.clean[1]"
