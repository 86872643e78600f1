"""The command ``pahq-server``: one file per command, one file per topic of options."""

from pahq_server.cli.command import main, make_parser

__all__ = ["main", "make_parser"]
