"""Warnings of answers, shown the way Python shows warnings: once per answer, at the caller's own line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

from pahq_client.errors import PahqError
from pahq_client.text import one_line


class PahqWarning(PahqError, UserWarning):
    """Something about an answer may mislead; the text says what it means and what to do.

    Each answer gives its warnings once. They are shown and not raised, unless `warnings.filterwarnings` says
    otherwise.
    """


_PACKAGE = f"{Path(__file__).parent}{os.sep}"

# Python shows equal texts from one line of a program only once, as if another answer could not have the same
# fault. Appended: whatever filter a program sets comes first.
warnings.filterwarnings("always", category=PahqWarning, append=True)


class Cautions:
    """Shows the warnings of one answer, each text once, however often they come in."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def show(self, texts: Iterable[str]) -> None:
        """Shows what has not been shown. Raises PahqWarning where a filter makes it an error."""
        for text in texts:
            if text not in self._shown:
                self._shown.add(text)
                warnings.warn(one_line(text), PahqWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """The ``stacklevel`` of the first frame outside of this package, as seen from the caller."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level
