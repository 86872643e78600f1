"""Where a copy of the database may go, and that a copy that fails leaves everything as it was."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from pahq_server.cli import main
from pahq_server.core.errors import InvalidRequestError, StorageError
from pahq_server.store import backup
from pahq_server.store.backup import back_up
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE, LOCK, StorageConfig, opened


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory that a server has used, beside other files."""
    with opened(StorageConfig(tmp_path / "data")):
        pass
    (tmp_path / "data" / "notes").write_text("somebody's own")
    (tmp_path / "folder").mkdir()
    return tmp_path / "data"


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


OWN = [DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal", f"{DATABASE}.old", LOCK]


@pytest.mark.parametrize("name", [*OWN, "", ".", "..", "../data", "notes", "../folder", "../data/."])
def test_a_copy_never_goes_onto_what_is_in_use(
    name: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(data.parent)
    with pytest.raises(InvalidRequestError, match="the copy cannot be made at"):
        back_up(data, data / name)
    assert main(["backup", "--data-dir", str(data), str(data / name)]) == 2
    assert "the copy cannot be made at" in capsys.readouterr().err
    assert contents(data.parent) == before


@pytest.mark.parametrize("name", ["", ".", "./", "data/.."])
def test_an_empty_name_is_refused(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    before = contents(data.parent)
    assert main(["backup", "--data-dir", "data", name]) == 2
    assert contents(data.parent) == before


@pytest.mark.parametrize("own", OWN)
def test_links_to_files_of_the_data_directory_are_seen_through(own: str, data: Path) -> None:
    """Also to those that are not there at present: SQLite makes and removes them as it needs them."""
    folder = data.parent / "folder"
    (folder / "soft").symlink_to(data / own)
    (folder / "twice").symlink_to("soft")
    (folder / "around").symlink_to(data, target_is_directory=True)
    targets = [folder / "soft", folder / "twice", folder / "around" / own, folder / ".." / "data" / own]
    if (data / own).exists():
        os.link(data / own, folder / "hard")
        targets.append(folder / "hard")
    before = contents(data.parent)
    for target in targets:
        with pytest.raises(InvalidRequestError):
            back_up(data, target)
        with pytest.raises(InvalidRequestError):
            back_up(folder / "around", target)
    assert contents(data.parent) == before
    assert (folder / "soft").is_symlink()


def test_what_is_no_regular_file_is_left_alone(data: Path) -> None:
    pipe, name = data.parent / "pipe", data.parent / "socket"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(name))
        for target, kind in ((pipe, "a pipe"), (name, "a socket")):
            with pytest.raises(InvalidRequestError, match=kind):
                back_up(data, target)
    assert pipe.is_fifo()
    assert name.is_socket()
    if os.geteuid() == 0:  # a node of its own: this user could replace the system's
        node = data.parent / "null"
        os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        with pytest.raises(InvalidRequestError, match="a device"):
            back_up(data, node)
        assert node.is_char_device()


def test_a_link_elsewhere_is_followed_and_stays(data: Path) -> None:
    real = data.parent / "folder" / "copy"
    link = data.parent / "latest"
    link.symlink_to(real)
    for _ in range(2):
        back_up(data, link)
        Database(real).close()
    assert link.is_symlink()
    assert real.stat().st_mode & 0o077 == 0


def test_an_earlier_copy_in_the_data_directory_is_replaced(data: Path) -> None:
    back_up(data, data / "copy")
    back_up(data, data / "copy")
    Database(data / "copy").close()


def test_a_directory_that_is_not_there(data: Path) -> None:
    before = contents(data.parent)
    for target in (data.parent / "nowhere" / "copy", data / "notes" / "copy"):
        with pytest.raises(StorageError, match="cannot be used"):
            back_up(data, target)
    assert contents(data.parent) == before


def fail_at_the_end(*paths: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("damage", ["replace", "connect", "source"])
def test_a_copy_that_fails_leaves_nothing_and_says_so(
    damage: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = data.parent / "folder" / "copy"
    target.write_text("the copy of yesterday")
    (data.parent / "folder" / "copy.unfinished").write_text("somebody's own")
    if damage == "replace":
        monkeypatch.setattr(backup.os, "replace", fail_at_the_end)
    elif damage == "connect":
        monkeypatch.setattr(backup.sqlite3, "connect", fail_at_the_end)
    else:
        (data / DATABASE).write_bytes(b"this is no database" * 1000)
    before = contents(data.parent)
    assert main(["backup", "--data-dir", str(data), str(target)]) == 1
    assert f"no copy was made at {str(target)!r}" in capsys.readouterr().err
    assert contents(data.parent) == before
