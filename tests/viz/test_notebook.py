"""A notebook, run from end to end as a user's: what it shows, and that nothing lands on stderr."""

from pathlib import Path

import pytest

from drawn_runs import diverging, hovering, run_of
from losscope.probes import Record
from losscope.viz.notebook import register, run_as_html

CELLS = (
    """
import torch
from torch import nn
from losscope.landscape import Hessian, Objective, trace, plane
from losscope.landscape.stability import stability_threshold
from losscope.probes import Run, watch
import losscope.viz
torch.manual_seed(0)
model, (x, y) = nn.Linear(4, 2), (torch.randn(32, 4), torch.randn(32, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
""",
    """
with watch(model, optimizer, data=(x, y), criterion=nn.MSELoss(), every=5, out="run", batch_size=32) as run:
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
run
""",
    'Run("run")',
    'Run("run").audit()',
    "objective = Objective(model, (x, y), criterion=nn.MSELoss())\ntrace(Hessian(objective), seed=0)",
    "plane(objective, points=5, seed=0, progress=True)",
    "run.cost()",
    "stability_threshold(optimizer)",
)


def test_a_run_is_a_table_and_a_picture() -> None:
    page = run_as_html(run_of(hovering(100)))
    assert page.startswith("<table>") and "data:image/png;base64," in page and "sharpness" in page
    assert "<img" not in run_as_html(run_of([]))
    assert "17" in run_as_html(run_of(diverging()))  # what failed is counted


def test_names_of_the_run_are_escaped() -> None:
    hostile = "<script>alert(1)</script>"
    page = run_as_html(run_of([Record(0, hostile, hostile, value=1.0, unit=hostile)], **{hostile: {}}))
    assert "<script" not in page and "&lt;script&gt;" in page


def test_without_a_notebook_nothing_is_registered() -> None:
    assert register() is False


def test_a_whole_notebook(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    streams = [each for cell in outputs for each in cell if each.output_type == "stream"]
    assert [each.text for each in streams if each.name == "stderr"] == []
    assert "25/25 points" in "".join(each.text for each in streams)  # the one bar that was asked for
    watched, read, audited, estimated, flat, cost, threshold = ("".join(_html(cell)) for cell in outputs[1:])
    for page in (watched, read):
        assert "Run run: finished" in page and "data:image/png" in page
    assert "2/lr" in audited and "exact" in estimated and "5 x 5 points" in flat
    assert "measuring took" in cost and "<td" in cost and "2/lr" in threshold and "20" in threshold


def _html(outputs: list) -> list[str]:
    return [each.data["text/html"] for each in outputs if each.output_type == "execute_result"]
