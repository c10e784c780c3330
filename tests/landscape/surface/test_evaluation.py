"""Loss and metrics at many points against the plain loss at each, and what an evaluation leaves behind."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isolation_cases import batches, busy_with_gradients, state_of, streams
from landscape_cases import CASES, Setup, build, mlp
from losscope.landscape import Objective
from losscope.landscape.errors import LosscopeError, NonFiniteError, ParameterError, SettingError
from losscope.landscape.surface import Evaluator, evaluate, evaluate_at, parameters_at

ENGINES = ("one by one", "auto")


def near_zero(points: int, axes: int) -> Tensor:
    """The origin and random coordinates."""
    generator = torch.Generator().manual_seed(0)
    C = torch.rand(points, axes, generator=generator, dtype=torch.float64) - 0.5
    return torch.cat([torch.zeros(1, axes, dtype=torch.float64), C])


def directions(objective: Objective, count: int = 2, size: float = 0.3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [size * objective.space.random(1, generator)[:, 0] for _ in range(count)]


def written_in(objective: Objective, axes: list[Tensor], C: Tensor) -> Tensor:
    """The values of the objective with every point written into its parameters."""
    start, found = parameters_at(objective, None), []
    for row in C.tolist():
        there = start.double() + sum(c * axis.double() for c, axis in zip(row, axes, strict=True))
        for p, value in zip(objective.parameters.values(), objective.space.unflatten(there.to(start)), strict=True):
            p.data.copy_(value)
        found.append(objective.value())
    return torch.tensor(found, dtype=torch.float64)


def classifier(samples: int = 32) -> Objective:
    torch.manual_seed(0)
    return Objective(mlp(4, 8, 3), batches_of(samples), criterion=nn.CrossEntropyLoss())


def batches_of(samples: int) -> list[tuple[Tensor, Tensor]]:
    x, y = torch.randn(samples, 4), torch.randint(3, (samples,))
    return list(zip(x.split(20), y.split(20), strict=True))


# --------------------------------------------------------------------------- values


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_case_as_point_by_point(name: str) -> None:
    setup: Setup = build(name)
    objective = setup.objective()
    axes, C = directions(objective), near_zero(14, 2)
    plain = evaluate(objective, None, axes, C, engine="one by one")["loss"]
    chosen = evaluate(objective, None, axes, C)["loss"]
    assert float(plain[0]) == float(chosen[0]) == objective.value()
    torch.testing.assert_close(chosen, plain, rtol=1e-5, atol=0)
    torch.testing.assert_close(plain, written_in(build(name).objective(), axes, C), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["eval", "train", "train_frozen"])
def test_modes_with_dropout_and_batch_statistics(mode: str, engine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3))
    objective = Objective(model, batches_of(33), criterion=nn.CrossEntropyLoss(), mode=mode)
    axes, C = directions(objective), near_zero(20, 2)
    found = evaluate(objective, None, axes, C, engine=engine)["loss"]
    assert float(found[0]) == objective.value()
    torch.testing.assert_close(found, written_in(objective, axes, C), rtol=1e-5, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_from_another_origin_it_is_the_loss_of_a_model_that_was_loaded_with_it(engine: str) -> None:
    objective, other = classifier(), mlp(4, 8, 3)
    there = Objective(other, objective.data, criterion=nn.CrossEntropyLoss())
    axes, C = directions(objective), near_zero(20, 2)
    found = evaluate(objective, other.state_dict(), axes, C, engine=engine)["loss"]
    assert float(found[0]) == there.value()
    torch.testing.assert_close(found, evaluate(there, None, axes, C)["loss"], rtol=1e-5, atol=0)


def test_a_subset_of_the_parameters_and_tied_ones() -> None:
    torch.manual_seed(0)
    model = mlp(4, 4, 4, 3)
    model[2].weight = model[0].weight
    for params in (None, "0.*", "*.bias"):
        objective = Objective(model, batches_of(20), criterion=nn.CrossEntropyLoss(), params=params)
        axes, C = directions(objective), near_zero(20, 2)
        found = evaluate(objective, None, axes, C)["loss"]
        fresh = Objective(copy.deepcopy(model), objective.data, criterion=nn.CrossEntropyLoss(), params=params)
        torch.testing.assert_close(found, written_in(fresh, axes, C), rtol=1e-5, atol=0)


def test_half_precision_points_are_rounded_once() -> None:
    torch.manual_seed(0)
    model = mlp(4, 8, 3).bfloat16()
    data = [(x.bfloat16(), y) for x, y in batches_of(20)]
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss())
    axes, C = directions(objective), near_zero(20, 2)
    found = evaluate(objective, None, axes, C, engine="one by one")["loss"]
    torch.testing.assert_close(found, written_in(objective, axes, C), rtol=1e-2, atol=0)


def test_dict_batches() -> None:
    torch.manual_seed(0)
    model = mlp(4, 8, 3)
    data = [{"input_ids": x, "labels": y} for x, y in batches_of(33)]
    options: dict[str, Any] = {
        "forward": lambda m, b: m(b["input_ids"]), "targets": lambda b: b["labels"], "criterion": F.cross_entropy,
    }  # fmt: skip
    objective = Objective(model, data, **options)
    axes, C = directions(objective), near_zero(20, 2)
    found = evaluate(objective, None, axes, C, metrics="accuracy")
    pairs = Objective(model, [(b["input_ids"], b["labels"]) for b in data], criterion=F.cross_entropy)
    expected = evaluate(pairs, None, axes, C, metrics="accuracy", engine="one by one")
    for name in ("loss", "accuracy"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=0)


def test_attention_and_an_lstm() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    for model in (nn.Sequential(layer, nn.Linear(4, 3)), Last(nn.LSTM(4, 3, batch_first=True))):
        data = (torch.randn(6, 5, 4), torch.randint(3, (6, 5)))
        objective = Objective(model, data, criterion=lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()))
        axes, C = directions(objective, size=0.1), near_zero(20, 2)
        found = evaluate(objective, None, axes, C)["loss"]
        assert float(found[0]) == objective.value()
        torch.testing.assert_close(found, written_in(objective, axes, C), rtol=1e-5, atol=0)


class Last(nn.Sequential):
    """The outputs of a layer that returns its state, too."""

    def forward(self, x: Tensor) -> Tensor:
        return self[0](x)[0]


def test_a_compiled_model_is_evaluated_without_compiling() -> None:
    objective = classifier()
    compiled = Objective(torch.compile(objective.model), objective.data, criterion=nn.CrossEntropyLoss())
    axes, C = directions(objective), near_zero(20, 2)
    expected = evaluate(objective, None, axes, C, engine="one by one")["loss"]
    torch.testing.assert_close(evaluate(compiled, None, axes, C)["loss"], expected, rtol=1e-5, atol=0)


def test_a_penalty_on_the_gradient_has_its_gradient() -> None:
    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return loss + sum(g.square().sum() for g in gradient)

    torch.manual_seed(0)
    objective = Objective(mlp(4, 8, 3), batches_of(20), loss_fn=loss_fn)
    axes, C = directions(objective), near_zero(20, 2)
    evaluator = Evaluator(objective, None, axes)
    torch.testing.assert_close(evaluator(C)["loss"], written_in(objective, axes, C), rtol=1e-5, atol=0)
    assert evaluator.engine.startswith("one by one (")


@pytest.mark.parametrize("engine", ENGINES)
def test_not_finite_points_are_kept_as_such_and_spoil_no_other(engine: str) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(1.0)
    data = (torch.ones(4, 1).double(), torch.zeros(4, 1).double())
    objective = Objective(model, data, criterion=lambda out, _: out.log().mean())
    C = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    found = evaluate(objective, None, [torch.ones(1)], C, engine=engine)["loss"]
    expected = (1 + C[:, 0]).log()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert bool(found.isnan().any()) and bool(found.isinf().any())


def test_points_are_counted_and_the_origin_is_one_of_them() -> None:
    objective = classifier()
    evaluator = Evaluator(objective, None, directions(objective))
    evaluator(near_zero(20, 2))
    evaluator(near_zero(4, 2))
    assert evaluator.evaluations == 26 and evaluator.seconds > 0
    assert evaluator.center == {"loss": objective.value()}


def test_no_points() -> None:
    objective = classifier()
    assert evaluate(objective, None, directions(objective), torch.empty(0, 2))["loss"].shape == (0,)
    assert evaluate_at(objective, [])["loss"].shape == (0,)


# --------------------------------------------------------------------------- any points


def test_at_points_in_any_form() -> None:
    objective, other = classifier(), mlp(4, 8, 3)
    there = Objective(other, objective.data, criterion=nn.CrossEntropyLoss())
    vector = parameters_at(objective, other)
    found = evaluate_at(objective, (p for p in (None, other, other.state_dict(), vector)), metrics="accuracy")
    assert found["loss"].tolist() == [objective.value()] + 3 * [there.value()]
    assert set(found) == {"loss", "accuracy"}


def test_a_point_of_another_architecture_is_named() -> None:
    objective = classifier()
    with pytest.raises(ParameterError, match=r"point 1 is of another architecture: 0.weight has shape \(9, 4\)"):
        evaluate_at(objective, [None, mlp(4, 9, 3)])


# --------------------------------------------------------------------------- what it leaves behind


@pytest.mark.parametrize("mode", ["eval", "train", "train_frozen"])
@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_in_the_model_changes(engine: str, mode: str) -> None:
    model = busy_with_gradients()
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode=mode)
    before, random_state = state_of(model), streams()
    evaluate(objective, None, directions(objective), near_zero(20, 2), metrics="accuracy", engine=engine)
    evaluate_at(objective, [parameters_at(objective, None) + 1])
    assert state_of(model) == before
    assert streams() == random_state


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["hook", "metric"])
@pytest.mark.parametrize("fails_at", [1, 2, 3, 5, 8, 30])
def test_nothing_changes_when_it_is_stopped_in_the_middle(fails_at: int, where: str, error: type) -> None:
    model = busy_with_gradients()
    armed, count = False, 0

    def fail(*_: Any) -> Tensor:
        nonlocal count
        count += armed
        if count == fails_at:
            raise error("on purpose")
        return torch.zeros(())

    def hook(module: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
        return outputs + fail()

    if where == "hook":
        model.last.register_forward_hook(hook)
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss())
    armed = len(objective.batches) > 0  # reading them tries the loss, where it may fail
    axes, before, random_state = directions(objective), state_of(model), streams()
    with pytest.raises(error, match="on purpose"):
        evaluate(objective, None, axes, near_zero(20, 2), metrics=fail if where == "metric" else None)
    assert state_of(model) == before
    assert streams() == random_state


def test_gradients_that_are_under_way_can_still_be_taken() -> None:
    """A backward pass checks that no parameter was written on since the forward pass."""
    objective = classifier()
    loss = objective.model(torch.ones(1, 4)).sum()
    evaluate(objective, None, directions(objective), near_zero(30, 2))
    loss.backward()
    assert objective.model[0].weight.grad is not None


def test_one_by_one_holds_one_point_besides_origin_and_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = classifier()
    axes, made = directions(objective), []
    real = torch.empty_like

    def counted(tensor: Tensor, **kwargs: Any) -> Tensor:
        made.append(tensor.numel())
        return real(tensor, **kwargs)

    monkeypatch.setattr(torch, "empty_like", counted)
    evaluator = Evaluator(objective, None, axes, engine="one by one")
    evaluator(near_zero(50, 2))
    span = evaluator.span
    live = [p.data_ptr() for p in objective.parameters.values()]
    assert [t.data_ptr() for t in span.origin] == live  # no copy of the model
    assert [pieces[0].data_ptr() for pieces in span.axes] == [a.data_ptr() for a in axes]  # nor of the axes
    assert sum(made) == objective.space.size


class Moody(nn.Linear):
    """Remembers how often it was called far from where it began, and computes something else then."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if float(self.weight.detach().norm()) > 1.0:
            self.calls += 1
        return super().forward(x) * (1 + self.calls)


def test_a_model_whose_state_changes_away_from_the_centre_only() -> None:
    torch.manual_seed(0)
    model = Moody(4, 3)
    model.weight.data.div_(2 * model.weight.data.norm())
    objective = Objective(model, batches_of(33), criterion=nn.CrossEntropyLoss())
    axes, C = directions(objective, size=1.0), near_zero(40, 2)
    found = evaluate(objective, None, axes, C)["loss"]
    torch.testing.assert_close(found, written_in(objective, axes, C), rtol=1e-5, atol=0)
    assert model.calls == 0


# --------------------------------------------------------------------------- bad input


def test_bad_settings_are_refused() -> None:
    objective = classifier()
    axes = directions(objective)
    with pytest.raises(SettingError, match="engine must be one of 'auto', 'one by one', 'batched'; got 'fast'"):
        Evaluator(objective, None, axes, engine="fast")
    with pytest.raises(SettingError, match="chunk must be a positive integer, got 0"):
        Evaluator(objective, None, axes, chunk=0)
    with pytest.raises(SettingError, match="statistics must be one of"):
        Evaluator(objective, None, axes, statistics="fresh")
    with pytest.raises(SettingError, match=r"coordinates must be \(points, 2\), one column per axis; got shape \(3,\)"):
        evaluate(objective, None, axes, torch.zeros(3))
    with pytest.raises(SettingError, match="coordinates must be finite"):
        evaluate(objective, None, axes, torch.full((1, 2), math.nan))
    with pytest.raises(ParameterError, match=r"axis 1 has shape \(3,\); expected a vector"):
        evaluate(objective, None, [torch.ones(3)], torch.zeros(1, 1))
    with pytest.raises(NonFiniteError, match="axis 1 is NaN or infinite somewhere"):
        evaluate(objective, None, [axes[0] * math.inf], torch.zeros(1, 1))
    assert issubclass(SettingError, LosscopeError)
