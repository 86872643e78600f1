"""``pahq-server token``."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pahq_server.access.identity import Credentials, TokenAuthenticator
from pahq_server.access.tokens import TokenTable, token_id
from pahq_server.cli import main
from pahq_server.core.context import Caller
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE


class Command:
    """Runs the command for one data directory."""

    def __init__(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data, self._capsys = data, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = main(["token", *arguments, "--data-dir", str(self.data)])
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path / "new" / "data", capsys)


def test_a_token_that_is_created_lets_its_user_in(command: Command) -> None:
    code, out, err = command("create", "ada", "--scope", "admin")
    assert (code, err) == (0, "")
    database = Database(command.data / DATABASE)
    caller = TokenAuthenticator(TokenTable(database)).identify(Credentials([f"Bearer {out.strip()}"]))
    database.close()
    assert caller == Caller("ada", admin=True)


def test_nobody_else_can_read_where_tokens_are_kept(command: Command) -> None:
    command("create", "ada")
    assert stat.S_IMODE(command.data.stat().st_mode) == 0o700
    assert stat.S_IMODE((command.data / DATABASE).stat().st_mode) == 0o600


def test_the_list_shows_no_secret(command: Command) -> None:
    texts = [
        command("create", user, *more)[1].strip() for user, more in (("ada", ()), ("bob", ("--days", "2")))
    ]
    ids = [token_id(text) or "" for text in texts]
    assert command("revoke", ids[0])[0] == 0
    code, out, _ = command("list")
    first, second = (line.split("\t") for line in out.splitlines())
    assert (code, first[:3], second[:3]) == (0, [ids[0], "ada", "user"], [ids[1], "bob", "user"])
    assert first[4].startswith("revoked 2")
    assert second[4].startswith("valid until 2")
    assert not any(text[-43:] in out for text in texts)


def test_a_token_that_is_not_there(command: Command) -> None:
    assert command("revoke", "0123456789abcdef")[::2] == (
        1,
        "pahq-server: there is no token '0123456789abcdef'\n",
    )


@pytest.mark.parametrize("user", ["Ada", "a/b", "", "é"])
def test_what_is_no_user(user: str, command: Command) -> None:
    code, out, err = command("create", user)
    assert (code, out) == (2, "")
    assert "is no user name" in err


@pytest.mark.parametrize("days", ["0", "-1", "soon", "nan", "1e9", "1e-9"])
def test_what_is_no_number_of_days(days: str, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        command("create", "ada", f"--days={days}")
    assert exit.value.code == 2
    allowed = "must be a number of days from a minute (0.0007) to 36500"
    assert f"argument --days: {allowed}, got {days!r}" in capsys.readouterr().err


def test_a_list_of_nothing_says_where_it_looked(command: Command) -> None:
    code, out, err = command("list")
    assert (code, out) == (0, "")
    assert f"there are no tokens in {command.data}: is that the server's --data-dir?" in err


def test_a_directory_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert main(["token", "list", "--data-dir", str(file)]) == 2
    assert "cannot be used" in capsys.readouterr().err
