"""Which way points are evaluated: both agree, the faster is taken, and what cannot be vectorised says why."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape_cases import mlp
from losscope.landscape import Objective
from losscope.landscape.errors import KernelError
from losscope.landscape.surface import Evaluator
from losscope.landscape.surface.batched_points import Batched


class Branching(nn.Linear):
    """Control flow that depends on data."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.sum() > 0 else 2 * y


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (100 * x).round() / 100

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Rounding(nn.Linear):
    """An autograd function with no rule for vmap."""

    def forward(self, x: Tensor) -> Tensor:
        return Rounded.apply(super().forward(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x[:, None])[0][:, 0]


class OnHost(nn.Linear):
    """Leaves torch in between."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + float(y.detach().numpy().mean())


class Writing(nn.Linear):
    """Writes on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(self.bias.mean()))


def objective_of(model: nn.Module, samples: int = 16, **options: Any) -> Objective:
    torch.manual_seed(0)
    options = {"criterion": nn.CrossEntropyLoss()} | options
    return Objective(model, (torch.randn(samples, 4), torch.randint(3, (samples,))), **options)


def evaluator_of(objective: Objective, **options: Any) -> Evaluator:
    generator = torch.Generator().manual_seed(1)
    axes = [0.3 * objective.space.random(1, generator)[:, 0] for _ in range(2)]
    return Evaluator(objective, None, axes, **options)


def coordinates(points: int) -> Tensor:
    return torch.rand(points, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5


@pytest.mark.parametrize("make", [Branching, Rounding, OnHost, Writing])
def test_what_cannot_be_vectorised_goes_one_by_one_and_says_why(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    objective = objective_of(make(4, 3))
    evaluator, plain = evaluator_of(objective), evaluator_of(objective, engine="one by one")
    C = coordinates(40)
    assert torch.equal(evaluator(C)["loss"], plain(C)["loss"])
    assert evaluator.engine.startswith("one by one (it cannot be vectorised: ")
    assert plain.engine == "one by one (asked for)"
    with pytest.raises(KernelError, match="engine='batched' cannot evaluate this: it cannot be vectorised"):
        evaluator_of(objective, engine="batched")(C)


def test_recurrent_layers_either_way() -> None:
    torch.manual_seed(0)
    objective = objective_of(Recurrent())
    C = coordinates(40)
    plain = evaluator_of(objective, engine="one by one")(C)["loss"]
    torch.testing.assert_close(evaluator_of(objective)(C)["loss"], plain, rtol=1e-5, atol=0)


def test_a_loss_that_holds_on_to_the_parameters_is_seen_to_differ() -> None:
    model = mlp(4, 3)
    weight = model[0].weight
    objective = objective_of(
        model, criterion=None, loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1]) + weight.square().sum()
    )
    evaluator, C = evaluator_of(objective), coordinates(40)
    assert torch.equal(evaluator(C)["loss"], evaluator_of(objective, engine="one by one")(C)["loss"])
    assert evaluator.engine.startswith("one by one (vectorised, values differ by ")
    with pytest.raises(KernelError, match="values differ"):
        evaluator_of(objective, engine="batched")(C)


def test_an_error_of_the_model_is_not_taken_for_one_of_vectorising() -> None:
    class Failing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError("of the model")

    with pytest.raises(ArithmeticError, match="of the model"):
        evaluator_of(objective_of(Failing(4, 3)))(coordinates(40))


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_a_chunk_that_is_asked_for(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, sizes = objective_of(mlp(4, 5, 3)), []
    real = Batched.__call__

    def counted(self: Batched, C: Tensor) -> Tensor:
        sizes.append(len(C))
        return real(self, C)

    monkeypatch.setattr(Batched, "__call__", counted)
    evaluator = evaluator_of(objective, engine="batched", chunk=chunk)
    found = evaluator(coordinates(300))["loss"]
    assert max(sizes[1:]) <= chunk  # the first are those that are compared
    assert evaluator.engine.startswith("batched (asked for")
    plain = evaluator_of(objective, engine="one by one")(coordinates(300))["loss"]
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=0)


def test_batches_get_smaller_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, real = objective_of(mlp(4, 5, 3)), Batched.__call__

    def limited(self: Batched, C: Tensor) -> Tensor:
        if len(C) > 9:
            raise torch.OutOfMemoryError("on purpose")
        return real(self, C)

    monkeypatch.setattr(Batched, "__call__", limited)
    evaluator = evaluator_of(objective, engine="batched")
    found = evaluator(coordinates(300))["loss"]
    plain = evaluator_of(objective, engine="one by one")(coordinates(300))["loss"]
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=0)
    assert evaluator.engine.startswith("batched")


def test_what_fits_in_memory_counts_weights_and_activations() -> None:
    wide, long = evaluator_of(objective_of(mlp(4, 500, 3))), evaluator_of(objective_of(mlp(4, 5, 3), samples=4000))
    few = evaluator_of(objective_of(mlp(4, 5, 3)))
    fitting = [e._passes[0].engine._batched.fitting(e._passes[0].plain.bytes_of_one()) for e in (few, wide, long)]
    assert fitting[0] > fitting[1] > 1 and fitting[0] > fitting[2] > 1
    activations = 4 * 4000 * (5 + 3)  # of tanh and of log_softmax, in bytes of float32, at least
    assert long._passes[0].plain.bytes_of_one() >= activations
    assert fitting[2] <= (256 << 20) / activations


def test_what_fits_in_memory_counts_the_buffers_that_a_pass_may_write_on() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    model.register_buffer("table", torch.zeros(2_300_000))  # of 9.2 MB
    both = [evaluator_of(objective_of(model, mode=mode)) for mode in ("train", "eval")]
    fitting = [e._passes[0].engine._batched.fitting(0.0) for e in both]
    assert fitting[0] * 9_200_000 <= 256 << 20
    assert fitting[1] > 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("where", ["all", "frozen"])
def test_half_precision_goes_one_by_one_however_few_points_agree(dtype: torch.dtype, where: str) -> None:
    """Losses are multiples of 2^-8 or so: three that agree say nothing of the rest."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).to(dtype)
    data = (torch.randn(40, 4).to(dtype), torch.randint(3, (40,)))
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss())
    if where == "frozen":
        model[4].float()
        objective = Objective(Upper(model), data, criterion=nn.CrossEntropyLoss(), params=["of.4.weight"])
    axes, C = [torch.randn(objective.space.size) for _ in range(2)], 0.3 * coordinates(40)
    found = Evaluator(objective, None, axes)
    alone = Evaluator(objective, None, axes, engine="one by one")
    assert torch.equal(found(C)["loss"], alone(C)["loss"])
    assert found.engine == f"one by one (with weights in {str(dtype)[6:]} rounding would differ)"
    with pytest.raises(KernelError, match="rounding would differ"):
        Evaluator(objective, None, axes, engine="batched")


class Upper(nn.Module):
    """A head in single precision on a body that is frozen in half."""

    def __init__(self, of: nn.Sequential) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return self.of[4](self.of[:4](x).float())


def test_few_points_are_not_worth_a_trial() -> None:
    evaluator = evaluator_of(objective_of(mlp(4, 5, 3)))
    evaluator(coordinates(8))
    assert evaluator.engine == "one by one"


def test_few_points_that_are_asked_for_together() -> None:
    evaluator = evaluator_of(objective_of(mlp(4, 5, 3)), engine="batched")
    evaluator(coordinates(10))
    assert evaluator.engine == "batched (asked for)"


@pytest.mark.parametrize("mode", ["eval", "train", "train_frozen"])
@pytest.mark.parametrize("statistics", ["kept", "recomputed", "frozen"])
def test_statistics_of_normalisation_either_way(statistics: str, mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    model(torch.randn(50, 4))
    objective = objective_of(model, mode=mode)
    evaluator, C = evaluator_of(objective, statistics=statistics), coordinates(40)
    plain = evaluator_of(objective, statistics=statistics, engine="one by one")(C)["loss"]
    torch.testing.assert_close(evaluator(C)["loss"], plain, rtol=1e-5, atol=0)
    if statistics == "recomputed" and mode != "train":
        assert evaluator.engine == "one by one (statistics are recomputed at each point)"


def test_dropout_has_one_mask_for_all_points() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 3))
    objective = objective_of(model, mode="train")
    C = coordinates(40)
    plain = evaluator_of(objective, engine="one by one")(C)["loss"]
    torch.testing.assert_close(evaluator_of(objective)(C)["loss"], plain, rtol=1e-5, atol=0)
