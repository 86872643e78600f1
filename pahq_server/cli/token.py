"""``pahq-server token``: creates, lists and revokes API tokens. A running server notices within seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pahq_server.access.tokens import SCOPES, Token, TokenTable, new_token
from pahq_server.cli.output import FAILED, OK, complain
from pahq_server.config.options import Reader, option
from pahq_server.config.server import DAY_S, DataDirOptions
from pahq_server.config.values import Lifetime
from pahq_server.core.errors import ServerError
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE, make


@dataclass(frozen=True)
class CreateOptions:
    """What a new token is for."""

    user: Annotated[str, Reader(str, "user")] = option(
        MISSING, "whose it will be: up to 63 of a-z, 0-9, '.', '_' and '-'", positional=True
    )
    scope: str = option("user", choices=SCOPES)
    days: Lifetime | None = option(None, "how long it is valid (default: for ever)")
    storage: DataDirOptions = field(default_factory=DataDirOptions)


@dataclass(frozen=True)
class ListOptions:
    """Which tokens to list."""

    storage: DataDirOptions = field(default_factory=DataDirOptions)


@dataclass(frozen=True)
class RevokeOptions:
    """Which token to revoke."""

    id: Annotated[str, Reader(str, "id")] = option(MISSING, "as `list` shows it", positional=True)
    storage: DataDirOptions = field(default_factory=DataDirOptions)


def create(options: CreateOptions) -> int:
    """Prints a new token; returns the exit code. Only its digest is kept, so it cannot be shown again."""
    now = time.time()
    expires = None if options.days is None else now + options.days * DAY_S
    try:
        with _table(options.storage.data_dir) as table:
            text, token = new_token(options.user, options.scope, now, expires)
            table.add(token)
    except (ServerError, ValueError) as error:
        return complain(str(error))
    print(text)
    return OK


def list_tokens(options: ListOptions) -> int:
    """Prints a line per token: id, user, scope, when it was created, and whether it is valid."""
    try:
        with _table(options.storage.data_dir) as table:
            tokens = table.all()
    except ServerError as error:
        return complain(str(error))
    if not tokens:
        complain(f"there are no tokens in {options.storage.data_dir}: is that the server's --data-dir?")
    now = time.time()
    for token in tokens:
        if token.damaged:
            print("\t".join((ascii(token.id)[1:-1], "", "", "", "damaged: revoke it, and create another")))
            continue
        print("\t".join((token.id, token.user, token.scope, _date(token.created), _state(token, now))))
    return OK


def revoke(options: RevokeOptions) -> int:
    """Makes a token invalid from now on; returns the exit code."""
    try:
        with _table(options.storage.data_dir) as table:
            found = table.revoke(options.id, time.time())
    except ServerError as error:
        return complain(str(error))
    return OK if found else complain(f"there is no token {options.id!r}", FAILED)


@contextmanager
def _table(directory: Path) -> Iterator[TokenTable]:
    make(directory)
    database = Database(directory / DATABASE)
    try:
        yield TokenTable(database)
    finally:
        database.close()


def _state(token: Token, now: float) -> str:
    if token.revoked is not None:
        return f"revoked {_date(token.revoked)}"
    if token.expires is None:
        return "valid"
    return f"{'valid until' if now < token.expires else 'expired'} {_date(token.expires)}"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
