"""What notebooks show of results: their numbers, escaped, whatever is in them."""

import math

import pytest
import torch
from torch import nn

from html_cells import Cells
from losscope.landscape import (
    Estimate,
    Hessian,
    Objective,
    class_structure,
    diagonal,
    gradient_noise,
    linear_path,
    neural_collapse_of,
    outliers,
    plane,
    solve,
    spectral_density,
    top_eigenpairs,
    trace,
)
from losscope.landscape.html_rows import as_html
from losscope.landscape.html_table import html_table
from losscope.landscape.surface import line
from losscope.landscape.tangent import tangent_kernel


@pytest.fixture(scope="module")
def objective() -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return Objective(model, (torch.randn(40, 6), torch.randint(3, (40,))), criterion=nn.CrossEntropyLoss())


def test_an_estimate() -> None:
    found = Estimate(2.5, 0.1, 2.25, 2.75, 0.95, 30, "hutchinson", False, "retained", "a <b>note</b>")
    page = found._repr_html_()
    cells = Cells(page)
    assert cells.rows[:2] == [["", "value", "interval"], ["value", "2.5", "2.25 to 2.75 (95 %)"]]
    assert "NOT converged" in page and "&lt;b&gt;note" in page and "b" not in cells.tags


def test_eigenpairs(objective: Objective) -> None:
    pairs = top_eigenpairs(Hessian(objective), 2, seed=0)
    rows = Cells(pairs._repr_html_()).rows
    assert rows[0] == ["", "eigenvalue", "bounds", "residual"] and len(rows) == 3
    assert float(rows[1][1]) == pytest.approx(float(pairs.values[0]), rel=1e-4)


def test_every_main_result_is_a_table(objective: Objective) -> None:
    hessian = Hessian(objective)
    density = spectral_density(hessian, vectors=2, steps=8, seed=0)
    direction = torch.ones(hessian.shape[0])
    other = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    ones = torch.ones(hessian.shape[0])
    found = [
        trace(hessian, seed=0), diagonal(hessian, seed=0), density, outliers(density), solve(hessian, ones, damping=1),
        class_structure(objective, seed=0), neural_collapse_of(objective), tangent_kernel(objective),
        gradient_noise(objective, seed=0), line(objective, direction, points=5), plane(objective, points=5, seed=0),
        linear_path(objective, objective.model, other, points=5),
    ]  # fmt: skip
    for result in found:
        cells = Cells(result._repr_html_())
        assert {"table", "td"} <= cells.tags, type(result)
        assert len({len(row) for row in cells.rows}) == 1, (type(result), cells.rows)
        assert any(character.isdigit() for row in cells.rows[1:] for word in row for character in word), type(result)


def test_what_is_not_known_is_its_repr() -> None:
    assert as_html([1, "<i>"]) == "<pre>[1, &#x27;&lt;i&gt;&#x27;]</pre>"


def test_long_tables_are_cut_and_numbers_may_be_anything() -> None:
    rows = Cells(html_table("t", ["a", "b"], [[str(i), ""] for i in range(50)])).rows
    assert len(rows) == 22 and rows[-1] == ["and 30 more"]
    odd = Estimate(math.nan, math.inf, -math.inf, math.inf, 0.95, 0, "", True)
    assert "nan" in odd._repr_html_()
