"""The demo model: a tiny GPT-2 that ships with the server and does indirect object identification.

It lets anyone discover a circuit within seconds of installing, with nothing to download. Importing
this package does not import torch: finding the files must stay cheap.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def model_path() -> Path:
    """The folder of the shipped checkpoint, in the layout that transformers reads."""
    return Path(str(files(__name__).joinpath("model")))
