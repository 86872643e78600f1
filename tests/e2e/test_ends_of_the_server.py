"""Every ending of ``pahq-server serve``: its exit code, and no traceback.

0: stopped, whatever it was doing. 1: the machine lacks something, so that starting again may help. 2: what
was asked for cannot be.
"""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from pahq_server.cli import main

PATIENCE_S = 120
SERVE = [sys.executable, "-m", "pahq_server", "serve", "--ephemeral", "--listen", "127.0.0.1:0"]
# Runs the command after something in it was replaced.
PREPARED = """if True:
    import signal, sys, threading
    from asyncio import BaseEventLoop
    from pahq_server import app, assembly
    from pahq_server.cli import main
    from pahq_server.jobs.service import JobService
    {preparation}
    sys.exit(main(["serve", "--ephemeral", "--listen", "127.0.0.1:0"]))
"""


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what was written to stderr."""
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in errors, errors
    return process.returncode, errors


def start(arguments: list[str], limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit
    )


def run_prepared(preparation: str) -> tuple[int, str]:
    return ended(start([sys.executable, "-c", PREPARED.format(preparation=preparation)]))


# What replaces `assembly._load`: a signal comes while models are loaded.
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_while_models_are_loaded(number: str) -> None:
    code, _ = run_prepared(f"assembly._load = lambda *_: signal.raise_signal(signal.{number})")
    assert code == 0


def test_a_signal_that_comes_while_an_object_is_deleted() -> None:
    """What a handler raises there is dropped by Python."""
    preparation = "class Deleted:\n"
    preparation += "        def __del__(self): signal.raise_signal(signal.SIGTERM)\n"
    preparation += "    load = assembly._load\n"
    preparation += "    def delete(*rest): Deleted(); return load(*rest)\n"
    preparation += "    sys.unraisablehook = lambda _: None\n"
    preparation += "    assembly._load = delete"
    code, _ = run_prepared(preparation)
    assert code == 0


def test_a_signal_at_any_moment_of_the_start() -> None:
    """From the moment on that the command has its handler, however long loading takes."""
    preparation = "from pahq_server.cli import serve as command; original = command._serve\n"
    preparation += "    def told(*rest): print('begun', flush=True); return original(*rest)\n"
    preparation += "    command._serve = told"
    arguments = [sys.executable, "-c", PREPARED.format(preparation=preparation)]
    for pause in (0.0, 0.3, 1.0, 3.0):
        with start(arguments) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(pause)
            process.terminate()
            assert ended(process)[0] == 0, pause


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("MemoryError()", "there is not enough memory"),
        ("RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')", "cannot go on: DefaultCPUAllocator"),
        ("RuntimeError('can\\'t start new thread')", "cannot go on: can't start new thread"),
        ("OSError(12, 'Cannot allocate memory')", "cannot go on: [Errno 12] Cannot allocate memory"),
        ("ImportError('failed to map segment')", "cannot go on: failed to map segment"),
    ],
)
def test_a_shortage_at_the_start(error: str, said: str) -> None:
    preparation = f"def fail(*_): raise {error}\n    assembly._load = fail"
    code, errors = run_prepared(preparation)
    assert code == 1
    assert f"pahq-server: {said}" in errors


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
@pytest.mark.parametrize("mib", [300, 1200, 2500])
def test_a_real_shortage_at_the_start_is_no_mistake_of_usage(mib: int) -> None:
    limit = mib << 20
    process = start(SERVE, lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    _, errors = process.communicate(timeout=PATIENCE_S)
    # Where a library does not look at what it was refused, the kernel ends the process.
    assert process.returncode == 1 or process.returncode < 0, errors


def test_a_stop_without_memory_for_a_thread() -> None:
    """SIGTERM while no thread can be started: what is stored is stored, and the end is a good one."""
    preparation = "announce = app.logger.info\n"
    preparation += "    def stopping(message, *rest):\n"
    preparation += '        def refuse(self): raise RuntimeError("can\'t start new thread")\n'
    preparation += "        if message != 'stopping': return announce(message, *rest)\n"
    preparation += "        threading.Thread.start = refuse\n"
    # The threads that the loop has already are all at work.
    preparation += "        BaseEventLoop.run_in_executor = lambda self, *_: refuse(self)\n"
    preparation += "        announce(message, *rest)\n"
    preparation += "    app.logger.info = stopping"
    process = start([sys.executable, "-c", PREPARED.format(preparation=preparation)])
    assert process.stdout is not None
    assert process.stdout.readline().startswith("pahq-server listening on ")
    process.terminate()
    code, errors = ended(process)
    assert code == 0, errors
    assert "there is no memory for a thread" in errors


def test_an_address_in_use_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        before = signal.getsignal(signal.SIGTERM)
        assert main(["serve", "--ephemeral", "--listen", address]) == 2
    assert f"cannot serve on {address}: the address is in use" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
