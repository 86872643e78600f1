"""Connections of clients: how many there may be, and how long those that are of no use are kept.

Each takes a file of the process. Where no file is left, nobody can connect, and the database cannot be opened
either. gRPC counts connections in all, but not by where they come from: that is a firewall's work.
"""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass

logger = logging.getLogger(__name__)

# Files that are not for connections: models, the database, the log, the page of metrics.
RESERVED_FILES = 256
# Where the system sets no limit, or a very high one.
MOST_CONNECTIONS = 100_000


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of connections.

    Args:
        connections: at the same time; further ones are closed at once. None for as many as the process may
            have files, less `RESERVED_FILES`.
        idle_s: seconds without a call after which a connection is closed; clients connect again when needed.
        handshake_s: seconds that a client may take for TLS and the beginning of HTTP/2.
    """

    connections: int | None = None
    idle_s: float = 300.0
    handshake_s: float = 10.0

    def channel_options(self, streams: int) -> list[tuple[str, int]]:
        """Options for a gRPC server.

        Args:
            streams: calls that may be under way on one connection; clients wait with further ones.
        """
        most = connections_of(file_limit()) if self.connections is None else self.connections
        return [
            ("grpc.max_allowed_incoming_connections", most),
            ("grpc.max_connection_idle_ms", _milliseconds(self.idle_s)),
            ("grpc.server_handshake_timeout_ms", _milliseconds(self.handshake_s)),
            ("grpc.max_concurrent_streams", streams),
        ]


def _milliseconds(seconds: float) -> int:
    return round(min(seconds * 1000, (1 << 31) - 1))  # gRPC takes the largest number for never


def file_limit() -> int:
    """How many files the process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS + RESERVED_FILES if soft == resource.RLIM_INFINITY else soft


def connections_of(files: int) -> int:
    """How many of so many files are for connections: half of them where there are very few."""
    return min(max(files - RESERVED_FILES, files // 2, 1), MOST_CONNECTIONS)


def raise_file_limit() -> None:
    """Lets the process have as many files open as it may: many systems start it with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard or soft == resource.RLIM_INFINITY:
        return
    wanted = hard
    if hard == resource.RLIM_INFINITY:  # macOS says so, but allows less than that
        wanted = max(soft, MOST_CONNECTIONS + RESERVED_FILES)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        logger.warning("at most %d open files: the limit cannot be raised (%s)", soft, error)
    else:
        logger.debug("at most %d open files, instead of %d", wanted, soft)
