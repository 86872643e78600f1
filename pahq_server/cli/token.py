"""``pahq-server token``: create, list and revoke API tokens. A running server notices within seconds."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pahq_server.access.tokens import SCOPES, Token, TokenTable, new_token
from pahq_server.cli.options import storage
from pahq_server.cli.output import FAILED, OK, complain
from pahq_server.core.errors import ServerError
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE, make

DAY_S, MINUTE_S = 86_400.0, 60.0


def add(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    create = actions.add_parser("create", help="create a token and print it, once")
    create.add_argument("user", help="whose it will be: up to 63 of a-z, 0-9, '.', '_' and '-'")
    create.add_argument("--scope", choices=SCOPES, default="user", help="default: %(default)s")
    create.add_argument("--days", type=_days, metavar="N", help="how long it is valid (default: for ever)")
    actions.add_parser("list", help="list tokens, without their secrets")
    revoke = actions.add_parser("revoke", help="revoke a token")
    revoke.add_argument("id", help="as `list` shows it")
    for action in actions.choices.values():
        storage.add_data_dir(action)


def run(options: argparse.Namespace) -> int:
    try:
        with _table(options.data_dir) as table:
            actions = {"create": _create, "list": _list, "revoke": _revoke}
            return actions[options.action](table, options)
    except (ServerError, ValueError) as error:
        return complain(str(error))


@contextmanager
def _table(directory: Path) -> Iterator[TokenTable]:
    make(directory)
    database = Database(directory / DATABASE)
    try:
        yield TokenTable(database)
    finally:
        database.close()


def _create(table: TokenTable, options: argparse.Namespace) -> int:
    now = time.time()
    expires = None if options.days is None else now + options.days * DAY_S
    text, token = new_token(options.user, options.scope, now, expires)
    table.add(token)
    print(text)
    return OK


def _list(table: TokenTable, options: argparse.Namespace) -> int:
    now, tokens = time.time(), table.all()
    if not tokens:
        complain(f"there are no tokens in {options.data_dir}: is that the server's --data-dir?")
    for token in tokens:
        if token.damaged:
            print("\t".join((ascii(token.id)[1:-1], "", "", "", "damaged: revoke it, and create another")))
            continue
        print("\t".join((token.id, token.user, token.scope, _date(token.created), _state(token, now))))
    return OK


def _revoke(table: TokenTable, options: argparse.Namespace) -> int:
    if not table.revoke(options.id, time.time()):
        return complain(f"there is no token {options.id!r}", FAILED)
    return OK


def _state(token: Token, now: float) -> str:
    if token.revoked is not None:
        return f"revoked {_date(token.revoked)}"
    if token.expires is None:
        return "valid"
    return f"{'valid until' if now < token.expires else 'expired'} {_date(token.expires)}"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if MINUTE_S / DAY_S <= days <= 36_500:
        return days
    raise argparse.ArgumentTypeError(f"{text!r} is no number of days from a minute (0.0007) to 36500")
