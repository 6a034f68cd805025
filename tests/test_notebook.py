"""The notebook runs from top to bottom, learns, and shows what it says it shows."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from sgopd_trl.figures import CLASS_COLOURS


NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "01_quickstart.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The executed notebook, run in an empty folder: it must not depend on where it is started."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()  # raises on an error
    assert not any(folder.iterdir()), "the notebook left files where it was started"
    return notebook


def outputs(notebook, kind: str) -> list[str]:
    """The outputs of one MIME type, printed text as text/plain."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            found += [output["text"]] if output["output_type"] == "stream" and kind == "text/plain" else []
            found += [output["data"][kind]] if kind in output.get("data", {}) else []
    return found


def test_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_the_student_learns(executed):
    (pair,) = re.findall(r"held-out avg@8: ([\d.]+) -> ([\d.]+)", "\n".join(outputs(executed, "text/plain")))
    before, after = map(float, pair)
    assert before < 0.25
    assert after > before + 0.25


def test_shows_the_figures_and_tokens_of_every_class(executed):
    assert len(outputs(executed, "image/png")) == 2
    pages = outputs(executed, "text/html")
    assert len(pages) >= 2
    for name, colour in CLASS_COLOURS.items():
        assert colour in pages[0] and f">{name}</span>" in pages[0]
    shown = [re.findall(r"title=\"a2 = ([+-][\d.]+) nats, (\w+)\"", page) for page in pages[:2]]
    # Untrained: first a correct rollout, then a wrong one; a2 > 0 means opposite things in them
    assert {name for a2, name in shown[0] if float(a2) > 0} == {"agree"}
    assert {name for a2, name in shown[1] if float(a2) > 0} == {"disagree"}
