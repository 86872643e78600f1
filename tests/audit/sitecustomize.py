"""Watches, in every Python process that the tests start, that nothing is unpickled.

Python imports a module of this name by itself when it starts. The tests put this folder on its path, and name
in `PAHQ_AUDIT` a file for what is found.
"""

from __future__ import annotations

import os
import sys
import traceback

# A test that unpickles by itself, what it pickled, does so on purpose. And Ray's own processes cannot do
# without: docs/reliability.md says what that means. Servers and clients never import Ray.
TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
RAY = os.sep + os.path.join("site-packages", "ray") + os.sep


def watch(path: str) -> None:
    """From now on and for good, writes down where anything is unpickled."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event != "pickle.find_class":
            return
        file_name = sys._getframe(1).f_code.co_filename
        if not (file_name.startswith(TESTS) or RAY in file_name):
            stack = " < ".join(
                f"{frame.name} ({frame.filename}:{frame.lineno})"
                for frame in reversed(traceback.extract_stack(limit=12)[:-1])
            )
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {'.'.join(map(str, arguments))} at {stack}\n")

    sys.addaudithook(hook)


if path := os.environ.get("PAHQ_AUDIT"):
    watch(path)
