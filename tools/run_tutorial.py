"""Run docs/tutorial.ipynb, and keep its outputs in it, with a digest of the code that they are of."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PATH = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"
CELL_SECONDS = 600


def code_digest(notebook: nbformat.NotebookNode) -> str:
    """Return the digest of all that is run, in its order."""
    sources = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(sources.encode()).hexdigest()


def client_for(notebook: nbformat.NotebookNode, folder: Path) -> NotebookClient:
    """Return what runs a notebook in a folder, and says on standard error where it is."""

    def show(cell: nbformat.NotebookNode, cell_index: int) -> None:
        if cell.cell_type == "code":
            print(f"[tutorial] cell {cell_index + 1} of {len(notebook.cells)}: {cell.id}", file=sys.stderr, flush=True)

    return NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
        on_cell_execute=show,
    )


if __name__ == "__main__":
    tutorial = nbformat.read(PATH, as_version=4)
    client_for(tutorial, Path.cwd()).execute()
    tutorial.metadata["secagg"] = {"code": code_digest(tutorial)}
    nbformat.validate(tutorial)
    nbformat.write(tutorial, PATH)
