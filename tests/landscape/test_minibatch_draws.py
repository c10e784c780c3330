"""Mini-batches together and one by one: against dense derivatives, each other, and what cannot be vectorised."""

import copy
import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import DataError, NonFiniteError, Objective
from losscope.landscape.minibatch_draws import MinibatchDraws
from losscope.landscape.minibatch_forms import OneByOne, Together, Wanted

F64 = torch.float64


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.layer(self.embed(tokens)).mean(dim=1))


class Scaled(nn.Module):
    """With a parameter that has no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x).tanh()


def tokens(n: int) -> Tensor:
    return torch.randint(9, (n, 5), generator=torch.Generator().manual_seed(0))


def images(n: int) -> Tensor:
    return torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=F64)


def rows(n: int) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=F64)


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *middle, nn.Linear(5, 3))


MODELS = {
    "mlp": (mlp, rows), "relu": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), rows),
    "conv": (conv, images), "attention": (Attention, tokens), "linear": (lambda: nn.Linear(4, 3), rows),
    "one number": (Scaled, rows), "batch norm in eval mode": (lambda: mlp(nn.BatchNorm1d(5)), rows),
}  # fmt: skip


def objective_of(name: str, n: int = 20, cut: int = 7, **options: object) -> Objective:
    make, inputs = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make().double()
    x, y = inputs(n), torch.randint(3, (n,), generator=torch.Generator().manual_seed(2))
    data = list(zip(x.split(cut), y.split(cut), strict=True))
    return Objective(model, data, criterion=nn.CrossEntropyLoss(), **options)


def wanted(objective: Objective, **options: object) -> Wanted:
    lengths = [len(batch.content[1]) for batch in objective.batches]
    return Wanted(objective, lengths, **{"crossed": True, **options})


def chosen(k: int, batch: int, n: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.stack([torch.randperm(n, generator=generator)[:batch].sort().values for _ in range(k)])


def draws_of(objective: Objective, count: int = 40, batch: int = 3, **options: object) -> MinibatchDraws:
    found = MinibatchDraws(objective, batch, torch.Generator().manual_seed(0), **{"crossed": True, **options})
    found.draw(count)
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 4])
def test_together_is_one_by_one(name: str, batch: int) -> None:
    objective, samples = objective_of(name), chosen(6, batch)
    with objective.isolated():
        for options in ({}, {"products": False, "crossed": False}):
            alone = OneByOne(wanted(objective, **options))(samples, 0)
            together = Together(wanted(objective, **options))(samples)
            for one, other in zip(alone, together, strict=True):
                assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert draws_of(objective, batch=batch).engine == "together"


@pytest.mark.parametrize("preconditioned", [False, True])
def test_both_are_the_dense_derivatives(preconditioned: bool) -> None:
    objective, samples = objective_of("mlp"), chosen(4, 3)
    x, y = (torch.cat([b.content[i] for b in objective.batches]) for i in (0, 1))
    shapes = dict(zip(objective.space.names, objective.space.shapes, strict=True))
    theta = objective.space.flatten([p.detach() for p in objective.parameters.values()])
    inverse = torch.rand(len(theta), generator=torch.Generator().manual_seed(5), dtype=F64) + 0.5

    def loss(theta: Tensor, i: Tensor) -> Tensor:
        pieces = theta.split([math.prod(s) for s in shapes.values()])
        values = {k: p.view(s) for (k, s), p in zip(shapes.items(), pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(objective.model, values, (x[i],)), y[i])

    gradients = [torch.func.grad(loss)(theta, i) for i in samples]
    expected = []
    for j, i in enumerate(samples):
        g, v, H = gradients[j], gradients[j ^ 1], torch.func.hessian(loss)(theta, i)
        u = g * inverse if preconditioned else g
        numbers = (loss(theta, i), g @ g, g @ u, u @ H @ u, u.norm() * (H @ u).norm(), v @ H @ v)
        expected.append([float(number) for number in numbers])
    with objective.isolated():
        for engine in (OneByOne, Together):
            asked = wanted(objective, inverse=inverse if preconditioned else None)
            found = engine(asked)(samples, *([0] if engine is OneByOne else []))
            assert torch.allclose(torch.stack(list(found)).T, torch.tensor(expected, dtype=F64), rtol=1e-9)


def test_the_cut_into_batches_does_not_matter() -> None:
    whole, pieces = (draws_of(objective_of("mlp", cut=cut)).forms for cut in (20, 3))
    for one, other in zip(whole, pieces, strict=True):
        assert torch.allclose(one, other, rtol=1e-9)


def test_a_sum_is_scaled_up_to_all_samples() -> None:
    mean, total = objective_of("mlp"), objective_of("mlp")
    total.loss = Objective(total.model, total.data, criterion=nn.CrossEntropyLoss(reduction="sum")).loss
    for power, one, other in zip((1, 2, 2, 3, 3, 3), draws_of(mean).forms, draws_of(total).forms, strict=True):
        assert torch.allclose(20**power * one, other, rtol=1e-9)


# --------------------------------------------------------------------------- what cannot be vectorised


class Rounded(torch.autograd.Function):
    """Without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class Other(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inside = kind, mlp().double()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.inside(x)
        if self.kind == "control flow" and out.sum() > 0:
            out = 3 * out
        if self.kind == "custom function":
            out = Rounded.apply(out)
        if self.kind == "python's random numbers":
            out = out * (1 + __import__("random").random())
        return out


@pytest.mark.parametrize("kind", ["control flow", "custom function", "python's random numbers"])
def test_what_torch_cannot_vectorise_goes_one_by_one(kind: str) -> None:
    data = (rows(20), torch.arange(20) % 3)
    objective = Objective(Other(kind), data, criterion=nn.CrossEntropyLoss())
    found = draws_of(objective, 30)
    assert found.engine == "one by one" and found.reason
    assert bool(found.forms.square.gt(0).all()) and found.count == 30


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(5), nn.Dropout(0.5)], ids=["batch statistics", "dropout"])
def test_train_mode_is_that_of_training(layer: nn.Module) -> None:
    """Batch statistics of the mini-batch; a dropout mask of its own for each, the same for its gradient and product."""
    model = mlp(layer).double()
    objective = Objective(model, (rows(20), torch.arange(20) % 3), criterion=nn.CrossEntropyLoss(), mode="train")
    before = copy.deepcopy(model.state_dict())
    found = draws_of(objective, 30, batch=4)
    assert found.engine == "one by one" and found.reason
    with objective.isolated():
        content = (rows(20)[:4], torch.arange(4) % 3)
        losses = [objective.batch_loss(0, content, mask=mask) for mask in (0, 1)]
    assert bool(losses[0] == losses[1]) == isinstance(layer, nn.BatchNorm1d)
    again = draws_of(objective, 30, batch=4).forms
    assert torch.equal(found.forms.form, again.form)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_loss_that_holds_on_to_parameters_is_found_out() -> None:
    model = mlp().double()
    captured = list(model.parameters())

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1]) + 0.1 * sum(p.square().sum() for p in captured)

    objective = Objective(model, (rows(20), torch.arange(20) % 3), loss_fn=loss)
    found = draws_of(objective)
    assert found.engine == "one by one" and "not what they are" in found.reason


def test_padding_of_other_lengths_goes_one_by_one() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return model(batch[0].mean(dim=1, keepdim=True)).square().mean()

    data = [(torch.rand(8, 2).double(),), (torch.rand(9, 5).double(),)]
    found = draws_of(Objective(nn.Linear(1, 1).double(), data, loss_fn=loss), batch=4)
    assert found.engine == "one by one" and "different shapes" in found.reason
    assert bool(found.forms.square.isfinite().all())


def test_nothing_is_left_behind_where_it_fails_half_way() -> None:
    objective = objective_of("mlp")
    draws_of(Objective(Other("control flow"), (rows(20), torch.arange(20) % 3), criterion=nn.CrossEntropyLoss()))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):  # a checkpoint needs them
        objective.model(rows(3)).sum().backward()
    assert not torch._C._functorch.maybe_current_level()


# --------------------------------------------------------------------------- how many at a time


def test_memory_bounds_how_many_are_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Together.__call__

    def spy(self: Together, chosen: Tensor):
        seen.append(len(chosen))
        return real(self, chosen)

    monkeypatch.setattr(Together, "__call__", spy)
    objective = objective_of("mlp")
    each = MinibatchDraws(objective, 3, torch.Generator(), crossed=True)
    with objective.isolated():
        some = chosen(1, 3)[0]
        most = each._fitting(some)
    assert most == 128
    each.memory = 20 * 10**3
    with objective.isolated():
        few = each._fitting(some)
    assert 4 <= few < 20 and few % 2 == 0
    objective.kept.clear()
    whole = draws_of(objective, 60, memory=20 * 10**3)
    assert max(seen) <= few and whole.count == 60
    objective.kept.clear()
    none = draws_of(objective, 10, memory=1)
    assert none.engine == "one by one" and "fit into memory" in none.reason


def test_out_of_memory_halves_how_many_are_together(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of("mlp")
    draws_of(objective, 16)
    key = next(key for key in objective.kept if key[0] == "minibatches")
    objective.kept[key] = (64, "")
    real = Together.__call__

    def small(self: Together, chosen: Tensor):
        if len(chosen) > 20:
            raise torch.OutOfMemoryError("none left")
        return real(self, chosen)

    monkeypatch.setattr(Together, "__call__", small)
    found = draws_of(objective, 100)
    assert found.count == 100 and objective.kept[key][0] == 16 and found.engine == "together"


def test_what_was_tried_is_kept_and_draws_go_on() -> None:
    objective = objective_of("mlp")
    first = draws_of(objective, 20)
    assert [key[0] for key in objective.kept].count("minibatches") == 1
    first.draw(40)
    assert first.count == 40
    for one, other in zip(first.forms, draws_of(objective, 40).forms, strict=True):
        assert torch.allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize(("n", "batch"), [(5, 1), (5, 2), (9, 3), (6, 4), (5, 5)])
def test_every_set_of_distinct_samples_is_drawn_alike(n: int, batch: int) -> None:
    draws = MinibatchDraws(objective_of("linear", n), batch, torch.Generator().manual_seed(0))
    found = Counter(map(tuple, draws._chosen(8000).tolist()))
    sets = list(combinations(range(n), batch))
    assert sorted(found) == sets
    expected = 8000 / len(sets)
    square = sum((found[s] - expected) ** 2 / expected for s in sets)
    assert square <= chi2.ppf(0.999, max(len(sets) - 1, 1))


def test_nan_is_refused_and_the_samples_must_be_there() -> None:
    model = mlp().double()
    bad = rows(20)
    bad[3] = math.nan
    with pytest.raises(NonFiniteError):
        draws_of(Objective(model, (bad, torch.arange(20) % 3), criterion=nn.CrossEntropyLoss()), 60)
    with pytest.raises(DataError):
        draws_of(Objective(nn.Linear(2, 1), [object()], loss_fn=lambda m, _: m.weight.square().sum()))


def test_minibatches_in_which_everything_is_ignored_are_zero() -> None:
    targets = torch.where(torch.arange(20) % 2 == 0, -100, 1)
    found = draws_of(Objective(mlp().double(), (rows(20), targets), criterion=nn.CrossEntropyLoss()), 40, batch=1)
    assert 5 < int((found.forms.square == 0).sum()) < 35
    assert bool(torch.stack(list(found.forms)).isfinite().all())
