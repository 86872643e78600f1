"""Lists the commands, reads the command line and runs what it names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pahq import __version__

from pahq_server.cli import backup, check, health, plan, serve, token
from pahq_server.cli.flags import add_options, build
from pahq_server.config.options import option
from pahq_server.config.server import ServerConfig
from pahq_server.telemetry import logs


@dataclass(frozen=True)
class LogOptions:
    """How lines of the log look; every command has these."""

    log_level: str = option("info", choices=("debug", "info", "warning", "error"))
    log_format: str = option("text", "lines of text, or a JSON object per line", choices=("text", "json"))


@dataclass(frozen=True)
class Command:
    """A command, or an action of a command.

    Args:
        name: on the command line.
        help: what it does.
        options: dataclass of its options; None for a command that only has actions.
        run: takes an instance of ``options`` and returns the exit code.
        actions: what may follow its name.
    """

    name: str
    help: str
    options: type | None = None
    run: Callable[[Any], int] | None = None
    actions: tuple[Command, ...] = ()


COMMANDS = (
    Command("serve", "serve models over gRPC", ServerConfig, serve.run),
    Command("plan", "say what serving models would take, without loading them", plan.PlanOptions, plan.run),
    Command(
        "check",
        "say whether a checkpoint would be served as the model that it is",
        check.CheckOptions,
        check.run,
    ),
    Command(
        "token",
        "create, list and revoke API tokens",
        actions=(
            Command("create", "create a token and print it, once", token.CreateOptions, token.create),
            Command("list", "list tokens, without their secrets", token.ListOptions, token.list_tokens),
            Command("revoke", "revoke a token", token.RevokeOptions, token.revoke),
        ),
    ),
    Command("backup", "copy jobs and tokens, also while a server runs", backup.BackupOptions, backup.run),
    Command("health", "ask a running server whether it takes calls", health.HealthOptions, health.run),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that ``arguments`` name (default: those of the process); returns the exit code.

    Raises SystemExit with code 2, after a message, for arguments that are wrong.
    """
    given = make_parser().parse_args(arguments)
    log = build(LogOptions, given)
    logs.configure(log.log_level, log.log_format)
    command: Command = given.run
    assert command.options is not None
    assert command.run is not None
    return command.run(build(command.options, given))


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of all commands. Its namespace has a field per option, and ``command``."""
    parser = argparse.ArgumentParser(
        prog="pahq-server", description="Keeps language models resident and discovers circuits in them."
    )
    parser.add_argument("--version", action="version", version=f"pahq-server {__version__}")
    for made in _add_commands(parser, "command", COMMANDS):
        add_options(made, LogOptions)
    return parser


def _add_commands(
    parser: argparse.ArgumentParser, dest: str, commands: Sequence[Command]
) -> list[argparse.ArgumentParser]:
    added = []
    subparsers = parser.add_subparsers(required=True, metavar=dest.upper(), dest=dest)
    for command in commands:
        made = subparsers.add_parser(command.name, help=command.help)
        if command.options is not None:
            add_options(made, command.options)
            made.set_defaults(run=command)
        if command.actions:
            _add_commands(made, "action", command.actions)
        added.append(made)
    return added
