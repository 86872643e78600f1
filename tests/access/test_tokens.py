"""Tokens: their form, what is kept of them, and the table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pahq_server.access.tokens import TokenTable, digest, is_user, new_token, token_id
from pahq_server.core.context import Caller
from pahq_server.store.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "db")
    yield opened
    opened.close()


def test_a_token_has_256_random_bits_and_a_public_part() -> None:
    texts = [new_token("ada", "user", 0.0)[0] for _ in range(100)]
    assert len({text[-43:] for text in texts}) == len({token_id(text) for text in texts}) == 100
    assert all(re.fullmatch(r"pahq_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", text) for text in texts)


def test_what_is_kept_of_a_token_does_not_tell_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    text, token = new_token("ada", "user", 0.0)
    TokenTable(database).add(token)
    database.close()
    secret = text[-43:]
    assert secret not in repr(token)
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes()
    assert token.digest == digest(text)


def test_a_token_is_known_again_by_its_whole_text() -> None:
    text, token = new_token("ada", "admin", 0.0)
    assert token.matches(text)
    for other in (
        text[:-1],
        text + "A",
        text.upper(),
        text.replace("pahq", "PAHQ"),
        "",
        new_token("ada", "user", 0)[0],
    ):
        assert not token.matches(other)
    assert token.caller == Caller("ada", admin=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pahq_",
        "pahq_0123456789abcdef_" + "A" * 42,
        "pahq_0123456789abcdef_" + "A" * 44,
        "pahq_0123456789ABCDEF_" + "A" * 43,
        "pahq_0123456789abcdef_" + "A" * 42 + "é",
        " pahq_0123456789abcdef_" + "A" * 43,
        "pahq_0123456789abcdef_" + "A" * 43 + "\n",
        "pahq_٠123456789abcde_" + "A" * 43,
    ],
)
def test_what_has_not_the_form_of_a_token(text: str) -> None:
    assert token_id(text) is None


def test_times_of_a_token() -> None:
    _, token = new_token("ada", "user", 10.0, expires=20.0)
    assert (token.valid(10.0), token.valid(19.9), token.valid(20.0)) == (True, True, False)


@pytest.mark.parametrize("name", ["ada", "a", "0", "ada.lovelace_1-x", "a" * 63])
def test_users(name: str) -> None:
    assert is_user(name)


@pytest.mark.parametrize("name", ["", "Ada", "a/b", "..", ".a", "-a", "a b", "é", "a" * 64, "a\n", "a\0"])
def test_what_is_no_user(name: str) -> None:
    assert not is_user(name)
    with pytest.raises(ValueError, match="is no user name"):
        new_token(name, "user", 0.0)


def test_what_is_no_scope() -> None:
    with pytest.raises(ValueError, match="'root' is no scope: one of user, admin"):
        new_token("ada", "root", 0.0)


def test_the_table_gives_back_what_it_was_given(database: Database) -> None:
    table = TokenTable(database)
    tokens = [new_token("ada", "user", 2.0, 5.0)[1], new_token("bob", "admin", 1.0)[1]]
    for token in tokens:
        table.add(token)
    assert table.all() == [tokens[1], tokens[0]]


def test_revoking_keeps_the_first_time(database: Database) -> None:
    table = TokenTable(database)
    _, token = new_token("ada", "user", 0.0)
    table.add(token)
    assert table.revoke(token.id, 3.0)
    assert table.revoke(token.id, 4.0)
    assert not table.revoke("0123456789abcdef", 3.0)
    (kept,) = table.all()
    assert kept.revoked == 3.0
    assert not kept.valid(3.0)
