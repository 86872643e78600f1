"""Executes the notebooks of the documentation on a server of their own.

``make notebook`` runs this module: it executes each in place and keeps what it shows.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from e2e.process import ServerProcess
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
SECONDS = 500
# Metadata that tells of the machine where a notebook was executed.
_MACHINE = ("language_info", "signature")


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def execute(notebook: NotebookNode, address: str) -> None:
    """Runs all cells in a new kernel, which keeps no history and reads no settings; stops at an error.

    Args:
        notebook: gets the outputs.
        address: of a server, for ``$PAHQ_SERVER``.
    """
    with tempfile.TemporaryDirectory(prefix="pahq-notebook-") as home:
        # Settings of whoever runs it, and the width of their terminal, are not to change what is shown.
        apart = dict.fromkeys(("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"), home)
        environment = {**os.environ, **apart, "PAHQ_SERVER": address, "COLUMNS": "100"}
        # Sockets of files, which nobody else on the machine can listen to.
        config = Config({"KernelManager": {"transport": "ipc"}})
        client = NotebookClient(
            notebook, timeout=SECONDS, kernel_name="python3", record_timing=False, resources={}, config=config
        )
        client.execute(env=environment)


def write(notebook: NotebookNode, path: Path) -> None:
    """Writes a notebook without what depends on the machine."""
    for key in _MACHINE:
        notebook.metadata.pop(key, None)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def text_of(notebook: NotebookNode) -> list[str]:
    """What every code cell shows, as text; pictures and tables have their text form as well."""
    return ["".join(map(_text, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"]


def _text(output: NotebookNode) -> str:
    text = output.text if output.output_type == "stream" else output.data.get("text/plain", "")
    return re.sub(r"\s+\n", "\n", text)


def main() -> None:
    with ServerProcess() as server:
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            print(path.name, file=sys.stderr)
            notebook = read(path)
            execute(notebook, server.address)
            write(notebook, path)


if __name__ == "__main__":
    main()
