"""The rows of a linearised model, against dense Gauss-Newton matrices and real SGD on the linear model."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from losscope.landscape import GaussNewton, LossError, Objective, SettingError
from losscope.landscape.stability import linearised_rows, mean_square_threshold


def net(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def data(outputs: int, sizes: tuple[int, ...] = (6,)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, generator=generator).double(), torch.randn(n, outputs, generator=generator).double())
        for n in sizes
    ]


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("sizes", [(6,), (4, 2)], ids=["one batch", "uneven batches"])
@pytest.mark.parametrize(
    "criterion", [mse_loss, lambda o, t: 3 * (o - t).square().sum(1).mean(), nn.MSELoss(reduction="sum")]
)
def test_their_gram_is_the_gauss_newton_matrix(outputs, sizes, criterion):
    objective = Objective(net(outputs), data(outputs, sizes), criterion=criterion)
    rows = linearised_rows(objective)
    assert rows.shape == (6, outputs, objective.space.size)
    G = GaussNewton(objective) @ torch.eye(objective.space.size, dtype=torch.float64)
    torch.testing.assert_close(torch.einsum("ica,icb->ab", rows, rows) / 6, G, rtol=1e-9, atol=1e-12)


def test_they_are_what_the_mean_square_threshold_takes():
    objective = Objective(net(1), data(1), criterion=mse_loss)
    rows = linearised_rows(objective)
    eta = mean_square_threshold(rows, 1, seed=0).value
    lengths = rows[:, 0].square().sum(dim=1)
    assert 2 / float(lengths.max()) <= eta <= 2 / float(lengths.mean()) * (1 + 1e-9)


def test_what_is_no_squared_error_is_refused():
    with pytest.raises(SettingError, match="no squared error"):
        linearised_rows(Objective(net(3), data(3), criterion=lambda o, t: (o - t).pow(4).mean()))
    labels = [(x, torch.tensor([0, 1, 2, 0, 1, 2])) for x, _ in data(3)]
    with pytest.raises(SettingError, match="no squared error"):
        linearised_rows(Objective(net(3), labels, criterion=cross_entropy))
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    with pytest.raises(SettingError, match="equal weights"):
        linearised_rows(Objective(net(3), data(3), criterion=lambda o, t: (weights * (o - t).square()).mean()))


def test_too_many_outputs_and_hidden_ones_are_refused():
    with pytest.raises(SettingError, match=r"3000 outputs.*at most 2000"):
        linearised_rows(Objective(net(3), data(3, (1000,)), criterion=mse_loss))
    hidden = Objective(net(1), data(1), loss_fn=lambda model, batch: mse_loss(model(batch[0]), batch[1]))
    with pytest.raises(LossError):
        linearised_rows(hidden)
