"""Where results go: what is checked before the work, what is replaced, and what is written to as it is."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pahq_client import Circuit, InvalidCircuitFile, InvalidRequest, files, task_files
from pahq_client.cli import main

from .fake_server import FakeServer

DISCOVER = ["discover", "--model", "demo", "--task", "ioi", "--threshold", "0.1", "--quiet"]
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux")


@pytest.fixture
def discover(server: FakeServer) -> Any:
    """Runs the command with some options and returns its exit code."""
    return lambda *options: main([*DISCOVER, "--server", server.address, *options])


def pahq(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "pahq_client.cli", *arguments]
    return subprocess.run(command, env=environ, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("option", ["--out", "--dot"])
def test_what_cannot_be_written_is_refused_before_the_work(
    option: str, discover: Any, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "none" / "c")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    try:
        for path, words in (
            ("", "must be the path of a file"),
            ("a\0b", "NUL"),
            (tmp_path, "it is a directory"),
            (tmp_path / "none" / "c.json", f"there is no directory '{tmp_path / 'none'}'"),
            (f"{tmp_path}/new/", "it is the name of a directory"),
            (tmp_path / "file" / "c.json", "Not a directory"),
            (f"{tmp_path / 'file'}/", "Not a directory"),
            (tmp_path / "loop", "symbolic links"),
            (tmp_path / "dangling", "there is no directory"),
            (tmp_path / ("x" * 300), "too long"),
            (tmp_path / "socket", "it is a socket"),
            ("/dev/fd/777", "Bad file descriptor"),
        ):
            assert discover(option, str(path)) == 2
            err = capsys.readouterr().err
            assert err.startswith(f"pahq: error: {option}: ")
            assert words in err
            assert err.count("\n") == 1
    finally:
        listening.close()
    assert server.calls == []
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file", "loop", "socket"]


def test_out_and_dot_do_not_replace_each_other(
    discover: Any, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "c")
    assert discover("--out", str(tmp_path / "c"), "--dot", str(tmp_path / "link")) == 2
    assert "--dot: is the same file as --out" in capsys.readouterr().err
    assert server.calls == []
    assert discover("--out", "/dev/null", "--dot", "/dev/null") == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_write_protected_file_stays(discover: Any, tmp_path: Path) -> None:
    (tmp_path / "c.json").touch(mode=0o444)
    assert discover("--out", str(tmp_path / "c.json")) == 2


def test_devices_are_written_to_and_stay(discover: Any, circuit: Circuit) -> None:
    before = os.stat("/dev/null")
    assert discover("--out", "/dev/null", "--dot", "/dev/null") == 0
    circuit.save("/dev/null")
    after = os.stat("/dev/null")
    assert stat.S_ISCHR(after.st_mode)
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_device_that_is_full_loses_nothing(
    discover: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert discover("--out", "/dev/full", "--dot", str(tmp_path / "c.dot")) == 2
    out, err = capsys.readouterr()
    assert "a0.h1->a1.h0<q>" in out
    assert err == "pahq: error: [Errno 28] No space left on device\n"
    assert (tmp_path / "c.dot").read_text().startswith("digraph")  # the other file is there all the same


def test_a_pipe_is_written_to(discover: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert discover("--dot", str(tmp_path / "pipe")) == 0
    reader.join()
    assert read[0].startswith("digraph")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


@needs_proc
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_stdout_by_its_name(name: str, to: str, server: FakeServer, tmp_path: Path) -> None:
    """Also where it is a regular file: what is printed comes after what is written, and nothing is lost."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    path = str(tmp_path / "link") if name == "link" else name
    arguments = [*DISCOVER, "--server", server.address, "--out", path]
    if to == "pipe":
        done = pahq(*arguments, capture_output=True)
        out, err = done.stdout, done.stderr
    else:
        with open(tmp_path / "out", "w") as file:
            file.write("before\n")
            file.flush()
            done = pahq(*arguments, stdout=file, stderr=subprocess.PIPE)
        text, err = (tmp_path / "out").read_text(), done.stderr
        assert text.startswith("before\n")
        out = text.removeprefix("before\n")
    assert (done.returncode, err) == (0, "")
    written, *printed = out.splitlines()
    assert written.startswith('{"edges":')
    assert printed[0].startswith("# 2 of 82 edges")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".pahq")]


@needs_proc
def test_stdin_is_for_reading(server: FakeServer) -> None:
    arguments = [*DISCOVER, "--server", server.address, "--out", "/dev/stdin"]
    with open(__file__) as file:
        done = pahq(*arguments, stdin=file, capture_output=True)
    assert done.returncode == 2
    assert "open for reading only" in done.stderr
    assert server.calls == []


def test_a_file_keeps_its_permissions_and_links_their_target(circuit: Circuit, tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    real.write_text("old")
    real.chmod(0o640)
    (tmp_path / "a").symlink_to("real.json")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    circuit.save(tmp_path / "b")
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "b").is_symlink()
    assert Circuit.load(real) == circuit
    real.chmod(0o600)
    circuit.save(real)
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    circuit.save(tmp_path / "dangling")
    assert Circuit.load(tmp_path / "new") == circuit


def test_a_private_file_is_private_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    path.touch(mode=0o600)
    seen: list[int] = []

    def looking(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(os, "fsync", looking)
    files.write(path, b"secret")
    assert seen == [0o600]
    assert path.read_bytes() == b"secret"


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    path.write_text("old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("path", ["", "a\0b", b"c.json", None, 3])
def test_what_is_no_path(path: Any, circuit: Circuit) -> None:
    for use in (Circuit.load, circuit.save):
        with pytest.raises(InvalidRequest, match="path"):
            use(path)


def test_a_file_without_end_is_not_read_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (files, task_files):
        monkeypatch.setattr(module, "MOST_BYTES", 1 << 20)
    with pytest.raises(InvalidRequest, match="more than 1 MiB"):
        Circuit.load("/dev/zero")
    (tmp_path / "t.json").symlink_to("/dev/zero")
    assert main(["show", "/dev/zero"]) == 2
    assert main([*DISCOVER[:4], str(tmp_path / "t.json"), "--server", "127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.count("more than 1 MiB") == 2


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("layers", 10**9, "from 0 to 10000"),
        ("heads", 10**30, "does not fit"),
        ("kv_heads", -1, "from 0 to 10000"),
    ],
)
def test_a_file_of_an_absurd_graph(
    field: str, value: int, words: str, circuit: Circuit, tmp_path: Path
) -> None:
    path = tmp_path / "c.json"
    circuit.save(path)
    now = getattr(circuit.graph, field)
    path.write_text(path.read_text().replace(f'"{field}":{now}', f'"{field}":{value}'))
    with pytest.raises(InvalidCircuitFile, match=words):
        Circuit.load(path)


def test_a_file_that_is_nested_deeply(circuit: Circuit, tmp_path: Path) -> None:
    """Less deep than the parser minds: what walks through it later, as repr does, would break."""
    path = tmp_path / "c.json"
    circuit.save(path)
    text = path.read_text()
    for levels, fine in ((90, True), (200, False), (900, False), (100_000, False)):
        path.write_text(text.replace('"tinytalk"', "[" * levels + "]" * levels))
        if fine:
            assert "model=[[[" in repr(Circuit.load(path))
        else:
            with pytest.raises(InvalidCircuitFile, match="levels deep"):
                Circuit.load(path)
