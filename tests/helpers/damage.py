"""Databases with rows that no server wrote."""

from __future__ import annotations

import sqlite3

from pahq_server.store import checksums

_FIXED = "name, user, request_id, payload, spec, total, unit, tokens, revision, content, log, created"


def summed_again(connection: sqlite3.Connection) -> None:
    """Gives all jobs the checksums of what was asked for by them, as if a server had written that."""
    rows = connection.execute(f"SELECT id, {_FIXED} FROM jobs").fetchall()
    for job, *values in rows:
        known = checksums.checksum("jobs.fixed", job, *values)
        connection.execute("UPDATE jobs SET fixed_sum = ? WHERE id = ?", (known, job))
