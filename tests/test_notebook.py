"""The notebook in examples/ runs from top to bottom, in an empty folder."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "gptj.ipynb"
WANTED = ("nbclient", "ipykernel", "matplotlib", "openai", "fastapi", "uvicorn")
RUN = """\
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
(cell,) = [cell for cell in notebook.cells if "steps=300," in cell.source]
cell.source = cell.source.replace("steps=300,", f"steps={sys.argv[3]},")
nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.mark.skipif(not all(map(find_spec, WANTED)), reason=f"needs {', '.join(WANTED)}")
@pytest.mark.parametrize("steps", [pytest.param(300, marks=pytest.mark.slow), 50])
def test_it_runs_and_says_what_it_promises(steps, tmp_path):
    """As it stands, and with less of its first training."""
    import nbformat

    done = tmp_path / "done.ipynb"
    environment = {**os.environ, "XLA_FLAGS": "", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", RUN, NOTEBOOK, done, str(steps)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    cells = nbformat.read(done, 4).cells
    said = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", ()))
    assert "1 all-reduce in the loop over the layers; 1 outside it" in said
    assert "Beautiful is better than ugly." in said
    assert "the server ended with status 0" in said
    pictures = [
        output
        for cell in cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4


def test_it_is_kept_as_it_ran():
    """Its outputs are those of one run from the top, and there is no error among them."""
    nbformat = pytest.importorskip("nbformat")
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
