"""A measurement leaves no trace: everything that a forward pass may write is as it was, bit for bit."""

import functools
import random
import sys
from collections.abc import Callable, Iterator
from queue import Queue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, Subset, TensorDataset, WeightedRandomSampler

from losscope.landscape import Hessian, Objective, SettingError, top_eigenpairs, trace
from losscope.landscape.isolation import isolated

# --------------------------------------------------------------------------- what is compared


def described(value: Any) -> Any:
    """A value by identity, and by content as far as it can be written in place."""
    if isinstance(value, Tensor):
        grad = None if value.grad_fn is not None or value.grad is None else described(value.grad)
        bits = value.detach().clone().contiguous().view(-1).tolist()
        return id(value), value.data_ptr(), value._version, value.requires_grad, str(bits), grad
    if isinstance(value, dict):
        return id(value), [(key, described(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return id(value), [described(item) for item in value]
    if isinstance(value, nn.Module):
        return id(value)
    return (id(value), str(value)) if isinstance(value, set) else (type(value).__name__, str(value))


def state_of(*roots: nn.Module) -> list[Any]:
    """Everything in every module: parameters, gradients, buffers, flags, hooks, plain attributes."""
    return [(id(m), described(dict(vars(m)))[1]) for root in roots for m in root.modules()]


def streams() -> tuple[str, str, bytes]:
    return str(random.getstate()), str(np.random.get_state()), bytes(torch.get_rng_state().tolist())  # noqa: NPY002


def measure(objective: Objective) -> None:
    """Everything that is measured at one point."""
    objective.check()
    objective.value_and_gradient()
    operator = Hessian(objective)
    operator.value_and_gradient()
    top_eigenpairs(operator, tol=0.5, max_matvecs=3, seed=0)
    trace(operator, min_matvecs=2, max_matvecs=2, seed=0)


class Busy(nn.Module):
    """A model that writes everything a forward pass can write."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.frozen_norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(6, 3)
        self.register_buffer("average", torch.zeros(6))
        self.register_buffer("replaced", torch.zeros(1))
        self.calls = 0
        self.history: list[float] = []
        self.table = {"sum": 0.0, "inner": {"log": []}}
        self.seen: set[int] = set()
        self.running = torch.zeros(6)
        self.kept = [torch.zeros(6)]
        self.frozen_norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.frozen_norm(self.norm(self.first(x)))).tanh()
        x = x * (1 + 0.01 * random.random() + 0.01 * float(np.random.rand()))  # noqa: NPY002
        with torch.no_grad():
            self.average.mul_(0.9).add_(x.mean(dim=0), alpha=0.1)
            self.replaced = self.replaced + 1
            self.running += 1
            self.kept[0].add_(1)
        self.calls += 1
        self.history.append(float(x.detach().sum()))
        self.table["sum"] += 1.0
        self.table["inner"]["log"].append(self.calls)
        self.seen.add(self.calls)
        self.new_attribute = x.detach()
        return self.last(x)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (6, 6, 3)]


def busy_with_gradients() -> Busy:
    model = Busy()
    F.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    model.last.bias.grad = None
    model.first.bias.requires_grad_(False)
    return model


# --------------------------------------------------------------------------- the model


@pytest.mark.parametrize("count", [1, 3], ids=["one batch", "three batches"])
@pytest.mark.parametrize("mode", ["eval", "train", "train_frozen"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_nothing_in_the_model_changes(mode: str, training: bool, count: int) -> None:
    model = busy_with_gradients().train(training)
    model.frozen_norm.eval()
    before, random_state = state_of(model), streams()
    measure(Objective(model, batches()[:count], criterion=nn.CrossEntropyLoss(), mode=mode))
    assert state_of(model) == before
    assert streams() == random_state


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_nothing_changes_when_the_evaluation_fails_half_way(fails_at: int) -> None:
    model = busy_with_gradients()
    countdown = iter(range(1, 100))

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        if next(countdown) >= fails_at:
            raise ZeroDivisionError("on purpose")
        return loss

    before, random_state = state_of(model), streams()
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        measure(Objective(model, batches(), loss_fn=loss_fn, mode="train"))
    assert state_of(model) == before
    assert streams() == random_state


def test_a_failure_while_reading_the_data_leaves_no_trace() -> None:
    model = busy_with_gradients()

    def data() -> Iterator[tuple[Tensor, Tensor]]:
        torch.rand(1), random.random()
        yield batches()[0]
        raise OSError("disk")

    before, random_state = state_of(model), streams()
    with pytest.raises(OSError, match="disk"):
        Objective(model, data(), criterion=nn.CrossEntropyLoss()).value()
    assert state_of(model) == before
    assert streams() == random_state


def test_checking_a_generator_leaves_no_trace() -> None:
    model = busy_with_gradients()
    before, random_state = state_of(model), streams()
    Objective(model, (batch for batch in batches()), criterion=nn.CrossEntropyLoss(), mode="train").check()
    assert state_of(model) == before
    assert streams() == random_state


def test_values_to_evaluate_at_are_exchanged_and_not_written() -> None:
    model = busy_with_gradients()
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train")
    at = {p: torch.full_like(p, 0.1) for p in model.parameters()}
    live, before, values = objective.value(), state_of(model), [described(value) for value in at.values()]
    with objective.isolated(at=at):
        there = objective.value()
        Hessian(objective) @ torch.ones(objective.space.size)
    assert there != live and objective.value() == live
    assert state_of(model) == before
    assert [described(value) for value in at.values()] == values
    with pytest.raises(RuntimeError), objective.isolated(at=at):
        raise RuntimeError
    assert state_of(model) == before


def test_a_pending_backward_pass_still_works_and_gives_the_same_gradients() -> None:
    (x, y), other = batches()[0], batches()[1]
    gradients = []
    for watched in (False, True):
        torch.manual_seed(1)
        model = Busy()
        torch.manual_seed(2), random.seed(2), np.random.seed(2)  # noqa: NPY002
        loss = F.cross_entropy(model(x), y) + F.cross_entropy(model(other[0]), other[1])
        if watched:
            objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train")
            measure(objective)
            with objective.isolated(at={p: torch.zeros_like(p) for p in model.parameters()}):
                objective.value()
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_training_is_the_same_to_the_bit() -> None:
    """The whole of it: a loop with momentum, dropout and batch norm, measured after every step or never."""
    finals = []
    for watched in (False, True):
        torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
        model = Busy()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for x, y in batches() * 2:
            optimizer.zero_grad()
            F.cross_entropy(model(x + torch.randn_like(x)), y).backward()
            optimizer.step()
            if watched:
                measure(Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train"))
        finals.append([*model.state_dict().values(), torch.tensor(model.history), torch.rand(1)])
    assert all(map(torch.equal, *finals))


def test_each_evaluation_starts_from_the_same_state() -> None:
    """Spectral norm in train mode moves its vectors at every pass; the operator must not drift with them."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train")
    operator = Hessian(objective)
    V = torch.randn(objective.space.size)
    with objective.isolated():
        first, second = operator @ V, operator @ V
    assert torch.equal(first, second)
    assert torch.equal(operator @ V, first)


# --------------------------------------------------------------------------- modes


@pytest.mark.parametrize(
    ("mode", "norm", "frozen_norm", "drop"),
    [("eval", False, False, False), ("train", True, False, True), ("train_frozen", False, False, True)],
)
def test_flags_inside_are_those_of_the_mode(mode: str, norm: bool, frozen_norm: bool, drop: bool) -> None:
    """A batch norm that the training loop keeps frozen stays frozen in train mode."""
    model = Busy()
    with isolated(model, mode=mode):
        assert (model.norm.training, model.frozen_norm.training, model.drop.training) == (norm, frozen_norm, drop)
    assert (model.norm.training, model.frozen_norm.training, model.drop.training) == (True, False, True)


def test_train_mode_of_a_model_in_eval_mode_is_all_on() -> None:
    model = Busy().eval()
    with isolated(model, mode="train"):
        assert all(m.training for m in model.modules())
    assert not any(m.training for m in model.modules())


def test_an_overridden_train_method_is_not_called() -> None:
    class Refuses(nn.Linear):
        def train(self, mode: bool = True) -> nn.Module:
            raise AssertionError("called")

    measure(Objective(Refuses(4, 3), batches(), criterion=nn.CrossEntropyLoss(), mode="eval"))


def test_a_mode_that_means_nothing_is_refused() -> None:
    with (
        pytest.raises(SettingError, match="'eval', 'train', 'train_frozen'; got 'test'"),
        isolated(Busy(), mode="test"),
    ):
        pass


# --------------------------------------------------------------------------- hooks


class Observer:
    """Hooks that only watch, in the ways people write them."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls.append("method")

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls.append("object")

    def hooks(self) -> list[Callable[..., Any]]:
        def plain(module: nn.Module, inputs: Any, output: Any) -> None:
            self.calls.append("function")

        def early(module: nn.Module, inputs: Any, output: Any) -> None:
            if module is None:
                return
            self.calls.append("early")

        @torch.no_grad()
        def decorated(module: nn.Module, inputs: Any, output: Any) -> None:
            self.calls.append("decorated")

        def named(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
            self.calls.append(name)

        return [
            plain, early, decorated, self, self.forward,
            functools.partial(named, "partial"), lambda m, i, o: self.calls.append("lambda"),
        ]  # fmt: skip


@pytest.mark.parametrize("index", range(7))
def test_hooks_that_watch_do_not_see_the_measurement(index: int) -> None:
    observer, model = Observer(), Busy()
    hook = observer.hooks()[index]
    model.first.register_forward_hook(hook)
    model.first.register_forward_pre_hook(lambda m, i: observer.calls.append("pre"))
    model.last.register_full_backward_hook(lambda m, i, o: observer.calls.append("backward"))
    model.last.register_full_backward_pre_hook(lambda m, o: observer.calls.append("backward pre"))
    before = state_of(model)
    measure(Objective(model, batches(), criterion=nn.CrossEntropyLoss()))
    assert observer.calls == []
    assert state_of(model) == before
    model(batches()[0][0]).sum().backward()
    assert len(observer.calls) == 4


def test_hooks_on_all_modules_do_not_see_the_measurement() -> None:
    calls: list[str] = []
    handles = [
        nn.modules.module.register_module_forward_hook(lambda m, i, o: calls.append("forward")),
        nn.modules.module.register_module_forward_pre_hook(lambda m, i: calls.append("pre")),
        nn.modules.module.register_module_full_backward_hook(lambda m, i, o: calls.append("backward")),
    ]
    try:
        model = Busy()
        measure(Objective(model, batches(), criterion=nn.CrossEntropyLoss()))
        assert calls == []
        model(batches()[0][0]).sum().backward()
        assert set(calls) == {"forward", "pre", "backward"}
    finally:
        for handle in handles:
            handle.remove()


def test_hooks_on_tensors_are_neither_called_nor_lost() -> None:
    model, calls = Busy(), []
    for p in model.parameters():
        p.register_hook(lambda g: calls.append("gradient"))
        p.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    before = state_of(model)
    measure(Objective(model, batches(), criterion=nn.CrossEntropyLoss()))
    assert calls == []
    assert state_of(model) == before
    model(batches()[0][0]).sum().backward()
    assert calls.count("gradient") == calls.count("accumulated") == len(list(model.parameters()))


def test_a_hook_that_returns_a_value_is_part_of_the_function() -> None:
    def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return 2 * output

    model = nn.Linear(4, 1)
    objective = Objective(model, batches()[0][0], loss_fn=lambda m, x: m(x).mean(), weight=lambda _: 1)
    objective.data = [objective.data]
    once = objective.value()
    model.register_forward_hook(doubled)
    assert objective.value() == pytest.approx(2 * once, rel=1e-6)


def test_a_lambda_hook_that_computes_is_part_of_the_function() -> None:
    model = nn.Linear(4, 1)
    options: dict[str, Any] = {"loss_fn": lambda m, b: m(b[0]).square().mean(), "weight": lambda _: 1}
    plain = Hessian(Objective(model, [batches()[0]], **options)) @ torch.ones(5)
    hook = model.register_forward_hook(lambda m, i, o: 3 * o)
    tripled = Objective(model, [batches()[0]], **options)
    torch.testing.assert_close(Hessian(tripled) @ torch.ones(5), 9 * plain)
    assert tripled.value() == pytest.approx(float(model(batches()[0][0]).square().mean().detach()), rel=1e-6)
    hook.remove()
    model.register_forward_pre_hook(lambda m, i: (2 * i[0],))
    doubled = Objective(model, [batches()[0]], **options)
    assert doubled.value() == pytest.approx(float(model(batches()[0][0]).square().mean().detach()), rel=1e-6)


def test_a_lambda_hook_that_records_is_not_called() -> None:
    model, outputs, queue, table = nn.Linear(4, 3), [], Queue(), {}
    model.register_forward_hook(lambda m, i, o: outputs.append(o))
    model.register_forward_hook(lambda m, i, o: queue.put(o))
    model.register_forward_hook(lambda m, i, o: table.update(last=o))
    model.register_forward_hook(lambda m, i, o: table.__setitem__("last", o))
    model.register_forward_hook(lambda m, i, o: print("seen", file=sys.stderr))
    measure(Objective(model, batches(), criterion=nn.CrossEntropyLoss()))
    assert outputs == [] and table == {} and queue.empty()


def _weight_norm(layer: nn.Linear) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    "wrap",
    [
        _weight_norm,
        parametrizations.weight_norm,
        nn.utils.spectral_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        functools.partial(prune.random_unstructured, name="weight", amount=0.5),
    ],
    ids=["weight norm (old)", "weight norm", "spectral norm (old)", "spectral norm", "orthogonal", "pruning"],
)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_reparametrised_layers_compute_what_they_compute(wrap: Callable[[nn.Linear], Any], mode: str) -> None:
    layer = nn.Linear(4, 3)
    wrap(layer)
    layer.train(mode == "train")
    with torch.no_grad():
        next(layer.parameters()).mul_(1.3)  # so that a stale derived weight would show
    x, y = batches()[0]
    before = state_of(layer)
    objective = Objective(layer, (x, y), criterion=nn.CrossEntropyLoss(), mode=mode)
    value = objective.value()
    measure(objective)
    assert state_of(layer) == before
    assert value == pytest.approx(float(F.cross_entropy(layer(x), y).detach()), rel=1e-6)


# --------------------------------------------------------------------------- ambient state


def test_autocast_is_off_inside_and_as_it_was_outside() -> None:
    model = nn.Linear(4, 3)
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss())
    V = torch.randn(objective.space.size)
    full = Hessian(objective) @ V
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Hessian(objective) @ V, full)
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert model(batches()[0][0]).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_on_inside_and_as_they_were_outside(context: Callable[[], Any]) -> None:
    objective = Objective(Busy(), batches(), criterion=nn.CrossEntropyLoss())
    value, gradient = objective.value_and_gradient()
    with context():
        assert not torch.is_grad_enabled()
        again = objective.value_and_gradient()
        assert not torch.is_grad_enabled()
    assert again[0] == value and torch.equal(again[1], gradient)


def test_the_choice_of_attention_kernels_is_as_it_was() -> None:
    backends = torch.backends.cuda
    flags = (backends.flash_sdp_enabled, backends.math_sdp_enabled, backends.mem_efficient_sdp_enabled)
    backends.enable_flash_sdp(False)
    try:
        before = [flag() for flag in flags]
        measure(Objective(Busy(), batches(), criterion=nn.CrossEntropyLoss()))
        assert [flag() for flag in flags] == before
    finally:
        backends.enable_flash_sdp(True)


def test_a_compiled_model_is_not_compiled_anew() -> None:
    compilations = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        compilations.append(graph)
        return graph.forward

    model = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), backend=backend)
    x = batches()[0][0]
    first = model(x)
    count = len(compilations)
    assert count >= 1
    measure(Objective(model, batches(), criterion=nn.CrossEntropyLoss()))
    assert torch.equal(model(x), first)
    assert len(compilations) == count


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


# --------------------------------------------------------------------------- loaders


class EpochSampler(Sampler):
    """Shuffles by its own count of epochs, and keeps a list of what it gave."""

    def __init__(self) -> None:
        self.epoch, self.given = 0, []

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        for index in np.random.default_rng(self.epoch).permutation(12).tolist():
            self.given.append(index)
            yield index

    def __len__(self) -> int:
        return 12


class CountingSet(Dataset):
    def __init__(self) -> None:
        self.seen, self.cache = 0, {}

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.seen += 1
        self.cache[index] = self.seen
        return torch.full((4,), float(index + 100 * self.seen)), index % 3


class CountingBatches:
    def __init__(self) -> None:
        self.epoch, self.loader = 0, DataLoader(CountingSet(), batch_size=4, sampler=EpochSampler())

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        for x, y in self.loader:
            yield x + self.epoch, y


class Augmented(Dataset):
    """Items with noise from a NumPy generator of the data set's own, from Python's and from torch's stream."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = self.rng.normal() + random.random() + float(torch.rand(()))
        return torch.full((4,), float(index)) + noise, index % 3


def _loader(kind: str) -> DataLoader:
    plain = TensorDataset(torch.arange(48.0).view(12, 4), torch.arange(12) % 3)
    weights = torch.arange(1.0, 13)
    return {
        "global shuffle": lambda: DataLoader(plain, batch_size=4, shuffle=True),
        "own generator": lambda: DataLoader(
            plain, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)
        ),
        "augmented": lambda: DataLoader(Augmented(), batch_size=4, shuffle=True),
        "weighted sampler": lambda: DataLoader(plain, batch_size=4, sampler=WeightedRandomSampler(weights, 12)),
        "weighted sampler with its own generator": lambda: DataLoader(
            plain,
            batch_size=4,
            sampler=WeightedRandomSampler(weights, 12, generator=torch.Generator().manual_seed(3)),
        ),
        "counting sampler": lambda: DataLoader(plain, batch_size=4, sampler=EpochSampler()),
        "counting batch sampler": lambda: DataLoader(plain, batch_sampler=BatchSampler(EpochSampler(), 4, False)),
        "counting data set": lambda: DataLoader(Subset(CountingSet(), range(12)), batch_size=4),
        "counting batches": CountingBatches,
        "two workers": lambda: DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=2),
        "persistent worker": lambda: DataLoader(
            Augmented(), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True
        ),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "global shuffle", "own generator", "augmented", "weighted sampler", "weighted sampler with its own generator",
        "two workers", "persistent worker", "counting sampler", "counting batch sampler", "counting data set",
        "counting batches",
    ],
)  # fmt: skip
def test_the_loop_sees_the_same_data_while_its_loader_is_measured_on(kind: str) -> None:
    """Measured before the loop, in the middle of an epoch, and between epochs."""
    seen: list[list[Tensor]] = []
    model = nn.Linear(4, 3)
    for watched in (False, True):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
        loader, order = _loader(kind), []

        def look(loader: DataLoader = loader, watched: bool = watched) -> None:
            if watched:
                Objective(model, loader, criterion=nn.CrossEntropyLoss()).value()

        look()
        for _ in range(2):
            for step, (x, _) in enumerate(loader):
                order += [x, torch.rand(1), torch.tensor(random.random())]
                if step == 1:
                    look()
            look()
        seen.append(order)
    assert len(seen[0]) == len(seen[1]) == 18
    assert all(map(torch.equal, *seen))


@pytest.mark.parametrize("kind", ["global shuffle", "augmented", "weighted sampler"])
def test_snapshots_over_time_see_the_same_data(kind: str) -> None:
    loader, model = _loader(kind), nn.Linear(4, 3)
    first = [b.content[0] for b in Objective(model, loader, criterion=nn.CrossEntropyLoss()).batches]
    torch.rand(5)
    second = [b.content[0] for b in Objective(model, loader, criterion=nn.CrossEntropyLoss()).batches]
    assert all(map(torch.equal, first, second))


def test_the_users_batches_are_not_written() -> None:
    """Also by a model that works in place on its input."""
    x, y = batches()[0]
    kept = x.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))
    objective = Objective(model, (x, y), criterion=nn.CrossEntropyLoss())
    values = [objective.value(), objective.value()]
    assert torch.equal(x, kept)
    assert values[0] == values[1]
