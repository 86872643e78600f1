"""Models that lie beside the repository in some workplaces; tests that need one skip where it is absent."""

from __future__ import annotations

from pathlib import Path

import pytest

MODELS = Path(__file__).parents[3] / "shared" / "models"


def shared_model(name: str) -> Path:
    directory = MODELS / name
    if not directory.is_dir():
        pytest.skip(f"needs the shared model {name}, which is not part of the repository")
    return directory


CASES = Path(__file__).parents[3] / "shared" / "cases"


def shared_cases(file: str) -> list[Path]:
    """The known answers of a name, one per case; none where they are absent."""
    return sorted(CASES.glob(f"*/{file}"))
