"""examples/finetune.ipynb runs from top to bottom."""

import json

import nbclient
import nbformat
import pytest
from harness.helpers import ROOT

from system import console


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom_with_notebook_progress_bars(tmp_path, monkeypatch):
    source = ROOT / "examples" / "finetune.ipynb"
    notebook = nbformat.read(source, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LOG_LINES", 0)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = json.dumps(outputs)
    assert "'accuracy'" in text and "learnig_rate: unknown setting" in text
    assert "image/png" in text
    assert "application/vnd.jupyter.widget-view+json" in text
    answers = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
    assert answers.index("'label': 'positive'") < answers.index("'label': 'negative'")
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "model" / "README.md").exists()
