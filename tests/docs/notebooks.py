"""The notebooks under docs/notebooks, run from their first cell.

``python -m tests.docs.notebooks`` writes their outputs anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def executed(path: Path, seconds: int = 120) -> Any:
    """The notebook with the outputs of a run in a fresh kernel; a cell that raises, raises here."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": str(FOLDER)}}).execute()
    return notebook


def tidy(notebook: Any) -> Any:
    """Without what differs from run to run and says nothing: times of execution, ids of cells, the kernel's version."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", {}
        for output in cell.get("outputs", []):
            output.pop("metadata", None)
            if output.output_type in ("display_data", "execute_result"):
                output.metadata = {}
                if "image/png" in output.data:
                    output.data = {"image/png": output.data["image/png"], "text/plain": "a picture"}
            elif output.output_type == "stream":
                output.text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output.text)
    return notebook


if __name__ == "__main__":
    for each in NOTEBOOKS:
        nbformat.write(tidy(executed(each)), each)
        print(f"{each.name}: {each.stat().st_size / 1e3:.0f} kB")
