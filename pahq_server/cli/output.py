"""What the command prints, and its exit codes."""

from __future__ import annotations

import sys

OK, FAILED, USAGE = 0, 1, 2


def complain(message: str, code: int = USAGE) -> int:
    """Prints why it does not go on; returns the exit code."""
    print(f"pahq-server: {message}", file=sys.stderr)
    return code


def announce(address: str) -> None:
    print(f"pahq-server listening on {address}", flush=True)
