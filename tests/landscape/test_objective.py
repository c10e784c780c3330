"""The objective: its data, its options, and every kind of bad input with an error that says what to do."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from landscape_cases import mlp
from losscope.landscape import DataError, Hessian, LosscopeError, LossError, Objective, ParameterError, SettingError


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes or (5, 3)
    ]


def objective(data: Any = None, model: nn.Module | None = None, **options: Any) -> Objective:
    if "loss_fn" not in options:
        options.setdefault("criterion", nn.CrossEntropyLoss())
    return Objective(model or mlp(4, 3, 3), batches() if data is None else data, **options)


# --------------------------------------------------------------------------- data


class Noisy(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((4,), float(index)) + torch.randn(4), index % 3


def test_an_augmenting_loader_is_one_operator() -> None:
    target = objective(DataLoader(Noisy(), batch_size=4, shuffle=True))
    operator = Hessian(target)
    V = torch.randn(target.space.size)
    assert torch.equal(operator @ V, operator @ V)
    assert target.value() == target.value()
    held = [b.content[0].clone() for b in target.batches]
    target.gradient()
    assert all(torch.equal(b.content[0], kept) for b, kept in zip(target.batches, held, strict=True))


def test_the_seed_fixes_what_a_loader_draws() -> None:
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
    model = mlp(4, 3)
    values = [objective(loader, model, seed=seed).value() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_a_snapshot_reads_the_data_again_and_draws_its_own_masks() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    base = objective(model=model, mode="train")
    one, two, again = (base.snapshot(seed).value() for seed in (1, 2, 1))
    assert one == again != two
    data = batches()
    grown = objective(data, model)
    before = grown.value()
    data.append(batches(7)[0])
    assert grown.value() == before
    assert len(grown.snapshot(0).batches) == 3


def test_a_generator_is_read_once_and_serves_every_evaluation() -> None:
    model = mlp(4, 3)
    from_list = objective(batches(), model)
    from_generator = objective((batch for batch in batches()), model)
    from_generator.check()
    assert from_generator.value() == from_list.value()
    assert torch.equal(from_generator.gradient(), from_list.gradient())


def test_an_iterator_half_used_gives_the_rest() -> None:
    model = mlp(4, 3)
    iterator = iter(batches(5, 3, 2))
    next(iterator)
    assert objective(iterator, model).value() == objective(batches(5, 3, 2)[1:], model).value()


@pytest.mark.parametrize("data", [batches()[0], [batches()[0]], tuple(batches()), {0: 1}])
def test_one_batch_or_several(data: Any) -> None:
    if isinstance(data, dict):
        data = dict(zip(("x", "y"), batches()[0], strict=True))
        options = {"loss_fn": lambda m, b: F.cross_entropy(m(b["x"]), b["y"])}
    else:
        options = {}
    count = 2 if isinstance(data, tuple) and isinstance(data[0], tuple) else 1
    assert len(objective(data, **options).batches) == count


def test_a_loader_that_fills_the_same_tensors_again() -> None:
    def reusing() -> Iterator[tuple[Tensor, Tensor]]:
        x, y = torch.empty(4, 4), torch.empty(4, dtype=torch.long)
        for new_x, new_y in batches(4, 4, 4):
            yield x.copy_(new_x), y.copy_(new_y)

    model = mlp(4, 3)
    assert objective(reusing(), model).value() == objective(batches(4, 4, 4), model).value()


def test_a_batch_that_weighs_nothing_takes_no_part() -> None:
    """A batch of padding alone: its mean is 0 / 0, its share is none."""
    model = nn.Linear(4, 3)
    ignored = (torch.randn(2, 4), torch.full((2,), -100))
    with_padding = objective([batches()[0], ignored, batches()[1]], model)
    without = objective(batches(), model)
    V = torch.randn(without.space.size)
    assert with_padding.value() == pytest.approx(without.value(), rel=1e-6)
    torch.testing.assert_close(Hessian(with_padding) @ V, Hessian(without) @ V)


def test_the_weights_of_a_summed_loss_do_not_matter() -> None:
    model, criterion = mlp(4, 3), nn.CrossEntropyLoss(reduction="sum")
    weightless = objective(model=model, criterion=criterion, weight=lambda b: 0)
    assert weightless.value() == objective(model=model, criterion=criterion).value() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [], r"yielded no batch \(list\)"),
        (lambda: DataLoader(TensorDataset(torch.empty(0, 4)), batch_size=2), r"yielded no batch \(DataLoader\)"),
        (lambda: (b for b in ()), r"generator: it is a one-shot iterator that is used up; pass a list or a DataLoader"),
        (lambda: torch.ones(3, 4), r"got a tensor of shape \(3, 4\); write data=\[\(inputs, targets\)\]"),
        (lambda: Noisy(), r"data is a Noisy, which yields single samples; wrap it: DataLoader\("),
        (lambda: 5, r"iterable of batches, got int"),
        (lambda: None, r"iterable of batches, got NoneType"),
        (lambda: [torch.ones(3, 4)], r"\(inputs, targets\) pair, got tensor \(3, 4\).*forward=.*loss_fn="),
        (lambda: [(torch.ones(2, 4),) * 3], r"pair, got tuple\(tensor \(2, 4\), .*loss_fn="),
        (lambda: {"x": torch.ones(2, 4)}, r"pair, got \{x: tensor \(2, 4\)\}; for other batches pass forward="),
    ],
)
def test_data_that_cannot_be_used_is_refused(make: Callable[[], Any], message: str) -> None:
    for evaluate in (Objective.check, Objective.value, lambda o: Hessian(o) @ torch.ones(o.space.size)):
        data = make()
        with pytest.raises(DataError, match=message):
            evaluate(objective(data) if data is not None else Objective(mlp(4, 3), None, criterion=nn.MSELoss()))


def test_an_exhausted_generator_is_refused() -> None:
    generator = (batch for batch in batches())
    objective(generator).value()
    with pytest.raises(DataError, match=r"one-shot iterator that is used up; pass a list or a DataLoader"):
        objective(generator).check()


@pytest.mark.parametrize(
    "batch",
    [{"ids": torch.ones(2, 4), "mask": torch.ones(3)}, {"x": torch.ones(2, 4), "scale": torch.tensor(1.0)}, {"a": 1}],
)
def test_a_weight_that_cannot_be_inferred_names_the_option(batch: dict) -> None:
    target = objective(batch, loss_fn=lambda m, b: m(torch.ones(2, 4)).mean())
    with pytest.raises(DataError, match=r"cannot tell how many samples .*(ids|x|a): .*pass weight="):
        target.check()
    assert math.isfinite(objective(batch, loss_fn=lambda m, b: m(torch.ones(2, 4)).mean(), weight=lambda b: 2).value())


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_means_nothing_is_refused(weight: float) -> None:
    with pytest.raises(DataError, match=rf"finite number >= 0, got {weight}"):
        objective(weight=lambda b: weight).check()


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(LossError, match=r"weights of all batches are zero.*weight="):
        objective(weight=lambda b: 0).value()


# --------------------------------------------------------------------------- parameters


def frozen() -> nn.Module:
    return mlp(4, 3, 3).requires_grad_(False)


def test_no_parameter_that_requires_gradients_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"no parameter that requires gradients; the model has 4: 0\.weight"):
        objective(model=frozen())
    with pytest.raises(ParameterError, match=r"the model has 0"):
        objective(model=nn.Tanh())


@pytest.mark.parametrize("params", ["head.*", nn.Linear(2, 2), nn.Parameter(torch.ones(1)), lambda n, p: False, []])
def test_a_selection_of_nothing_is_refused(params: Any) -> None:
    with pytest.raises(ParameterError, match=r"matches params=.*; the model has 4: 0\.weight, 0\.bias"):
        objective(params=params)


def test_frozen_parameters_are_never_selected() -> None:
    model = mlp(4, 3, 3)
    model[0].requires_grad_(False)
    assert objective(model=model, params="*").space.names == ("2.weight", "2.bias")
    with pytest.raises(ParameterError, match=r"requires gradients and matches params='0\.\*'"):
        objective(model=model, params="0.*")


@pytest.mark.parametrize("params", [3, 1.5, None])
def test_a_selection_of_an_unknown_kind_is_refused(params: Any) -> None:
    with pytest.raises(SettingError, match=r"name pattern, a module, a parameter, a predicate .*; got"):
        objective(params=[params] if params is None else params)


class Odd(nn.Module):
    """A model with an integer and a frozen complex parameter beside an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.index = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
        self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_integer_parameters_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"must be floating-point, index is torch\.int64"):
        objective(model=Odd(), params="index")
    assert objective(model=Odd(), params=["linear.*", "phase"]).space.size == 15
    assert objective(model=Odd()).space.size == 15


def test_parameters_on_several_devices_are_refused() -> None:
    model = mlp(4, 3, 3)
    model[2].to("meta")
    with pytest.raises(ParameterError, match=r"several devices \(cpu, meta\); select those of one device with params="):
        objective(model=model)
    assert objective(model=model, params="0.*").space.device == torch.device("cpu")


def test_parameters_that_are_not_initialised_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"0\.weight is not initialised yet; run one forward pass"):
        objective(model=nn.Sequential(nn.LazyLinear(3)))


# --------------------------------------------------------------------------- the loss


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda m, b: m(b[0]), r"loss_fn must return a scalar, got a tensor of shape \(5, 3\); reduce it"),
        (lambda m, b: 1.0, r"loss_fn must return a scalar tensor, got float"),
        (lambda m, b: None, r"got NoneType"),
        (lambda m, b: {"loss": m(b[0]).mean()}, r"got dict"),
        (lambda m, b: m(b[0]).argmax(), r"real floating-point scalar, got torch\.int64"),
        (lambda m, b: (1j * m(b[0])).mean(), r"got torch\.complex64"),
        (lambda m, b: m(b[0]).mean().detach(), r"not connected to the selected parameters.*detached.*no_grad"),
        (lambda m, b: b[0].mean(), r"not connected"),
        (lambda m, b: torch.tensor(m(b[0]).mean().item()), r"not connected"),
    ],
)
def test_a_loss_that_is_no_scalar_function_of_the_parameters_is_refused(loss_fn: Any, message: str) -> None:
    target = objective(loss_fn=loss_fn)
    for evaluate in (target.check, target.gradient, lambda: Hessian(target) @ torch.ones(target.space.size)):
        with pytest.raises(LossError, match=message):
            evaluate()


def test_the_loss_of_another_model_is_refused() -> None:
    other = mlp(4, 3)
    with pytest.raises(LossError, match=r"does not depend on any of the 4 selected parameters \(0\.weight, .*\.\.\.\)"):
        objective(loss_fn=lambda m, b: other(b[0]).mean()).check()


def test_an_unreduced_criterion_is_refused() -> None:
    with pytest.raises(LossError, match=r"criterion must return a scalar, got a tensor of shape \(5,\)"):
        objective(criterion=nn.CrossEntropyLoss(reduction="none")).check()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_a_value_and_no_error(value: float) -> None:
    target = objective(loss_fn=lambda m, b: m(b[0]).sum() * 0 + value)
    target.check()
    found = target.value()
    assert math.isnan(found) if math.isnan(value) else found == value


def test_what_needs_outputs_says_so() -> None:
    with pytest.raises(LossError, match=r"needs the model's outputs: pass criterion="):
        objective(loss_fn=lambda m, b: m(b[0]).mean()).outputs(0)
    assert objective().outputs(0).shape == (5, 3)


# --------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "test"}, r"mode must be one of 'eval', 'train', 'train_frozen'; got 'test'"),
        ({"mode": None}, r"got None"),
        ({"also": [1]}, r"also= takes modules, got int"),
        ({"criterion": None}, r"exactly one of criterion=.* and loss_fn=.*; got neither"),
        ({"criterion": 3}, r"criterion must be callable, got int"),
        ({"weight": 4}, r"weight must be callable, got int"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        objective(**options)


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match=r"torch\.nn\.Module, got function"):
        objective(model=lambda x: x)


def test_one_base_class_catches_them_all() -> None:
    for error in (DataError, LossError, ParameterError, SettingError):
        assert issubclass(error, LosscopeError) and issubclass(error, ValueError)


def test_repr_says_what_is_bound() -> None:
    target = objective(mode="train")
    assert repr(target) == "Objective(Sequential, 27 parameters, data unread, mode='train')"
    target.check()
    assert "data unread" in repr(target)
    target.value()
    assert "2 batches" in repr(target)


@pytest.mark.parametrize("way", ["lambda", "loss_fn"])
def test_a_loss_that_adds_over_samples_without_saying_so_is_summed(way: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    x, y = torch.randn(10, 3).double(), torch.randn(10, 2).double()
    criterion = lambda outputs, targets: (outputs - targets).square().sum()  # noqa: E731
    options = {"criterion": criterion} if way == "lambda" else {"loss_fn": lambda m, b: criterion(m(b[0]), b[1])}
    objective = Objective(model, [(x[:7], y[:7]), (x[7:], y[7:])], **options)
    assert objective.value() == pytest.approx(float(criterion(model(x), y)))
    assert objective.loss.summed
    mean = Objective(model, [(x[:7], y[:7]), (x[7:], y[7:])], criterion=lambda o, t: (o - t).square().mean())
    assert mean.value() == pytest.approx(float((model(x) - y).square().mean()))
    assert not mean.loss.summed
