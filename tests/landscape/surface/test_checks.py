"""Every function of slices, paths and neighbourhoods: numbers that mean nothing are refused; inference mode is none."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from losscope.landscape import Objective
from losscope.landscape.errors import LosscopeError, SettingError
from losscope.landscape.surface import (
    align,
    average_sharpness,
    barrier_matrix,
    bezier_path,
    evaluate,
    evaluate_at,
    gradient_direction,
    gradient_normalised_smoothness,
    line,
    line_between,
    linear_path,
    merge,
    neighbourhood,
    parameters_at,
    plane,
    plane_through,
    quadratic_model,
    random_direction,
    relative_flatness,
    sam_sharpness,
    scaled_curvature,
    task_conflict,
    trajectory_axes,
)


def network(mode: str = "eval") -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    data = [(torch.randn(6, 3), torch.randint(2, (6,))) for _ in range(2)]
    return Objective(model, data, criterion=nn.CrossEntropyLoss(), mode=mode)


def points_of(objective: Objective) -> list[torch.Tensor]:
    here = parameters_at(objective, None)
    return [here, *(here + 0.1 * torch.randn(len(here), generator=torch.Generator().manual_seed(i)) for i in (1, 2, 3))]


Call = Callable[..., Any]
CALLS: dict[str, tuple[Call, Callable[[list[torch.Tensor]], tuple[Any, ...]], dict[str, Any]]] = {
    "line": (line, lambda p: (), {"points": 3}),
    "line_between": (line_between, lambda p: (p[0], p[1]), {"points": 3}),
    "plane": (plane, lambda p: (), {"points": 3}),
    "plane_along": (plane, lambda p: (), {"points": 3, "model": False}),
    "plane_through": (plane_through, lambda p: (p[0], p[1], p[2]), {"points": 3, "model": False}),
    "linear_path": (linear_path, lambda p: (p[0], p[1]), {"points": 3}),
    "barrier_matrix": (barrier_matrix, lambda p: (p[:3],), {"samples": 3}),
    "bezier_path": (bezier_path, lambda p: (p[0], p[1]), {"points": 3, "epochs": 2}),
    "merge": (merge, lambda p: (p[:3],), {}),
    "align": (align, lambda p: (p[0], p[1]), {}),
    "evaluate": (evaluate, lambda p: (p[1], [p[0], p[2]], torch.tensor([[0.0, 0.1]] * 2)), {}),
    "evaluate_at": (evaluate_at, lambda p: (p,), {}),
    "average_sharpness": (average_sharpness, lambda p: (0.1,), {"max_pairs": 8, "min_pairs": 8}),
    "sam_sharpness": (sam_sharpness, lambda p: (0.1,), {"steps": 2, "starts": 1}),
    "neighbourhood": (neighbourhood, lambda p: (0.1,), {"max_pairs": 32}),
    "relative_flatness": (relative_flatness, lambda p: ("3.weight",), {}),
    "scaled_curvature": (scaled_curvature, lambda p: (), {}),
    "gradient_direction": (gradient_direction, lambda p: (), {}),
    "random_direction": (random_direction, lambda p: (), {}),
    "quadratic_model": (lambda o, **k: quadratic_model(o, [random_direction(o)], **k), lambda p: (), {}),
    "gradient_normalised_smoothness": (gradient_normalised_smoothness, lambda p: (p[1],), {}),
    "task_conflict": (task_conflict, lambda p: (p[0], p[1:]), {}),
    "trajectory_axes": (trajectory_axes, lambda p: (p,), {}),
}
COORDINATES = [True, False, math.nan, -3, 0, 1, 1.5, "a", "", [], [math.nan, 1.0], ["a", "b"], [[0.5]], {}, [1j, 2.0]]
COUNTS = [True, math.nan, -1, 1.5, "a", "", []]
POSITIVE = [True, math.nan, math.inf, -1.0, 0.0, "a", "", [], (1.0,)]
SPANS = [1, True, "a", "ab", (), (0, math.nan), (1, 0), (0, 1, 2), ("a", "b")]
OPTIONS = ["", "b", 1, True, math.nan]
SLICES = {"points": COORDINATES, "refine": COUNTS, "span": SPANS, "engine": OPTIONS, "chunk": [*COUNTS, 0],
          "statistics": OPTIONS, "resume": [1, True, math.nan], "metrics": ["", "b", 1],
          "seed": [math.nan, 1.5, "a", True]}  # fmt: skip
PATHS = {"points": COORDINATES, "refine": COUNTS, "statistics": OPTIONS, "larger_is_better": ["accuracy", [1], 1],
         "names": ["ab", ("a",), ("a", "a"), (1, 2), 1]}  # fmt: skip
REFUSED: dict[str, dict[str, list[Any]]] = {
    "line": {**SLICES, "normalise": ["", "b", 1]},
    "line_between": {**SLICES, "names": PATHS["names"]},
    "plane": {**SLICES, "normalise": ["", "b", 1]},
    "plane_through": {**SLICES, "names": [*PATHS["names"], ("a", "b"), ("a", "b", "a")]},
    "linear_path": PATHS,
    "bezier_path": {**PATHS, "epochs": COUNTS, "lr": POSITIVE, "batch_size": [*COUNTS, 0], "kind": OPTIONS},
    "merge": {"weights": [True, "abc", [1, 2], [1, -1, 1], [0, 0, 0], [math.nan, 1, 1], [[1], [1], [1]], ["a"] * 3],
              "pairwise": [*COUNTS, 2], "larger_is_better": ["accuracy"]},
    "align": {"restarts": COUNTS, "iterations": [*COUNTS, 0], "method": OPTIONS, "seed": [1.5, "a", True]},
    "average_sharpness": {"rtol": POSITIVE, "min_pairs": [*COUNTS, 1], "max_pairs": [*COUNTS, 1],
                          "confidence": [True, 0, 1, math.nan, "a"], "engine": OPTIONS, "scale": OPTIONS},
    "sam_sharpness": {"steps": [*COUNTS, 0], "starts": COUNTS, "minibatch": [*COUNTS, 0], "scale": OPTIONS,
                      "norm": OPTIONS, "confidence": [True, 0, 1, math.nan, "a"]},
    "quadratic_model": {"error": POSITIVE, "statistics": OPTIONS},
    "gradient_normalised_smoothness": {"error": POSITIVE, "start": POSITIVE},
    "task_conflict": {"keep": [*POSITIVE, 1.5], "scale": [True, math.nan, math.inf, "a", []]},
    "trajectory_axes": {"k": [*COUNTS, 0], "about": OPTIONS},
}  # fmt: skip


def called(name: str, objective: Objective, **changes: Any) -> Any:
    call, arguments, settings = CALLS[name]
    points = points_of(objective)
    if name == "plane_along":
        settings = {**settings, "trajectory": points}
    return call(objective, *arguments(points), **{**settings, **changes})


@pytest.mark.parametrize(("name", "argument"), [(n, a) for n, which in REFUSED.items() for a in which])
def test_arguments_that_mean_nothing_are_refused_by_name(name: str, argument: str) -> None:
    objective = network()
    for value in REFUSED[name][argument]:
        with pytest.raises(SettingError) as caught:
            called(name, objective, **{argument: value})
        assert str(value) in str(caught.value) or repr(value) in str(caught.value), (value, caught.value)


@pytest.mark.parametrize("call", [average_sharpness, sam_sharpness])
@pytest.mark.parametrize("radius", [*POSITIVE[:7], [[0.1]], ["a"], None])
def test_radii_that_mean_nothing_are_refused(call: Call, radius: Any) -> None:
    with pytest.raises(SettingError, match=r"(radii|rho) must be .*; got|(radii|rho) must be .*, got"):
        call(network(), radius)


def values_in(result: Any) -> list[torch.Tensor]:
    """All numbers of a result, but for times."""
    if isinstance(result, torch.Tensor):
        return [result.double()]
    if isinstance(result, float):
        return [torch.tensor(result, dtype=torch.float64)]
    if isinstance(result, dict):
        return [value for each in result.values() for value in values_in(each)]
    if isinstance(result, list | tuple):
        return [value for each in result for value in values_in(each)]
    fields = getattr(result, "__dataclass_fields__", {})
    return [value for name in fields if name not in ("seconds", "hidden") for value in values_in(getattr(result, name))]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", CALLS)
def test_inference_mode_around_a_call_changes_nothing(name: str, mode: str) -> None:
    settings = {"engine": "one by one"} if "engine" in REFUSED.get(name, {}) or name == "plane_along" else {}
    expected = values_in(called(name, network(mode), **settings))
    objective = network(mode)
    with torch.inference_mode():
        found = values_in(called(name, objective, **settings))
        later = [p.is_inference() for p in objective.model.parameters()]
    assert not any(later)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)
    nn.functional.cross_entropy(objective.model(objective.batches[0].content[0]), torch.zeros(6).long()).backward()


@pytest.mark.parametrize("engine", ["one by one", "batched"])
def test_points_are_evaluated_together_in_inference_mode(engine: str) -> None:
    objective = network("train")
    expected = line(objective, points=20, engine="one by one", model=False).loss
    with torch.inference_mode():
        found = line(objective, points=20, engine=engine, model=False)
    assert found.engine.startswith(engine)
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-6)


def test_refusals_come_before_any_work() -> None:
    objective = network()
    objective.loss = None  # type: ignore[assignment]
    for name in ("line", "plane", "line_between", "plane_through", "linear_path", "bezier_path"):
        with pytest.raises(LosscopeError, match="further points"):
            called(name, objective, refine=-1)
