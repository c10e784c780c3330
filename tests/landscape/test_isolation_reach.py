"""What the loss reaches beside the model: other modules, generators and objects of the user's."""

import functools
import random
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isolation_cases import batches, described, measure, state_of
from losscope.landscape import Hessian, Objective
from losscope.landscape.isolation import isolated

# --------------------------------------------------------------------------- other modules


def _eval_statistics(norm: nn.Module) -> list[Any]:
    return state_of(norm)


class Trainer:
    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - self.teacher(batch[0])).square().mean()

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.loss(model, batch)


_TEACHER = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def _through_global(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - _TEACHER(batch[0])).square().mean()


def _through_helper(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return _through_global(model, batch)


def _distilled(teacher: nn.Module, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - teacher(batch[0])).square().mean()


WAYS_TO_A_TEACHER = {
    "closure": lambda t: lambda m, b: (m(b[0]) - t(b[0])).square().mean(),
    "list in a closure": lambda t: (lambda ts: lambda m, b: (m(b[0]) - ts[0](b[0])).square().mean())([t]),
    "dict in a closure": lambda t: (lambda ts: lambda m, b: (m(b[0]) - ts["a"](b[0])).square().mean())({"a": t}),
    "partial": lambda t: functools.partial(_distilled, t),
    "bound method": lambda t: Trainer(t).loss,
    "callable object": lambda t: Trainer(t),
    "object in a closure": lambda t: (lambda trainer: lambda m, b: trainer.loss(m, b))(Trainer(t)),
    "global": lambda t: _through_global,
    "global of a helper": lambda t: _through_helper,
    "decorated": lambda t: functools.wraps(_distilled)(lambda m, b: _distilled(t, m, b)),
    "also": lambda t: _distilled_unseen,
}
_UNSEEN: dict[str, Any] = {}


def _distilled_unseen(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return _distilled(__import__("sys").modules[__name__].__dict__["_UNSEEN"]["teacher"], model, batch)


@pytest.mark.parametrize("way", WAYS_TO_A_TEACHER)
def test_modules_that_the_loss_reaches_are_isolated_too(way: str) -> None:
    teacher = _TEACHER if "global" in way else nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model = nn.Linear(4, 3)
    loss_fn = WAYS_TO_A_TEACHER[way](teacher)
    options: dict[str, Any] = {}
    if way == "also":
        monkey = functools.partial(_UNSEEN.__setitem__, "teacher")
        monkey(teacher)
        options["also"] = [teacher]
    before = state_of(model, teacher)
    for mode in ("eval", "train"):
        measure(Objective(model, batches(), loss_fn=loss_fn, mode=mode, **options))
        assert state_of(model, teacher) == before
    _UNSEEN.clear()


def test_a_module_hidden_in_a_plain_attribute_is_isolated_too() -> None:
    """As people keep a teacher out of ``parameters()``."""

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)
            self.teachers = [nn.BatchNorm1d(4)]
            self.__dict__["hidden"] = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.hidden(self.body(self.teachers[0](x)))

    model = Student()
    before = state_of(model, model.teachers[0], model.hidden)
    measure(Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train"))
    assert state_of(model, model.teachers[0], model.hidden) == before


def test_a_list_that_modules_share_is_still_shared() -> None:
    """An auxiliary loss that a layer appends and the loss reads."""

    class Layer(nn.Module):
        def __init__(self, losses: list[Tensor]) -> None:
            super().__init__()
            self.linear, self.losses = nn.Linear(4, 3), losses

        def forward(self, x: Tensor) -> Tensor:
            self.losses.append(self.linear.weight.square().sum())
            return self.linear(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[Tensor] = []
            self.layer = Layer(self.losses)

        def forward(self, x: Tensor) -> Tensor:
            self.losses.clear()
            return self.layer(x)

    def loss_fn(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1]) + sum(model.losses)

    model = Model()
    expected = float(loss_fn(model, batches()[0]).detach())
    before = state_of(model)
    assert Objective(model, batches()[0], loss_fn=loss_fn).value() == pytest.approx(expected, rel=1e-6)
    assert state_of(model) == before


def test_two_players_do_not_disturb_each_other() -> None:
    generator = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    critic = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before = state_of(generator, critic)
    measure(Objective(generator, batches(), loss_fn=lambda m, b: -critic(m(b[0])).mean(), mode="train"))
    measure(Objective(critic, batches(), loss_fn=lambda m, b: m(generator(b[0])).mean(), mode="train"))
    assert state_of(generator, critic) == before


# --------------------------------------------------------------------------- generators and objects of the user's


def draw(rng: Any) -> float:
    """One number from a generator of any kind."""
    if isinstance(rng, torch.Generator):
        return float(torch.rand((), generator=rng))
    return float(rng.random() if hasattr(rng, "random") else rng.random_sample())


def told(rng: Any) -> str:
    """The state of a generator of any kind."""
    if isinstance(rng, torch.Generator):
        return str(rng.get_state().tolist())
    if isinstance(rng, np.random.Generator):
        return str(rng.bit_generator.state)
    return str(rng.get_state() if isinstance(rng, np.random.RandomState) else rng.getstate())


GENERATORS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "numpy": lambda: np.random.default_rng(3),
    "numpy, old": lambda: np.random.RandomState(3),
    "python": lambda: random.Random(3),
}
_RNG = np.random.default_rng(9)


class Noisy(nn.Module):
    def __init__(self, rng: Any) -> None:
        super().__init__()
        self.body, self.kept = nn.Linear(4, 3), {"rng": [rng]}

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * (1 + draw(self.kept["rng"][0]))


class NoisyLoss:
    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return noisy_loss(self.rng, model, batch)


def noisy_loss(rng: Any, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]) * (1 + draw(rng)), batch[1])


def noisy_with_a_global(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return sum(noisy_loss(_RNG, model, batch) for _ in range(2)) / 2


def with_default(rng: Any) -> Callable[..., Tensor]:
    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor], rng: Any = rng) -> Tensor:
        return noisy_loss(rng, model, batch)

    return loss_fn


WAYS_TO_A_GENERATOR: dict[str, Callable[[Any], dict[str, Any]]] = {
    "module": lambda rng: {"model": Noisy(rng), "criterion": nn.CrossEntropyLoss()},
    "closure": lambda rng: {"loss_fn": lambda m, b: noisy_loss(rng, m, b)},
    "global": lambda rng: {"loss_fn": noisy_with_a_global},
    "default": lambda rng: {"loss_fn": with_default(rng)},
    "bound method": lambda rng: {"loss_fn": NoisyLoss(rng).loss},
    "partial": lambda rng: {"loss_fn": functools.partial(noisy_loss, rng)},
    "criterion": lambda rng: {"criterion": lambda o, t: F.cross_entropy(o * (1 + draw(rng)), t)},
    "forward": lambda rng: {
        "forward": lambda m, b: m(b[0]) * (1 + draw(rng)), "criterion": F.cross_entropy, "weight": lambda b: len(b[0])
    },
    "targets": lambda rng: {
        "targets": lambda b: (b[1] + int(3 * draw(rng))) % 3, "criterion": F.cross_entropy, "weight": lambda b: 1
    },
    "weight": lambda rng: {
        "loss_fn": lambda m, b: F.cross_entropy(m(b[0]), b[1]), "weight": lambda b: 1 + draw(rng)
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("way", WAYS_TO_A_GENERATOR)
def test_generators_of_the_model_and_the_loss_are_not_consumed(way: str, kind: str) -> None:
    rng = _RNG if way == "global" else GENERATORS[kind]()
    before = told(rng)
    options = WAYS_TO_A_GENERATOR[way](rng)
    model = options.pop("model", None) or nn.Linear(4, 3)
    objective = Objective(model, batches(), **options)
    measure(objective)
    assert told(rng) == before
    V = torch.randn(objective.space.size)
    operator = Hessian(objective)
    assert torch.equal(operator @ V, operator @ V)
    assert objective.value() == objective.value()
    draw(rng)
    if way != "weight":  # which is asked once, where the data is read
        assert Objective(model, batches(), **options).value() == objective.value()
    before = told(rng)

    def fails() -> None:
        with objective.isolated():
            objective.value()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert told(rng) == before


class CountingTrainer:
    """Its loss depends on how often it was called, as a warm-up or a running scale does."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.optimizer = model, torch.optim.SGD(model.parameters(), lr=0.1)
        self.step, self.history, self.table, self.names = 0, [], {"calls": 0}, {"a"}
        self.helper = SimpleNamespace(calls=0)
        self.fails = False

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.step += 1
        self.helper.calls += 1
        self.history.append(self.step)
        self.table["calls"] += 1
        self.names.add(str(self.step))
        self.last = model(batch[0])
        if self.fails:
            raise ZeroDivisionError("on purpose")
        return F.cross_entropy(self.last, batch[1]) * self.step * self.table["calls"]

    def count(self, batch: tuple[Tensor, Tensor]) -> int:
        self.step += 1
        return len(batch[0])


WAYS_TO_A_TRAINER: dict[str, Callable[[CountingTrainer], dict[str, Any]]] = {
    "bound method": lambda t: {"loss_fn": t.loss},
    "closure": lambda t: {"loss_fn": lambda m, b: t.loss(m, b)},
    "partial": lambda t: {"loss_fn": functools.partial(CountingTrainer.loss, t)},
    "list": lambda t: (lambda ts: {"loss_fn": lambda m, b: ts[0].loss(m, b)})([t]),
    "weight": lambda t: {"loss_fn": lambda m, b: F.cross_entropy(m(b[0]), b[1]), "weight": t.count},
}


@pytest.mark.parametrize("way", WAYS_TO_A_TRAINER)
def test_objects_that_the_loss_is_bound_to_do_not_advance(way: str) -> None:
    model = nn.Linear(4, 3)
    trainer = CountingTrainer(model)
    trainer.loss(model, batches()[0])
    trainer.optimizer.step()
    before = described(vars(trainer)), list(vars(trainer)), vars(trainer.helper).copy()
    objective = Objective(model, batches(), **WAYS_TO_A_TRAINER[way](trainer))
    measure(objective)
    V, operator = torch.randn(objective.space.size), Hessian(objective)
    assert torch.equal(operator @ V, operator @ V)
    assert objective.value() == objective.value()
    assert (described(vars(trainer)), list(vars(trainer)), vars(trainer.helper)) == before
    trainer.fails = True
    before = described(vars(trainer)), list(vars(trainer)), vars(trainer.helper).copy()
    if way != "weight":
        with pytest.raises(ZeroDivisionError):
            objective.value()
    assert (described(vars(trainer)), list(vars(trainer)), vars(trainer.helper)) == before


def test_what_is_written_between_evaluations_stays() -> None:
    """By a probe that is a method of the same object, inside the isolation."""
    trainer = CountingTrainer(nn.Linear(4, 3))
    objective = Objective(trainer.model, batches(), loss_fn=trainer.loss)
    with objective.isolated():
        trainer.history.append(objective.value())
        trainer.found = objective.value()
    assert trainer.history == [trainer.found] and trainer.step == 0


TOTAL = 0.0


def test_variables_that_the_loss_assigns_to_are_put_back():
    mean, batch = 0.0, batches()[0]

    def tracked(value: float) -> None:
        nonlocal mean
        mean = 0.9 * mean + 0.1 * value

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        global TOTAL
        loss = F.cross_entropy(model(batch[0]), batch[1])
        tracked(float(loss.detach()))
        TOTAL += 1
        return loss

    objective = Objective(nn.Linear(4, 3), [batch], loss_fn=loss_fn, weight=lambda _: 1)
    loss_fn(objective.model, batch)
    once = mean, TOTAL
    measure(objective)
    assert (mean, TOTAL) == once


def test_containers_that_the_loss_writes_on_are_put_back():
    seen: list[float] = []
    counts = {"calls": 0}

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        seen.append(float(loss.detach()))
        counts["calls"] += 1
        return loss

    objective = Objective(nn.Linear(4, 3), batches(), loss_fn=loss_fn, weight=lambda _: 1)
    loss_fn(objective.model, batches()[0])
    once = list(seen)
    measure(objective)
    assert seen == once and counts == {"calls": 1}


def test_parameters_and_modules_that_a_forward_pass_exchanges_are_put_back():
    class Exchanging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.last(self.first(x))
            self.first.weight = nn.Parameter(2 * self.first.weight.detach())
            self.last.extra = nn.Linear(1, 1)
            return out

    model = Exchanging()
    before = [(name, id(p)) for name, p in model.named_parameters()]
    with isolated(model):
        model(torch.ones(1, 2))
    assert [(name, id(p)) for name, p in model.named_parameters()] == before


def test_modules_of_torchscript_are_left_as_they_are():
    class Counting(nn.Module):
        calls: int
        seen: list[torch.Tensor]

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.calls, self.seen = nn.BatchNorm1d(2), 0, [torch.zeros(1)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.seen.append(x)
            return self.norm(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        model = torch.jit.script(Counting())
    before = {name: (id(b), b.clone()) for name, b in model.named_buffers()}
    for mode, inside in (("eval", False), ("train", True)):
        with isolated(model, mode=mode):
            assert model.training is model.norm.training is inside
            model(torch.randn(4, 2))
            assert model.calls == 1
        assert model.training is model.norm.training is True
        assert (model.calls, len(model.seen)) == (0, 1)
        assert all(torch.equal(b, before[name][1]) for name, b in model.named_buffers())
