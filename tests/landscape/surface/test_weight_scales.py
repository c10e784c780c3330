"""The scales of weights against loops over filters and layers, and the curvature in their units against dense ones."""

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Objective, SettingError
from losscope.landscape.surface.weight_scales import SCALES, Scaled, scale_of

F64 = torch.float64


def convolutional() -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12, 4, bias=False),
            nn.Linear(4, 2),
        ).double()
        x, y = torch.randn(5, 2, 4, 4, dtype=F64), torch.randint(2, (5,))
    return Objective(model, [(x, y)], criterion=nn.CrossEntropyLoss())


def by_hand(parameters: list[Tensor], scale: str) -> Tensor:
    """One entry after the other."""
    whole = sum(float((p * p).sum()) for p in parameters) ** 0.5
    found = []
    for p in parameters:
        for index in torch.cartesian_prod(*[torch.arange(n) for n in p.shape]).view(-1, p.ndim).tolist():
            own = {
                "absolute": 1.0, "model": whole, "layer": float((p * p).sum()) ** 0.5,
                "filter": float((p[index[0]] ** 2).sum()) ** 0.5, "adaptive": abs(float(p[tuple(index)])),
            }  # fmt: skip
            found.append(own[scale])
    return torch.tensor(found, dtype=F64)


@pytest.mark.parametrize("scale", SCALES)
def test_scales_are_those_of_a_loop_over_entries(scale: str) -> None:
    objective = convolutional()
    expected = by_hand([p.detach() for p in objective.parameters.values()], scale)
    torch.testing.assert_close(scale_of(objective, scale), expected, rtol=1e-14, atol=0)


def test_of_some_parameters_and_in_half_precision() -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    objective = Objective(model, [(torch.ones(1, 3), torch.ones(1, 2))], criterion=nn.MSELoss(), params="weight")
    found = scale_of(objective, "model")
    assert found.dtype == torch.float32 and len(found) == 6
    torch.testing.assert_close(found, model.weight.detach().float().norm().expand(6))


def test_no_such_scale() -> None:
    with pytest.raises(SettingError, match=r"scale must be one of 'absolute', .*; got 'relative'"):
        scale_of(convolutional(), "relative")


def test_scaled_is_a_dense_product() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=generator, dtype=F64)
    A, t = A + A.T, torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0, 0.0], dtype=F64)
    V = torch.randn(6, 4, generator=generator, dtype=F64)
    torch.testing.assert_close(Scaled(A, t) @ V, torch.diag(t) @ A @ torch.diag(t) @ V)
