"""One copy of the weights for vLLM and the executors: see ``helpers.vllm_lending``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import vllm_lending, vllm_models

pytestmark = vllm_models.needs_vllm


def test_scores_on_vllms_weights_are_the_same(tmp_path: Path) -> None:
    vllm_models.llama(tmp_path)
    tests = Path(vllm_lending.__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-m", "helpers.vllm_lending", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout.splitlines()[-1])
    literal, sparse = report["literal"], report["sparse"]
    assert literal["same"]
    # All but the biases that the model does not have, which the loader makes up.
    assert literal["shared"] > 0.99 * literal["bytes"]
    # Of another layout than usual, and folded into copies.
    assert sparse["difference"] < 1e-5
    assert 0 < sparse["shared"] < 0.5 * sparse["bytes"]
    # What vLLM generates is as before.
    assert report["samples"]
