"""Options of a command line that are derived from dataclasses."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, dataclass, field
from typing import Annotated

import pytest

from pahq_server.cli.flags import add_options, build
from pahq_server.config.options import Reader, option
from pahq_server.config.values import Count, Seconds, Size


def unlike(values: tuple[str, ...]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{values[-1]!r} was there before")


Word = Annotated[str, Reader(str, "WORD")]


@dataclass(frozen=True)
class Inner:
    """A concern of its own."""

    idle_timeout: Seconds = option(300.0, "close after so many seconds")
    max_calls: Count | None = option(None, "calls at once (default: no limit)")


@dataclass(frozen=True)
class Config:
    """One option of every kind, and a field that is none."""

    files: tuple[Word, ...] = option(MISSING, "to read", positional=True)
    memory: Size | None = option(None, "to take")
    inner: Inner = field(default_factory=Inner)
    word: tuple[Word, ...] = option((), "may be repeated", check=unlike)
    mode: str = option("fast", choices=("fast", "slow"))
    loud: bool = option(False, "make noise")
    self_test: bool = option(True, "do not test")
    secret: int = 7


def parse(*arguments: str) -> Config:
    parser = argparse.ArgumentParser(prog="toy")
    add_options(parser, Config)
    return build(Config, parser.parse_args(arguments))


def test_without_options_the_defaults_of_the_fields_hold() -> None:
    assert parse("f") == Config(("f",))


def test_every_kind_of_option() -> None:
    made = parse(
        *("f", "g", "--memory", "2KiB", "--idle-timeout", "1.5", "--max-calls", "3", "--word", "a"),
        *("--word", "b", "--mode", "slow", "--loud", "--no-self-test"),
    )
    assert made == Config(("f", "g"), 2048, Inner(1.5, 3), ("a", "b"), "slow", True, False)


def test_what_belongs_to_other_configs_is_ignored() -> None:
    assert build(Inner, argparse.Namespace(max_calls=2, command="serve", files=["f"])) == Inner(max_calls=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-calls", "0"], "argument --max-calls: must be an integer ≥ 1, got '0'"),
        (["--word", "a", "--word", "a"], "argument --word: 'a' was there before"),
        (["--mode", "odd"], "argument --mode: invalid choice: 'odd'"),
        ([], "the following arguments are required: WORD"),
        (["f", "--self-test"], "unrecognized arguments: --self-test"),
    ],
)
def test_mistakes_end_with_code_2_and_an_explanation(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(*arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_tells_units_and_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "--memory SIZE to take" in lines
    assert "--idle-timeout S close after so many seconds (default: 300)" in lines
    assert "--max-calls N calls at once (default: no limit)" in lines
    assert "--mode {fast,slow} default: fast" in lines
    assert "--no-self-test do not test" in lines
    assert "secret" not in text


def test_a_type_that_nothing_reads_is_a_mistake_of_the_program() -> None:
    @dataclass(frozen=True)
    class Odd:
        size: complex = option(0j, "of something")

    with pytest.raises(TypeError, match="no Reader says how text becomes"):
        add_options(argparse.ArgumentParser(), Odd)
