"""The command ``pahq-server``.

Read `command` first: it lists the commands. Each of them is a module with a dataclass of its options and a
function that runs it and returns the exit code: `serve`, `plan`, `check`, `token`, `backup` and `health`.
`flags` derives the options from the dataclasses, `output` has exit codes, messages and tables. Modules that
import torch are imported by the functions that need them, so that ``--help`` and ``health`` answer at once.
"""

from pahq_server.cli.command import main, make_parser

__all__ = ["main", "make_parser"]
