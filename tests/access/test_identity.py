"""Who makes a call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pahq_server.access.config import AccessConfig
from pahq_server.access.identity import (
    REFRESH_S,
    Anyone,
    CertificateHolders,
    Credentials,
    TokenHolders,
)
from pahq_server.access.table import TokenTable
from pahq_server.access.tokens import new_token
from pahq_server.core.caller import Caller
from pahq_server.core.errors import ServerError, UnauthenticatedError
from pahq_server.store.database import Database


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "db")
    yield opened
    opened.close()


@pytest.fixture
def table(database: Database) -> TokenTable:
    return TokenTable(database)


def create(table: TokenTable, user: str = "ada", scope: str = "user", expires: float | None = None) -> str:
    text, token = new_token(user, scope, 0.0, expires)
    table.add(token)
    return text


def bearer(text: str) -> Credentials:
    return Credentials([f"Bearer {text}"])


def test_a_token_tells_who_calls(table: TokenTable, clock: Clock) -> None:
    ada, root = create(table), create(table, "root", "admin")
    holders = TokenHolders(table, clock=clock)
    assert holders.identify(bearer(ada)) == Caller("ada")
    assert holders.identify(Credentials([f"bearer {root}"])) == Caller("root", admin=True)


def bad_credentials(good: str) -> list[Credentials]:
    headers: list[list[str]] = [
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        [good],
        [f"Basic {good}"],
        [f"Bearer  {good}"],
        [f"Bearer {good} "],
        [f"Bearer {good[:-1]}"],
        [f"Bearer {good[:-43]}{'A' * 43}"],
        [f"Bearer pahq_0123456789abcdef_{good[-43:]}"],
        [f"Bearer {good}", f"Bearer {good}"],
        [f"Bearer {good}, Bearer {good}"],
    ]
    return [Credentials(values, ["ada"]) for values in headers]


def test_everybody_else_is_told_the_same(table: TokenTable, clock: Clock) -> None:
    good = create(table)
    expired, revoked = create(table, expires=clock.now), create(table)
    table.revoke(revoked[5:21], clock.now)
    holders, texts = TokenHolders(table, clock=clock), set()
    for credentials in [*bad_credentials(good), bearer(expired), bearer(revoked)]:
        with pytest.raises(UnauthenticatedError) as caught:
            holders.identify(credentials)
        texts.add(str(caught.value))
    assert len(texts) == 1
    assert "pahq_" not in texts.pop()


def test_what_changes_is_noticed_soon(table: TokenTable, clock: Clock) -> None:
    holders = TokenHolders(table, clock=clock)
    with pytest.raises(UnauthenticatedError):
        holders.identify(Credentials())
    text = create(table, expires=clock.now + 100)
    clock.now += REFRESH_S
    assert holders.identify(bearer(text)) == Caller("ada")
    table.revoke(text[5:21], clock.now)
    clock.now += REFRESH_S
    with pytest.raises(UnauthenticatedError):
        holders.identify(bearer(text))


def test_a_token_expires_while_the_server_runs(table: TokenTable, clock: Clock) -> None:
    text = create(table, expires=clock.now + REFRESH_S / 2)
    holders = TokenHolders(table, clock=clock)
    assert holders.identify(bearer(text)) == Caller("ada")
    clock.now += REFRESH_S / 2
    with pytest.raises(UnauthenticatedError):
        holders.identify(bearer(text))


def test_a_clock_that_is_set_back_does_not_keep_old_tokens(table: TokenTable, clock: Clock) -> None:
    text = create(table)
    holders = TokenHolders(table, clock=clock)
    assert holders.identify(bearer(text)) == Caller("ada")
    table.revoke(text[5:21], clock.now)
    clock.now -= 500
    with pytest.raises(UnauthenticatedError):
        holders.identify(bearer(text))


def test_the_first_token_closes_an_open_server_for_good(table: TokenTable, clock: Clock) -> None:
    holders = TokenHolders(table, Anyone(), clock)
    assert holders.identify(Credentials()) == Caller("local", admin=True)
    text = create(table)
    clock.now += REFRESH_S
    with pytest.raises(UnauthenticatedError):
        holders.identify(Credentials())
    assert holders.identify(bearer(text)) == Caller("ada")
    table.revoke(text[5:21], clock.now)
    clock.now += REFRESH_S
    with pytest.raises(UnauthenticatedError):
        holders.identify(Credentials())


def test_nobody_comes_in_while_tokens_cannot_be_read(
    table: TokenTable, database: Database, clock: Clock
) -> None:
    text = create(table)
    holders = TokenHolders(table, Anyone(), clock)
    holders.identify(bearer(text))
    database.close()
    clock.now += REFRESH_S
    for credentials in (bearer(text), Credentials()):
        with pytest.raises(ServerError, match="cannot check tokens"):
            holders.identify(credentials)


def test_certificates_tell_who_calls() -> None:
    holders = CertificateHolders(["root"])
    assert holders.identify(Credentials(common_names=["ada"])) == Caller("ada")
    assert holders.identify(Credentials(common_names=["root"])) == Caller("root", admin=True)
    for names in ([], ["ada", "root"], ["Ada Lovelace"], [""], ["a/b"], ["*"]):
        with pytest.raises(UnauthenticatedError):
            holders.identify(Credentials(["Bearer x"], names))


@pytest.mark.parametrize(
    ("auth", "kind"),
    [
        ("none", Anyone),
        ("certificates", CertificateHolders),
        ("auto", TokenHolders),
        ("tokens", TokenHolders),
    ],
)
def test_modes(auth: str, kind: type, table: TokenTable, caplog: pytest.LogCaptureFixture) -> None:
    found = AccessConfig(auth=auth).authenticator(table)
    assert type(found) is kind
    assert ("no token exists" in caplog.text) == (auth == "tokens")
    if auth == "tokens":
        with pytest.raises(UnauthenticatedError):
            found.identify(Credentials())
