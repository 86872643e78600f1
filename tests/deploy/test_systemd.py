from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.files import DEPLOY

UNIT = DEPLOY / "systemd" / "pahq-server.service"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")


@needs_systemd
def test_systemd_understands_it(tmp_path: Path) -> None:
    text = UNIT.read_text("utf-8").replace("/opt/pahq/bin/pahq-server", sys.executable)
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False, timeout=60
    )
    assert str(UNIT.name) not in done.stderr, done.stderr
    assert "Unknown" not in done.stderr


@needs_systemd
def test_systemd_finds_it_hardened() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is too old to look at files")
    assert done.returncode == 0, done.stdout[-400:] + done.stderr
