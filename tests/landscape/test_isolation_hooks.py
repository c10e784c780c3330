"""Hooks that only watch do not see a measurement; those that compute are part of the function."""

import functools
import sys
from collections.abc import Callable
from queue import Queue
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from isolation_cases import Busy, batches, measure, state_of
from losscope.landscape import Hessian, Objective


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
