"""``pahq-server backup`` of a server that works, and a server started from the copy."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from e2e.process import ServerProcess

from pahq_client import Client, Task
from pahq_server.cli import main
from pahq_server.store.backup import back_up
from pahq_server.store.database import Database
from pahq_server.store.directory import DATABASE

TASK = Task.ioi(num_prompts=2)


def test_a_copy_of_a_running_server_has_its_jobs_and_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, restored = tmp_path / "data", tmp_path / "restored"
    assert main(["token", "create", "ada", "--data-dir", str(data)]) == 0
    token = capsys.readouterr().out.strip()
    with (
        ServerProcess(None, "--data-dir", str(data)) as server,
        Client(server.address, token=token) as client,
    ):
        done = client.submit("demo", TASK, threshold=0.5)
        circuit = done.result(timeout=120)
        client.submit("demo", TASK, threshold=0.001)  # goes on while the copy is made
        restored.mkdir()
        assert main(["backup", "--data-dir", str(data), str(restored / DATABASE)]) == 0
    assert [path.name for path in restored.iterdir()] == [DATABASE]
    assert (restored / DATABASE).stat().st_mode & 0o077 == 0
    with (
        ServerProcess(None, "--data-dir", str(restored)) as server,
        Client(server.address, token=token) as client,
    ):
        again = client.job(done.name).result(timeout=120)
        assert again.canonical_bytes() == circuit.canonical_bytes()


def test_what_cannot_be_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    back_up = ["backup", "--data-dir", str(data), str(copy)]
    assert main(back_up) == 1
    assert "there is no database" in capsys.readouterr().err
    assert main(["token", "create", "ada", "--data-dir", str(data)]) == 0
    assert main(back_up) == 0
    before = copy.read_bytes()
    assert main(["backup", "--data-dir", str(data), str(tmp_path / "nowhere" / "copy")]) == 1
    assert "cannot be used" in capsys.readouterr().err
    (data / DATABASE).write_bytes(b"this is no database" * 1000)
    assert main(back_up) == 1
    assert "damaged" in capsys.readouterr().err
    assert copy.read_bytes() == before, "a copy that failed replaced one that was good"


def test_a_copy_is_made_although_a_server_writes_all_the_time(tmp_path: Path) -> None:
    database = Database(tmp_path / DATABASE)
    with database.transaction("advance", synced=False) as connection:
        connection.execute("INSERT INTO journal VALUES (0, 0, 1, zeroblob(64000000))")
    done = threading.Event()

    def write() -> None:
        for number in itertools.count(1):
            if done.wait(0.002):
                return
            with database.transaction("advance", synced=False) as connection:
                connection.execute("INSERT INTO journal VALUES (1, ?, 1, x'00')", (number,))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        copying = threading.Thread(target=back_up, args=(tmp_path, tmp_path / "copy"), daemon=True)
        copying.start()
        copying.join(30)
        assert not copying.is_alive(), "it begins again and again"
    finally:
        done.set()
        writer.join()
        database.close()
    assert (tmp_path / "copy").stat().st_size > 64_000_000
