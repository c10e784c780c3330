"""Trained curves: gradients and steps against autograd and torch's Adam, valleys that are known, and no trace left."""

import math
import signal
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from losscope.landscape import NonFiniteError, Objective, ParameterError, SettingError
from losscope.landscape.surface.bezier import bezier_path
from losscope.landscape.surface.curve_training import Adam, MiniBatches, schedule
from losscope.landscape.surface.paths import linear_path
from noted import Noted


class Point(nn.Module):
    """A model that is its parameters; the loss is a function of them."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def landscape(loss, *values: float) -> Objective:  # type: ignore[no-untyped-def]
    return Objective(Point(*values), [torch.zeros(1)], loss_fn=lambda model, _: loss(model.w), weight=lambda _: 1)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def circle(w: Tensor) -> Tensor:
    """Zero on the unit circle."""
    return (1 - w.square().sum()).square()


def spirals(n: int = 120) -> tuple[Tensor, Tensor]:
    """Two arms in the plane."""
    generator = torch.Generator().manual_seed(5)
    angle = 3 * torch.rand(n, generator=generator) + 0.5
    label = torch.arange(n) % 2
    x = torch.stack([angle * torch.cos(angle + math.pi * label), angle * torch.sin(angle + math.pi * label)], dim=1)
    return x + 0.05 * torch.randn(n, 2, generator=generator), label


def network(seed: int, *, normalised: bool = False, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    first = [nn.Linear(2, 12), *([nn.BatchNorm1d(12)] if normalised else []), nn.ReLU()]
    second = [nn.Linear(12, 12), *([nn.BatchNorm1d(12)] if normalised else []), nn.ReLU()]
    return nn.Sequential(*first, *second, *([nn.Dropout(dropout)] if dropout else []), nn.Linear(12, 2))


def trained(seed: int, **options) -> nn.Sequential:  # type: ignore[no-untyped-def]
    model, (x, y) = network(seed, **options), spirals()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def objective_of(model: nn.Module, **options) -> Objective:  # type: ignore[no-untyped-def]
    return Objective(model, spirals(), criterion=nn.CrossEntropyLoss(), **options)


def state(model: nn.Module) -> dict[str, tuple[int, int, Tensor]]:
    """Every tensor: which object, how often written, its values."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: (id(t), t._version, t.detach().clone()) for name, t in named.items()}


def assert_untouched(model: nn.Module, before: dict[str, tuple[int, int, Tensor]]) -> None:
    after = state(model)
    assert after.keys() == before.keys()
    for name, (address, version, values) in before.items():
        assert after[name][:2] == (address, version), name
        assert torch.equal(after[name][2], values), name


# --------------------------------------------------------------------------- known valleys


@pytest.mark.parametrize(("kind", "least"), [("bezier", 0.0), ("chain", 0.0)])
def test_a_curve_follows_a_circular_valley(kind: str, least: float) -> None:
    ends = vector(1, 0), vector(0, 1)
    path = bezier_path(landscape(circle, 0, 0), *ends, batch_size=None, kind=kind)
    straight = linear_path(landscape(circle, 0, 0), *ends)
    assert straight.barrier == pytest.approx(0.25)
    assert path.kind == kind
    assert 0 < path.barrier < (0.01 if kind == "bezier" else 0.05)  # two straight pieces cannot be a circle
    assert path.control is not None and path.control[0] == pytest.approx(float(path.control[1]), abs=0.05)
    assert math.sqrt(2) < path.length < 1.7  # a quarter of a circle is 1.571 long


def test_the_best_curve_is_found() -> None:
    """The least mean loss over t against a search over the one number that symmetry leaves of the control point."""
    t = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[:, None]
    one, other = vector(1, 0), vector(0, 1)

    def mean_loss(c: float) -> float:
        on = (1 - t) ** 2 * one + 2 * t * (1 - t) * vector(c, c) + t**2 * other
        return float((1 - on.square().sum(1)).square().mean())

    grid = torch.linspace(0.8, 1.1, 61).tolist()
    best = min(grid, key=mean_loss)
    path = bezier_path(landscape(circle, 0, 0), one, other, batch_size=None, epochs=2000)
    assert path.control is not None
    assert path.control.tolist() == pytest.approx([best, best], abs=0.02)


def test_scaling_the_parameters_changes_nothing() -> None:
    plain = bezier_path(landscape(circle, 0, 0), vector(1, 0), vector(0, 1), batch_size=None)
    scaled = bezier_path(
        landscape(lambda w: circle(w / 1024), 0, 0), vector(1024, 0), vector(0, 1024), batch_size=None
    )  # fmt: skip
    assert plain.control is not None and scaled.control is not None
    torch.testing.assert_close(scaled.control / 1024, plain.control, rtol=1e-3, atol=0)


# --------------------------------------------------------------------------- the steps


def test_a_straight_curve_is_the_linear_path() -> None:
    one, other = trained(0), trained(1)
    objective = objective_of(one)
    straight, line = (
        bezier_path(objective, one, other, epochs=0, points=9),
        linear_path(objective, one, other, points=9),
    )
    torch.testing.assert_close(straight.loss, line.loss, rtol=1e-5, atol=1e-7)
    assert straight.loss[[0, -1]].tolist() == line.loss[[0, -1]].tolist()
    assert straight.barrier == pytest.approx(line.barrier, rel=1e-5)
    assert straight.length == pytest.approx(line.length, rel=1e-6)
    assert straight.history is not None and len(straight.history) == 0


def test_training_is_that_of_autograd_through_the_curve_with_torchs_adam() -> None:
    """The same draws, but the curve differentiated by autograd and the steps made by torch.optim.Adam."""
    one, other = trained(0), trained(1)
    objective, epochs, lr = objective_of(one), 3, 0.01
    path = bezier_path(objective, one, other, epochs=epochs, lr=lr, batch_size=40, seed=7)
    a, b = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (one, other))
    control = ((a + b) / 2).requires_grad_()
    optimizer = torch.optim.Adam([control], lr=lr)
    generator, (x, y), model, steps = torch.Generator().manual_seed(7), spirals(), network(0), 3 * epochs
    history = []
    for epoch in range(epochs):
        losses = []
        for step, chosen in enumerate(torch.randperm(120, generator=generator).split(40)):
            t = float(torch.rand((), generator=generator, dtype=torch.float64))
            theta = (1 - t) ** 2 * a + 2 * t * (1 - t) * control + t**2 * b
            pieces = theta.split([p.numel() for p in model.parameters()])
            values = {n: v.view_as(p) for (n, p), v in zip(model.named_parameters(), pieces, strict=True)}
            loss = F.cross_entropy(torch.func.functional_call(model, values, (x[chosen],)), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = lr * schedule((3 * epoch + step + 0.5) / steps)
            optimizer.step()
            losses.append(loss.item())
        history.append(sum(losses) / 3)
    assert path.control is not None and path.history is not None
    torch.testing.assert_close(path.control, control.detach(), rtol=1e-4, atol=1e-5)
    assert path.history.tolist() == pytest.approx(history, rel=1e-4)


def test_adam_is_torchs() -> None:
    start = torch.randn(6)
    ours, theirs = Adam(start), start.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.1)
    for _ in range(20):
        gradient = torch.randn(6)
        theirs.grad = gradient.clone()
        optimizer.step()
        ours.step(gradient, 0.1)
    torch.testing.assert_close(ours.point, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_the_rate_rises_and_falls_to_zero() -> None:
    rates = [schedule((step + 0.5) / 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(1, abs=0.02) and rates.index(max(rates)) < 60
    assert rates[0] < 0.02 and rates[-1] < 1e-5
    assert schedule(0.5) > 0  # one step alone moves


# --------------------------------------------------------------------------- mini-batches


def total_over_an_epoch(objective: Objective, size: int | None) -> tuple[float, int]:
    batches = MiniBatches(objective, size)
    generator = torch.Generator().manual_seed(0)
    losses = [s * objective.batch_loss(i, content).item() for s, i, content in batches.epoch(generator)]
    return sum(losses) / len(batches), len(losses)


@pytest.mark.parametrize("size", [None, 1, 7, 50, 1000])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mini_batches_of_uneven_batches_make_the_objective_in_every_epoch(size: int | None, reduction: str) -> None:
    x, y = spirals(50)
    batches = [(x[:20], y[:20]), (x[20:48], y[20:48]), (x[48:], y[48:])]
    objective = Objective(network(0), batches, criterion=nn.CrossEntropyLoss(reduction=reduction))
    found, count = total_over_an_epoch(objective, size)
    assert count == (3 if size is None else math.ceil(50 / size))
    # Of sums, parts that differ by a sample are each scaled up to all of them.
    assert found == pytest.approx(objective.value(), rel=1e-5 if reduction == "mean" or size != 7 else 0.05)


def test_mini_batches_are_weighted_by_what_counts_in_them() -> None:
    x, y = spirals(40)
    y = y.clone()
    y[::3] = -100
    objective = Objective(network(0), (x, y), criterion=nn.CrossEntropyLoss())
    assert total_over_an_epoch(objective, 6)[0] == pytest.approx(objective.value(), rel=1e-5)


def test_padding_of_other_lengths_leaves_the_batches_as_they_are() -> None:
    model = nn.EmbeddingBag(10, 2)
    batches = [(torch.randint(10, (6, n)), torch.randint(2, (6,))) for n in (3, 5)]
    objective = Objective(model, batches, criterion=nn.CrossEntropyLoss())
    path = bezier_path(objective, torch.zeros(20), torch.ones(20), epochs=2, batch_size=4, points=3)
    assert "own batches" in path.note


# --------------------------------------------------------------------------- networks


@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "batch norm"])
def test_networks_are_connected(normalised: bool) -> None:
    one, other = trained(0, normalised=normalised), trained(1, normalised=normalised)
    objective = objective_of(one)
    before = state(one)
    line = linear_path(objective, one, other)
    path = bezier_path(objective, one, other, epochs=100, batch_size=30, metrics="accuracy")
    assert_untouched(one, before)
    assert line.barrier > 0.1
    assert path.above_worse_end < 0.02
    assert path.barriers["accuracy"] < 0.02
    assert path.statistics == ("recomputed" if normalised else "kept")
    assert path.history is not None and len(path.history) == 100
    assert path.history[-10:].mean() < path.history[:10].mean()
    assert path.t[[0, -1]].tolist() == [0, 1] and len(path.t) == 61
    assert path.length > line.length


def test_it_is_continued_where_it_was_left() -> None:
    one, other = trained(0), trained(1)
    objective = objective_of(one)
    short = bezier_path(objective, one, other, epochs=5)
    again = bezier_path(objective, one, other, epochs=0, control=short.control)
    assert torch.equal(again.loss, short.loss)
    longer = bezier_path(objective, one, other, epochs=60, control=short.control, seed=1)
    assert longer.barrier < short.barrier


def test_the_seed_decides_and_the_global_stream_is_left_alone() -> None:
    one, other = trained(0, dropout=0.2), trained(1, dropout=0.2)
    objective = objective_of(one, mode="train")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = bezier_path(objective, one, other, epochs=3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(10)
    second = bezier_path(objective, one, other, epochs=3, seed=5)
    third = bezier_path(objective, one, other, epochs=3, seed=6)
    assert first.control is not None and second.control is not None and third.control is not None
    assert torch.equal(first.control, second.control) and torch.equal(first.loss, second.loss)
    assert not torch.equal(first.control, third.control)


# --------------------------------------------------------------------------- no trace, whatever happens


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("statistics", ["recomputed", "kept", "frozen"])
def test_an_interrupted_training_leaves_the_model_as_it_was(error: type[BaseException], statistics: str) -> None:
    one, other = trained(0, normalised=True), trained(1, normalised=True)
    calls = Noted()

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 9:
            raise error
        return F.cross_entropy(outputs, targets)

    one.train()
    one[1].eval()
    flags, before = [m.training for m in one.modules()], state(one)
    grads = [torch.randn_like(p) for p in one.parameters()]
    for p, grad in zip(one.parameters(), grads, strict=True):
        p.grad = grad
    objective = Objective(one, spirals(), criterion=criterion)
    with pytest.raises(error):
        bezier_path(objective, None, other, epochs=20, statistics=statistics)
    assert_untouched(one, before)
    assert [m.training for m in one.modules()] == flags
    assert all(p.grad is grad for p, grad in zip(one.parameters(), grads, strict=True))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one within a __del__
@pytest.mark.parametrize("statistics", ["kept", "recomputed"])
def test_at_any_moment_ctrl_c_leaves_the_model_as_it_was(statistics: str) -> None:
    """A signal after the n-th call or return of a Python function, for n from the first to the last."""
    model, other = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
    other[1].running_mean.add_(1)
    objective = Objective(model, (torch.randn(5, 2), torch.randn(5, 2)), criterion=nn.MSELoss())
    events, moment = 0, -1

    def count(*_: object) -> None:
        nonlocal events
        events += 1
        if events == moment:
            signal.raise_signal(signal.SIGINT)

    def watched() -> None:
        sys.setprofile(count)
        try:
            bezier_path(objective, None, other, epochs=2, points=3, batch_size=3, statistics=statistics)
        finally:
            sys.setprofile(None)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        watched()
        events = 0
        watched()
        before, every, interrupted = state(model), events // 100, 0
        for chosen in range(1, events, every):
            events, moment = 0, chosen
            try:
                watched()
            except KeyboardInterrupt:
                interrupted += 1
            assert_untouched(model, before)
            assert model.training and model[1].training
        assert interrupted > 90
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_off(context) -> None:  # type: ignore[no-untyped-def]
    one, other = trained(0), trained(1)
    expected = bezier_path(objective_of(one), one, other, epochs=3)
    with context():
        found = bezier_path(objective_of(one), one, other, epochs=3)
    assert found.loss.tolist() == expected.loss.tolist()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_with_its_statistics_kept() -> None:
    one, other = trained(0, normalised=True), trained(1, normalised=True)
    expected = linear_path(objective_of(one), one, one, statistics="kept", points=3)
    scripted = objective_of(torch.jit.script(one))
    path = bezier_path(scripted, one, one, statistics="kept", points=3, epochs=2)
    torch.testing.assert_close(path.loss[[0, -1]], expected.loss[[0, -1]])
    with pytest.raises(SettingError, match=r"1\.running_mean .* scripted"):
        bezier_path(scripted, one, other, statistics="kept")


def test_optimizer_hooks_of_the_process_are_not_called() -> None:
    seen: list[object] = []
    handle = register_optimizer_step_post_hook(lambda *given: seen.append(given))
    try:
        bezier_path(landscape(circle, 0, 0), vector(1, 0), vector(0, 1), batch_size=None, epochs=2)
    finally:
        handle.remove()
    assert seen == []


def test_statistics_in_training_are_those_of_the_mini_batch() -> None:
    """What the layer normalises by while the curve is trained, and while it is evaluated."""
    one, other = trained(0, normalised=True), trained(1, normalised=True)
    flags = Noted()

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        flags.append(one[1].training)
        return F.cross_entropy(outputs, targets)

    objective = Objective(one, spirals(), criterion=criterion)
    bezier_path(objective, one, other, epochs=2, points=3)
    assert flags.count(True) >= 2 * 2 and flags[-1] is False
    flags.clear()
    bezier_path(objective, one, other, epochs=2, points=3, statistics="kept")
    assert not any(flags)


# --------------------------------------------------------------------------- bad input


def test_a_loss_that_is_no_number_says_so() -> None:
    objective = landscape(lambda w: (w - 0.1).log().sum(), 1.0)
    with pytest.raises(NonFiniteError, match="epoch 1 of 30"):
        bezier_path(objective, vector(1.0), vector(-2.0), epochs=30, batch_size=None)


def test_another_architecture_is_named() -> None:
    one = network(0)
    other = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 2))
    with pytest.raises(ParameterError, match=r"second .* 2\.weight has shape \(2, 12\), the model's is \(12, 12\)"):
        bezier_path(objective_of(one), one, other)
    with pytest.raises(ParameterError, match="control"):
        bezier_path(objective_of(one), one, one, control=torch.zeros(3))


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": -1}, {"epochs": 2.5}, {"lr": 0.0}, {"lr": float("nan")}, {"batch_size": 0}, {"kind": "linear"},
        {"points": 2}, {"statistics": "fresh"}, {"seed": "x"},
    ],
)  # fmt: skip
def test_options_that_mean_nothing(options: dict[str, object]) -> None:
    name = next(iter(options))
    with pytest.raises(SettingError, match=name):
        bezier_path(
            landscape(circle, 0, 0), vector(1, 0), vector(0, 1), **({"batch_size": None, "epochs": 1} | options)
        )
