"""Asking a server how it tokenizes texts, from Python and from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pahq_client import InvalidRequest, ServerFault, TokenizedText
from pahq_client.cli import main

from .fake_server import FakeServer

AB = TokenizedText("ab", (0, 97, 98), ("<s>", "a", "b"), None, "", "no answer to '': \\x1b[31m")
C = TokenizedText("c", (0, 99), ("<s>", "c"), 99, "c", "")


def test_texts(client: Any, server: FakeServer) -> None:
    assert client.tokenize("demo", ["ab", "c"]) == [AB, C]
    (request,) = server.called("TokenizeTexts")
    assert (request.model, list(request.texts), request.prompt, request.omit_special_tokens) == (
        "demo",
        ["ab", "c"],
        "",
        False,
    )


def test_one_text_is_a_text_and_not_its_letters(client: Any) -> None:
    assert client.tokenize("demo", "ab") == [AB]


def test_options(client: Any, server: FakeServer) -> None:
    (found,) = client.tokenize("demo", ("ab",), prompt="x", special_tokens=False)
    assert (found.ids, found.tokens, found.answer_note) == (
        (97, 98),
        ("a", "b"),
        "no answer to 'x': \\x1b[31m",
    )
    (request,) = server.called("TokenizeTexts")
    assert (request.prompt, request.omit_special_tokens) == ("x", True)


@pytest.mark.parametrize(
    ("arguments", "options", "field"),
    [
        (("demo", [1]), {}, "texts[0]"),
        (("demo", ["a", None]), {}, "texts[1]"),
        (("demo", 7), {}, "texts"),
        ((3, ["a"]), {}, "model"),
        (("demo", ["a"]), {"prompt": 3}, "prompt"),
        (("demo", ["a"]), {"special_tokens": "yes"}, "special_tokens"),
        (("demo", ["\ud800"]), {}, "texts[0]"),
        (("demo", ["a"]), {"special": False}, "special"),
    ],
)
def test_wrong_arguments(client: Any, arguments: Any, options: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.tokenize(*arguments, **options)
    assert caught.value.field == field


def test_answers_about_other_texts_are_a_fault(client: Any, server: FakeServer) -> None:
    server.texts_left_out = 1
    with pytest.raises(ServerFault, match="other texts"):
        client.tokenize("demo", ["ab", "c"])


def test_the_command(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tokenize", "--model", "demo", "--server", server.address]
    assert main([*command, "ab", "c", "\x1b"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "'ab': 3 tokens",
        "       0  '<s>'",
        "      97  'a'",
        "      98  'b'",
        "  not an answer: no answer to '': \\x1b[31m",
        "'c': 2 tokens",
        "       0  '<s>'",
        "      99  'c'",
        "  as an answer: 99 'c'",
        "'\\x1b': 2 tokens",
        "       0  '<s>'",
        "      27  '\\x1b'",
        "  as an answer: 27 '\\x1b'",
    ]
    assert main([*command, "--no-special-tokens", "--prompt", "x", "--json", "ab"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {
        "text": "ab",
        "ids": [97, 98],
        "tokens": ["a", "b"],
        "answer_id": None,
        "answer_token": "",
        "answer_note": "no answer to 'x': \\x1b[31m",
    }


def test_the_command_needs_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tokenize", "--model", "demo"])
    assert caught.value.code == 2
    assert "TEXT" in capsys.readouterr().err
