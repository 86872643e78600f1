"""Who makes a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pahq_server.access.access import AccessConfig
from pahq_server.access.identity import (
    REFRESH_S,
    CertificateAuthenticator,
    Credentials,
    LocalUserAuthenticator,
    TokenAuthenticator,
)
from pahq_server.access.tokens import TokenTable, new_token
from pahq_server.core.context import Caller
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
    holders = TokenAuthenticator(table, clock=clock)
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
    holders, texts = TokenAuthenticator(table, clock=clock), set()
    for credentials in [*bad_credentials(good), bearer(expired), bearer(revoked)]:
        with pytest.raises(UnauthenticatedError) as caught:
            holders.identify(credentials)
        texts.add(str(caught.value))
    assert len(texts) == 1
    assert "pahq_" not in texts.pop()


def test_what_changes_is_noticed_soon(table: TokenTable, clock: Clock) -> None:
    holders = TokenAuthenticator(table, clock=clock)
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
    holders = TokenAuthenticator(table, clock=clock)
    assert holders.identify(bearer(text)) == Caller("ada")
    clock.now += REFRESH_S / 2
    with pytest.raises(UnauthenticatedError):
        holders.identify(bearer(text))


def test_a_clock_that_is_set_back_does_not_keep_old_tokens(table: TokenTable, clock: Clock) -> None:
    text = create(table)
    holders = TokenAuthenticator(table, clock=clock)
    assert holders.identify(bearer(text)) == Caller("ada")
    table.revoke(text[5:21], clock.now)
    clock.now -= 500
    with pytest.raises(UnauthenticatedError):
        holders.identify(bearer(text))


def test_the_first_token_closes_an_open_server_for_good(table: TokenTable, clock: Clock) -> None:
    holders = TokenAuthenticator(table, LocalUserAuthenticator(), clock)
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
    holders = TokenAuthenticator(table, LocalUserAuthenticator(), clock)
    holders.identify(bearer(text))
    database.close()
    clock.now += REFRESH_S
    for credentials in (bearer(text), Credentials()):
        with pytest.raises(ServerError, match="cannot check tokens"):
            holders.identify(credentials)


def held(database: Database) -> ExitStack:
    """Holds all locks of a database in a thread of its own, until the stack is closed."""
    stack, taken, done = ExitStack(), threading.Event(), threading.Event()

    def hold() -> None:
        with database._writing, database._reading:
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    stack.callback(thread.join)
    stack.callback(done.set)
    return stack


def eventually(identify: Callable[[], object], outcome: object) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            found = identify()
        except ServerError as error:
            found = type(error)
        if found == outcome:
            return
        assert time.monotonic() < end, f"{found} never became {outcome}"
        time.sleep(0.01)


def test_a_thread_notices_what_changes(table: TokenTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pahq_server.access.identity.REFRESH_S", 0.05)
    holders = TokenAuthenticator(table)
    with holders.refreshing():
        text = create(table)
        eventually(lambda: holders.identify(bearer(text)), Caller("ada"))
        table.revoke(text[5:21], time.time())
        eventually(lambda: holders.identify(bearer(text)), UnauthenticatedError)


def test_no_caller_waits_for_the_database(
    table: TokenTable, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pahq_server.access.identity.REFRESH_S", 0.01)
    text = create(table)
    holders = TokenAuthenticator(table)
    with holders.refreshing():
        with held(database):
            time.sleep(0.1)  # what was read is older than it should be by now
            assert holders.identify(bearer(text)) == Caller("ada")
            with pytest.raises(UnauthenticatedError):
                holders.identify(Credentials())
            monkeypatch.setattr("pahq_server.access.identity.STALE_S", 0.01)
            with pytest.raises(ServerError, match="its database does not answer"):
                holders.identify(bearer(text))
            monkeypatch.setattr("pahq_server.access.identity.STALE_S", 60.0)
        eventually(lambda: holders.identify(bearer(text)), Caller("ada"))


def test_nobody_comes_in_while_the_thread_cannot_read(
    table: TokenTable, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pahq_server.access.identity.REFRESH_S", 0.01)
    text = create(table)
    holders = TokenAuthenticator(table, LocalUserAuthenticator())
    with holders.refreshing():
        assert holders.identify(bearer(text)) == Caller("ada")
        database.close()
        for credentials in (bearer(text), Credentials()):
            eventually(lambda shown=credentials: holders.identify(shown), ServerError)  # type: ignore[misc]
    assert "tokens cannot be read" in caplog.text


def test_the_log_alone_is_told_why_a_call_is_refused(table: TokenTable, clock: Clock) -> None:
    unknown, _ = new_token("eve", "user", 0.0)
    expired, revoked = create(table, "bob", expires=clock.now), create(table)
    table.revoke(revoked[5:21], clock.now)
    holders, told = TokenAuthenticator(table, clock=clock), []
    for credentials in (Credentials(), bearer("x"), bearer(unknown), bearer(expired), bearer(revoked)):
        with pytest.raises(UnauthenticatedError) as caught:
            holders.identify(credentials)
        told.append(str(caught.value.__cause__))
    assert told == [
        "it shows no token",
        "what it shows is not a token",
        "its token is unknown",
        f"its token, {expired[5:21]} of user bob, has expired",
        f"its token, {revoked[5:21]} of user ada, was revoked",
    ]


def test_certificates_tell_who_calls() -> None:
    holders = CertificateAuthenticator(["root"])
    assert holders.identify(Credentials(common_names=["ada"])) == Caller("ada")
    assert holders.identify(Credentials(common_names=["root"])) == Caller("root", admin=True)
    for names in ([], ["ada", "root"], ["Ada Lovelace"], [""], ["a/b"], ["*"]):
        with pytest.raises(UnauthenticatedError):
            holders.identify(Credentials(["Bearer x"], names))


@pytest.mark.parametrize(
    ("auth", "kind"),
    [
        ("none", LocalUserAuthenticator),
        ("certificates", CertificateAuthenticator),
        ("auto", TokenAuthenticator),
        ("tokens", TokenAuthenticator),
    ],
)
def test_modes(auth: str, kind: type, table: TokenTable, caplog: pytest.LogCaptureFixture) -> None:
    found = AccessConfig(auth=auth).authenticator(table)
    assert type(found) is kind
    assert ("no token exists" in caplog.text) == (auth == "tokens")
    if auth == "tokens":
        with pytest.raises(UnauthenticatedError):
            found.identify(Credentials())


def test_tokens_that_are_all_worth_nothing_are_told_of(
    table: TokenTable, caplog: pytest.LogCaptureFixture
) -> None:
    create(table, expires=1.0)
    AccessConfig(auth="tokens").authenticator(table)
    assert "all 1 tokens have expired or were revoked" in caplog.text
    caplog.clear()
    create(table)
    AccessConfig(auth="tokens").authenticator(table)
    assert caplog.text == ""
