"""Settings and fixtures that several folders of tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# Nothing in the tests may reach for the network: a name that is no directory must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"

# The same examples on every machine, and no verdict on how fast it is.
settings.register_profile("pahq", deadline=None, derandomize=True)
settings.load_profile("pahq")
