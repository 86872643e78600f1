"""Nothing is unpickled, in any process: the hooks that look for it are there, and what they find is told.

They are installed for the whole run of the tests, in this process and in all that it starts; see
``tests/conftest.py`` and ``tests/audit``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .secured import SecuredServer

# Unpickles by way of a library, as a server would.
UNPICKLES = """if True:
    import copyreg, io, pickle, shelve
    from pathlib import PurePath
    pickle_file = io.BytesIO(pickle.dumps(PurePath("x")))
    exec(compile("import pickle; pickle.load(pickle_file)", "library.py", "exec"))
"""


@pytest.fixture
def found(tmp_path: Path) -> Path:
    return tmp_path / "found"


def run(code: str, found: Path) -> None:
    environment = os.environ | {"PAHQ_AUDIT": str(found)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_a_process_that_unpickles_is_found_out(found: Path) -> None:
    run(UNPICKLES, found)
    assert "PurePosixPath" in found.read_text("utf-8")
    assert "library.py" in found.read_text("utf-8")


def test_a_process_that_does_not_is_not(found: Path) -> None:
    run("import pickle; pickle.dumps([1])", found)
    assert not found.exists()


def test_this_process_is_watched_and_has_not_unpickled() -> None:
    watched = Path(os.environ["PAHQ_AUDIT"])
    assert not watched.exists(), watched.read_text("utf-8")


def test_the_server_is_watched_and_has_not_unpickled(secured: SecuredServer) -> None:
    """Its environment is the one that the process above was found out in."""
    environment = Path(f"/proc/{secured.process.process.pid}/environ").read_bytes().split(b"\0")
    assert f"PAHQ_AUDIT={os.environ['PAHQ_AUDIT']}".encode() in environment
    (path,) = [entry for entry in environment if entry.startswith(b"PYTHONPATH=")]
    assert path.removeprefix(b"PYTHONPATH=").split(b":")[0].endswith(b"/tests/audit")
    secured.assert_alive()
    assert not Path(os.environ["PAHQ_AUDIT"]).exists()
