"""Settings and fixtures that several folders of tests share."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from audit.sitecustomize import watch
from hypothesis import settings

# Nothing in the tests may reach for the network: a name that is no directory must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"

# Nor does anything in the tests write into the home of whoever runs them: it is gone when they end.
_state = tempfile.TemporaryDirectory(prefix="pahq-test-state-")
os.environ["XDG_STATE_HOME"] = _state.name

# Neither here nor in any process that is started from here may anything be unpickled. What is found is told
# at the end, by the process that started those which share the tests.
_WORKER = "PYTEST_XDIST_WORKER" in os.environ
_found = Path(os.environ["PAHQ_AUDIT"]) if _WORKER else Path(_state.name) / "unpickled"
os.environ["PAHQ_AUDIT"] = str(_found)
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent / "audit"), *filter(None, [os.environ.get("PYTHONPATH")])]
)
watch(str(_found))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _found.exists() and not _WORKER:
        sys.stderr.write(f"\nsomething was unpickled:\n{_found.read_text('utf-8')}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# A shell that runs this in the background ignores Ctrl-C, and every process started from here would inherit
# that: the tests that interrupt one would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine, and no verdict on how fast it is.
settings.register_profile("pahq", deadline=None, derandomize=True)
settings.load_profile("pahq")
