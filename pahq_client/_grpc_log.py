"""Keeps the lines of gRPC's core, which go past every log, off the terminal. Imported before anything else.

The core reads ``GRPC_VERBOSITY`` once, when `grpc` is imported. A program that has set it or ``GRPC_TRACE``,
or has imported `grpc` before, keeps what it has. The environment is left as it was, so that child processes
decide for themselves.
"""

from __future__ import annotations

import os

if "GRPC_VERBOSITY" not in os.environ and "GRPC_TRACE" not in os.environ:
    os.environ["GRPC_VERBOSITY"] = "NONE"
    try:
        import grpc  # noqa: F401 - reads the variable
    finally:
        del os.environ["GRPC_VERBOSITY"]
