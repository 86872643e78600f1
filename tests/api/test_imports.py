"""The torch-free half of the server."""

from __future__ import annotations

import subprocess
import sys


def test_no_torch_on_this_side() -> None:
    """Tests of searches, jobs and the API start fast, and so may tools that are built on them."""
    packages = "pahq_server.api.server, pahq_server.jobs.service, pahq_server.methods.acdc.search"
    code = f"import sys, {packages}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
