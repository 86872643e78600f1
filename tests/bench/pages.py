"""Writes tables of figures into the documentation, between markers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PERFORMANCE = Path(__file__).parents[2] / "docs" / "performance.md"


def with_table(page: str, name: str, lines: Sequence[str]) -> str:
    """The page with these lines between the markers ``begin NAME`` and ``end NAME``.

    Raises ValueError for a page that does not have these markers once each, in this order.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    found = re.findall(f"{begin}.*?{end}", page, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"the page has {len(found)} tables between {begin} and {end}, not one")
    return page.replace(found[0], "\n".join([begin, *lines, end]))


def write_table(name: str, lines: Sequence[str]) -> None:
    """Puts a table into docs/performance.md."""
    PERFORMANCE.write_text(with_table(PERFORMANCE.read_text("utf-8"), name, lines), "utf-8")
