"""The table of a result that has none of its own: every field that says something, whatever is in it."""

import dataclasses
import importlib
import inspect
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from html_cells import Cells
from losscope.landscape import Estimate, Objective
from losscope.landscape.html_fields import fields_html
from losscope.landscape.html_table import Shown
from losscope.landscape.stability import stability_threshold
from losscope.landscape.surface import random_direction, task_conflict

MODULES = (
    "losscope.landscape", "losscope.landscape.surface", "losscope.landscape.stability", "losscope.landscape.tangent",
    "losscope.landscape.kernels", "losscope.probes",
)  # fmt: skip
GIVEN = {"Rule", "WeightSketch", "Needs", "Player", "Measurement", "Assumption", "ProbeCost", "Record", "UnitGroup"}
"""What users make or find within results."""


@dataclass
class Anything(Shown):
    found: Any
    note: str = ""


def rows_of(found: object) -> list[list[str]]:
    return Cells(fields_html(Anything(found))).rows[1:]


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (3, ["3"]), (1234567, ["1,234,567"]), (True, ["yes"]), (math.nan, ["nan"]), ("<b>", ["<b>"]),
        ((2, 4.5), ["2, 4.5"]),
        (torch.tensor([1.0, math.inf]), ["1, inf"]), (torch.tensor(2.5), ["2.5"]),
        (torch.zeros(0), None), (None, None), ((), None), ("", None), ({}, None), (object(), ["object"]),
        (torch.arange(8.0).view(2, 4), ["2 x 4 numbers", "0 to 7"]), (torch.full((9,), math.nan), ["9 numbers"]),
        (torch.tensor([True, False]), ["1, 0"]), (torch.ones(3, 3, dtype=torch.bool), ["3 x 3 numbers", "1 to 1"]),
        ({"a": torch.ones(2), "b": 1}, ["a, b"]),
        (Estimate(2.0, 0.1, 1.5, 2.5, 0.9, 3, "m", True), ["2", "1.5 to 2.5 (90 %)"]),
        (list(range(200)), [", ".join(map(str, range(200)))[:157] + "..."]),
    ],
)  # fmt: skip
def test_a_field(found: object, shown: list[str] | None) -> None:
    assert rows_of(found) == ([] if shown is None else [["found", *shown]])


def test_many_of_a_kind_are_a_row_each() -> None:
    assert rows_of({"a": 1.5, "b": 2}) == [["found: a", "1.5"], ["found: b", "2"]]
    rows = rows_of([Anything(i) for i in range(8)])
    assert [row[0] for row in rows] == [*(f"found {i}" for i in range(1, 7)), "found"] and rows[-1][1] == "2 more"


def test_notes_are_below_and_nothing_is_markup() -> None:
    page = fields_html(Anything("<script>", note="<i>"))
    assert Cells(page).tags == {"table", "caption", "thead", "tbody", "tr", "th", "td", "div"}


def test_real_results() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    objective = Objective(model, (torch.randn(40, 6), torch.randint(3, (40,))), criterion=nn.CrossEntropyLoss())
    others = [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2)]
    found = [
        stability_threshold(torch.optim.SGD(model.parameters(), lr=0.1)), random_direction(objective, seed=0),
        task_conflict(objective, None, others),
    ]  # fmt: skip
    for result in found:
        page = result._repr_html_()
        assert type(result).__name__ in page and "0x" not in page
        assert any(character.isdigit() for row in Cells(page).rows[1:] for word in row[1:] for character in word)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_result_has_a_display(module: str) -> None:
    names = importlib.import_module(module)
    public = [getattr(names, name) for name in names.__all__]
    results = [each for each in public if inspect.isclass(each) and dataclasses.is_dataclass(each)]
    assert results
    assert [each.__name__ for each in results if not hasattr(each, "_repr_html_")] == [
        each.__name__ for each in results if each.__name__ in GIVEN
    ]
