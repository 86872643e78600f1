"""The command line: which commands there are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pahq import __version__

from pahq_server.cli import backup, check, health, plan, serve, token
from pahq_server.telemetry import logs

# Name, module with ``add(parser)`` and ``run(options) -> exit code``, help.
COMMANDS = (
    ("serve", serve, "serve models over gRPC"),
    ("plan", plan, "say what serving models would take, without loading them"),
    ("check", check, "say whether a checkpoint would be served as the model that it is"),
    ("token", token, "create, list and revoke API tokens"),
    ("backup", backup, "copy jobs and tokens, also while a server runs"),
    ("health", health, "ask a running server whether it takes calls"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    logs.configure(options.log_level, options.log_format)
    code: int = options.run(options)
    return code


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pahq-server", description="Keeps language models resident and discovers circuits in them."
    )
    parser.add_argument("--version", action="version", version=f"pahq-server {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, module, help in COMMANDS:
        command = commands.add_parser(name, help=help)
        module.add(command)
        command.set_defaults(run=module.run)
        command.add_argument(
            "--log-level",
            default="info",
            choices=("debug", "info", "warning", "error"),
            help="default: %(default)s",
        )
        command.add_argument(
            "--log-format",
            default="text",
            choices=("text", "json"),
            help="lines of text, or a JSON object per line (default: %(default)s)",
        )
    return parser
