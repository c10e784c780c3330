"""Directions scaled by the weights, against the published loops, on layers of all kinds."""

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Objective
from losscope.landscape.errors import NonFiniteError, ParameterError, SettingError
from losscope.landscape.surface import Axis, normalised, random_direction


class Odd(nn.Module):
    """Layers whose tensors are not all filters: an embedding tied to the head, a transposed convolution, an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6, padding_idx=0)
        self.up = nn.ConvTranspose1d(6, 6, 3, groups=2)
        self.depthwise = nn.Conv1d(6, 6, 3, groups=6, bias=False)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 7)
        self.head.weight = self.embedding.weight
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.depthwise(self.up(self.embedding(tokens).transpose(1, 2))).transpose(1, 2)
        return self.head(self.norm(self.lstm(x)[0][:, -1])) * self.temperature


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, (3, 1), groups=2), nn.Flatten(),
        nn.Linear(64, 5),
    )  # fmt: skip


def objective_of(model: nn.Module) -> Objective:
    for parameter in model.parameters():  # no weight at one of torch's own values, such as the 1 of BatchNorm
        nn.init.normal_(parameter)
    if isinstance(model, Odd):
        data = (torch.randint(0, 7, (4, 5)), torch.randint(0, 7, (4,)))
    else:
        data = (torch.randn(4, 3, 8, 6, dtype=next(model.parameters()).dtype), torch.randint(0, 5, (4,)))
    return Objective(model, data, criterion=nn.CrossEntropyLoss())


def published(direction: list[Tensor], weights: list[Tensor], norm: str) -> list[Tensor]:
    """``normalize_directions_for_weights`` with ``ignore='biasbn'`` of github.com/tomgoldstein/loss-landscape."""
    direction = [d.clone() for d in direction]
    for d, w in zip(direction, weights, strict=True):
        if d.dim() <= 1:
            d.fill_(0)
        elif norm == "filter":
            for d_f, w_f in zip(d, w, strict=True):
                d_f.mul_(w_f.norm() / (d_f.norm() + 1e-10))
        elif norm == "layer":
            d.mul_(w.norm() / d.norm())
        else:
            d.mul_(w.abs())  # there without the sign: the same distribution
    return direction


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["filter", "layer", "parameter"])
@pytest.mark.parametrize("model", [convolutional, Odd])
def test_published_definition(model, how, dtype):
    objective = objective_of(model().to(dtype))
    drawn = torch.randn(objective.space.size, dtype=dtype)
    weights = [p.detach() for p in objective.parameters.values()]
    expected = published([piece.clone() for piece in objective.space.unflatten(drawn)], weights, how)
    found = normalised(objective, Axis(drawn, "drawn"), how)
    rtol = 1e-5 if dtype == torch.float32 else 1e-12 if how != "layer" else 1e-9  # there without the 1e-10
    torch.testing.assert_close(found.vector, objective.space.flatten(expected), rtol=rtol, atol=0)
    assert not found.note


@pytest.mark.parametrize("model", [convolutional, Odd])
def test_random_direction_has_the_norm_of_every_filter(model):
    objective = objective_of(model())
    axis = random_direction(objective, seed=3)
    for w, d in zip(objective.parameters.values(), objective.space.unflatten(axis.vector), strict=True):
        if w.ndim > 1:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), w.detach().flatten(1).norm(dim=1))
        else:
            assert not d.any()
    assert axis.name == "random, by filters"


@pytest.mark.parametrize("how", ["filter", "layer"])
@pytest.mark.parametrize("model", [convolutional, Odd])
def test_biases_that_are_kept_are_scaled_once_as_a_whole(model, how):
    objective = objective_of(model())
    drawn = Axis(torch.randn(objective.space.size), "drawn")
    with_biases = objective.space.unflatten(normalised(objective, drawn, how, biases=True).vector)
    without = objective.space.unflatten(normalised(objective, drawn, how).vector)
    pieces = zip(objective.parameters.values(), objective.space.unflatten(drawn.vector), strict=True)
    for (w, d), kept, left_out in zip(pieces, with_biases, without, strict=True):
        if w.ndim > 1:
            assert torch.equal(kept, left_out)
        else:
            torch.testing.assert_close(kept, d * w.detach().norm() / d.norm())  # its own shape, not that of the weights


def test_biases_entry_by_entry():
    objective = objective_of(convolutional())
    drawn = torch.randn(objective.space.size)
    found = normalised(objective, Axis(drawn), "parameter", biases=True).vector
    theta = objective.space.flatten([p.detach() for p in objective.parameters.values()])
    assert torch.equal(found, drawn * theta.abs())


def test_a_slice_is_the_same_after_rescaling_relu_layers():
    """What the normalisation is for: the same function with other scales has the same surface."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    data = (torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 3, (9,)))
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss())

    def along() -> list[float]:
        axis = random_direction(objective, seed=0)
        theta = [p.detach().clone() for p in model.parameters()]
        losses = []
        for c in (-0.5, 0.3, 1.0):
            for p, t, d in zip(model.parameters(), theta, objective.space.unflatten(c * axis.vector), strict=True):
                p.data = t + d
            losses.append(objective.value())
        for p, t in zip(model.parameters(), theta, strict=True):
            p.data = t
        return losses

    before = along()
    model[0].weight.data *= 10
    model[2].weight.data /= 10
    assert along() == pytest.approx(before, rel=1e-9)


def test_zero_filters_are_zero_and_said():
    objective = objective_of(convolutional())
    objective.model[0].weight.data[2:4] = 0
    objective.model[5].weight.data.zero_()
    axis = random_direction(objective)
    pieces = dict(zip(objective.space.names, objective.space.unflatten(axis.vector), strict=True))
    assert not pieces["0.weight"][2:4].any()
    assert pieces["0.weight"][0].all()
    assert not pieces["5.weight"].any()
    assert axis.note == "zero weights, so that the direction is zero there: 2 of the 8 filters of 0.weight, 5.weight"


def test_half_precision_weights():
    objective = objective_of(convolutional().to(torch.bfloat16))
    axis = random_direction(objective)
    assert axis.vector.dtype == torch.float32
    first = axis.vector[: 8 * 27].view(8, 27).norm(dim=1)
    torch.testing.assert_close(first, objective.model[0].weight.detach().float().flatten(1).norm(dim=1))


@pytest.mark.parametrize("how", ["filter", "layer", "parameter"])
def test_a_tensor_without_entries_is_no_obstacle(how):
    model = nn.Linear(6, 5)
    model.register_parameter("unused", nn.Parameter(torch.empty(0, 3)))
    objective = Objective(model, (torch.randn(4, 6), torch.randint(0, 5, (4,))), criterion=nn.CrossEntropyLoss())
    axis = random_direction(objective, how)
    assert len(axis.vector) == 35
    assert axis.note == ""


def test_bad_input():
    objective = objective_of(convolutional())
    whole = Axis(torch.randn(objective.space.size), "mine")
    with pytest.raises(SettingError, match="'filter', 'layer', 'parameter' or None, got 'filters'"):
        normalised(objective, whole, "filters")
    with pytest.raises(ParameterError, match=r"mine has shape \(3,\)"):
        normalised(objective, Axis(torch.ones(3), "mine"))
    biases = Objective(objective.model, objective.data, criterion=nn.CrossEntropyLoss(), params="*.bias")
    with pytest.raises(SettingError, match="biases=True, or normalise=None"):
        random_direction(biases)
    assert random_direction(biases, biases=True).vector.all()
    for parameter in objective.model.parameters():
        parameter.data.zero_()
    with pytest.raises(SettingError, match="nothing is left of random once it is scaled"):
        random_direction(objective, "layer", biases=True)
    objective.model[0].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"0\.weight holds NaN"):
        random_direction(objective)
