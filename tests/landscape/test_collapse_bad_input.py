"""Neural collapse where it is undefined, and bad input."""

import math

import numpy as np
import pytest
import torch

from collapse_cases import problem
from losscope.landscape import DataError, NonFiniteError, SettingError, neural_collapse, neural_collapse_of_batches

F64 = torch.float64


def test_what_is_undefined_is_nan_and_says_why() -> None:
    H, y, _, _ = problem(0)
    alone = neural_collapse(H, y)
    for name in ("nc3", "nc4", "equinorm_classifier", "bias_collapse"):
        assert math.isnan(alone.numbers[name]), name
        assert "no classifier" in alone.reasons[name]
    once = neural_collapse_of_batches(iter([(H, y)]), classes=4)
    assert math.isnan(once.nearest_mean_error)
    assert "second pass" in once.reasons["nearest_mean_error"]
    assert once.nc1 == pytest.approx(alone.nc1, rel=1e-10)
    assert once.nc1_quotient == alone.nc1_quotient
    same = neural_collapse(torch.full((8, 3), 0.1), torch.arange(8) % 2)
    assert math.isnan(same.nc1) and math.isnan(same.cdnv) and math.isnan(same.equiangularity)
    assert "coincide" in same.reasons["nc1"]
    assert repr(same) == "Collapse(undefined; 2 classes, 8 samples)"


def test_two_classes_at_one_place() -> None:
    H = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 1]]) + 0.01 * torch.eye(2).repeat(3, 1)
    H = torch.cat((H[:4], H[2:4]))
    found = neural_collapse(H, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert math.isnan(found.cdnv)
    assert "coincide" in found.reasons["cdnv"]
    assert found.rank == 1
    assert "span 1 of 2" in found.reasons["nc1"]
    assert math.isnan(found.gnc2)


def test_a_head_of_zeros_has_no_direction() -> None:
    H, y, _, _ = problem(0)
    found = neural_collapse(H, y, weight=torch.zeros(4, 7))
    assert math.isnan(found.nc3) and math.isnan(found.equiangularity_classifier)
    assert found.bias_collapse == 0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"labels": torch.zeros(60, dtype=torch.long)}, SettingError, "at least two"),
        ({"classes": 6}, DataError, r"2 of 6 classes have no sample \(\[4, 5\]\).*classes=\[0, 1, 2, 3\]"),
        ({"classes": 3}, DataError, r"from 0 to 2, got \[3\]"),
        ({"labels": torch.arange(60) - 1}, DataError, "got .-1"),
        ({"classes": 100}, DataError, "60 samples are fewer than the 100 classes"),
        ({"labels": torch.arange(59) % 4}, DataError, "60 rows of features for 59 labels"),
        ({"labels": torch.rand(60, 4)}, DataError, "argmax"),
        ({"labels": torch.rand(60)}, DataError, "class indices"),
        ({"features": np.ones((60, 2))}, DataError, "a tensor .*ndarray: torch.as_tensor"),
        ({"labels": np.ones(60)}, DataError, "a tensor .*ndarray: torch.as_tensor"),
        ({"classes": 3.5}, SettingError, "how many there are, or a list of labels; got 3.5"),
        ({"features": torch.ones(60, 2, 2)}, DataError, r"\(n, d\), got torch.float32 of shape \(60, 2, 2\)"),
        ({"features": torch.ones(60, 7, dtype=torch.long)}, DataError, "floating-point"),
        ({"features": torch.full((60, 7), math.nan)}, NonFiniteError, r"class \[0, 1, 2, 3\]"),
        ({"weight": torch.ones(4, 6)}, SettingError, "6 columns for features of 7"),
        ({"weight": torch.ones(7)}, SettingError, "a row for each"),
        ({"weight": torch.full((4, 7), math.inf)}, NonFiniteError, "classifier"),
        ({"bias": torch.ones(4)}, SettingError, "weight="),
        ({"weight": torch.ones(4, 7), "bias": torch.ones(3)}, SettingError, r"\(4,\)"),
        ({"balance": "both"}, SettingError, "'classes' or 'samples'"),
        ({"ridge": 0.1}, SettingError, "weight="),
        ({"weight": torch.ones(4, 7), "ridge": -1}, SettingError, "at least 0"),
        ({"classes": [0, 0]}, SettingError, "distinct"),
        ({"classes": [0, -1]}, SettingError, "at least 0"),
        ({"features": torch.ones(60, 12_000), "weight": torch.ones(4, 12_000), "ridge": 0.0}, SettingError, "1.1 GiB"),
    ],
)  # fmt: skip
def test_bad_input(change: dict, error: type[Exception], says: str) -> None:
    H, y, _, _ = problem(0)
    y = torch.arange(60) % 4
    arguments = {"features": H, "labels": y} | change
    with pytest.raises(error, match=says):
        neural_collapse(**arguments)


def test_one_nan_is_seen_in_the_class_that_has_it() -> None:
    H, y, _, _ = problem(0)
    H[5, 2] = math.inf
    with pytest.raises(NonFiniteError, match=rf"class \[{int(y[5])}\]"):
        neural_collapse(H, y)


def test_batches_that_are_none_or_differ() -> None:
    with pytest.raises(DataError, match="no batch"):
        neural_collapse_of_batches(iter([]), classes=2)
    with pytest.raises(DataError, match="3 entries as in earlier batches, got 4"):
        neural_collapse_of_batches(
            [(torch.ones(2, 3), torch.tensor([0, 1])), (torch.ones(2, 4), torch.tensor([0, 1]))], classes=2
        )
