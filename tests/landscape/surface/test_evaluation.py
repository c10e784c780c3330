"""The engine against the plain loss, point by point, and what it leaves behind."""

import pytest
import torch
from torch import Tensor

from landscape_cases import CASES, build
from losscope.landscape import Objective
from losscope.landscape.surface import Evaluator, evaluate, parameters_at


def grid(points: int, axes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(points, axes, generator=generator, dtype=torch.float64) - 0.5


def directions(objective: Objective, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.3 * objective.space.random(1, generator)[:, 0] for _ in range(count)]


def by_hand(setup, axes: list[Tensor], C: Tensor) -> Tensor:
    """The handwritten total loss, at parameters that are written in."""
    objective = setup.objective()
    start = parameters_at(objective, None)
    found = []
    for row in C.tolist():
        return_to = start + sum(c * a for c, a in zip(row, axes, strict=True))
        torch.nn.utils.vector_to_parameters(return_to, objective.parameters.values())
        with objective.isolated():
            found.append(objective.value())
    torch.nn.utils.vector_to_parameters(start, objective.parameters.values())
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_case_as_point_by_point(name: str) -> None:
    setup = build(name)
    objective = setup.objective()
    axes, C = directions(objective, 2), torch.cat([torch.zeros(1, 2).double(), grid(14, 2)])
    plain = evaluate(objective, None, axes, C, engine="one by one")["loss"]
    chosen = Evaluator(objective, None, axes)
    assert float(plain[0]) == objective.value() == float(chosen(C)["loss"][0])
    torch.testing.assert_close(chosen(C)["loss"], plain, rtol=1e-5, atol=0)
    torch.testing.assert_close(plain, by_hand(build(name), axes, C), rtol=1e-9, atol=1e-12)
