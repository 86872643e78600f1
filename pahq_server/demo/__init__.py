"""The demo model: a tiny GPT-2 that ships with the server and does some of the built-in tasks.

With it a circuit can be discovered right after installing, with nothing to download. It is trained by
``tests/demo_training``, which is not installed. Importing this package does not import torch.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def model_path() -> Path:
    """Returns the folder of the shipped checkpoint, in the format of transformers."""
    return Path(str(files(__name__).joinpath("model")))
