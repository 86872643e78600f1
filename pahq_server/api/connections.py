"""Limits of clients' connections: how many there may be, and how long idle ones are kept.

Every connection takes one open file of the process. Without a free one nobody can connect, and the database
cannot be opened either. gRPC bounds connections in all but not per address; a firewall can do that.
"""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass

logger = logging.getLogger(__name__)

# Open files that are kept for other uses than connections: models, the database, the log, metrics.
RESERVED_FILES = 256
# The most connections where the system sets no limit on open files, or a very high one.
MOST_CONNECTIONS = 100_000


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of connections.

    Args:
        connections: how many there may be at the same time; further ones are closed at once. None for the
            number of files that the process may open, less `RESERVED_FILES`.
        idle_s: seconds without a call after which a connection is closed. Clients connect again when needed.
        handshake_s: seconds that a client may take for TLS and the beginning of HTTP/2.
    """

    connections: int | None = None
    idle_s: float = 300.0
    handshake_s: float = 10.0

    def channel_options(self, streams: int) -> list[tuple[str, int]]:
        """Returns options for a gRPC server.

        Args:
            streams: calls that may be under way on one connection; a client waits with further ones.
        """
        most = most_connections(file_limit()) if self.connections is None else self.connections
        return [
            ("grpc.max_allowed_incoming_connections", most),
            ("grpc.max_connection_idle_ms", _milliseconds(self.idle_s)),
            ("grpc.server_handshake_timeout_ms", _milliseconds(self.handshake_s)),
            ("grpc.max_concurrent_streams", streams),
        ]


def _milliseconds(seconds: float) -> int:
    return round(min(seconds * 1000, (1 << 31) - 1))  # gRPC takes the largest number for "never"


def file_limit() -> int:
    """Returns how many files the process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS + RESERVED_FILES if soft == resource.RLIM_INFINITY else soft


def most_connections(files: int) -> int:
    """Returns how many of so many open files may be connections: half of them where there are few."""
    return min(max(files - RESERVED_FILES, files // 2, 1), MOST_CONNECTIONS)


def raise_file_limit() -> None:
    """Raises the limit of open files as far as the system allows. Many systems start processes with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard or soft == resource.RLIM_INFINITY:
        return
    wanted = hard
    if hard == resource.RLIM_INFINITY:  # macOS reports this and allows less
        wanted = max(soft, MOST_CONNECTIONS + RESERVED_FILES)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        logger.warning("at most %d open files: the limit cannot be raised (%s)", soft, error)
    else:
        logger.debug("at most %d open files, instead of %d", wanted, soft)
