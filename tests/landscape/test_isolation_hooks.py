"""Hooks that only watch do not see a measurement; those that compute are part of the function."""

import functools
import sys
from collections.abc import Callable
from queue import Queue
from types import SimpleNamespace
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


class Extractor(nn.Module):
    """Collects features by hooks on its own layers, in each of the ways this is written."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.body, self.last, self.features = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3), {}

        def kept(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.features["hidden"] = output

        hooks = {
            "function": kept, "method": self.keep, "partial": functools.partial(kept),
            "lambda": lambda m, i, o: self.features.update(hidden=o),
        }  # fmt: skip
        self.body.register_forward_hook(hooks[way])

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features["hidden"] = output

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.last(self.body(x)), self.features["hidden"]


def _plain_curvature(body: nn.Module, last: nn.Module, v: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of cross-entropy and the mean square of the features, without any hook."""
    body = nn.Sequential(*body)
    loss = F.cross_entropy(last(body(batch[0])), batch[1]) + body(batch[0]).square().mean()
    parameters = [*body.parameters(), *last.parameters()]
    g = torch.cat([p.flatten() for p in torch.autograd.grad(loss, parameters, create_graph=True)])
    return torch.cat([h.flatten() for h in torch.autograd.grad(g @ v, parameters)])


@pytest.mark.parametrize("way", ["function", "method", "partial", "lambda"])
def test_hooks_that_collect_features_for_their_own_module_are_part_of_the_function(way: str) -> None:
    torch.manual_seed(0)
    model, batch = Extractor(way), (torch.randn(6, 4), torch.randint(3, (6,)))
    model(batch[0])
    trained = model.features["hidden"]

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        outputs, hidden = model(batch[0])
        return F.cross_entropy(outputs, batch[1]) + hidden.square().mean()

    H = Hessian(Objective(model, [batch], loss_fn=loss_fn, weight=lambda _: 1))
    v = torch.randn(H.shape[0])
    torch.testing.assert_close(H @ v, _plain_curvature(model.body, model.last, v, batch), rtol=1e-4, atol=1e-5)
    assert model.features["hidden"] is trained


@pytest.mark.parametrize("kept", [dict, list, SimpleNamespace])
def test_hooks_that_collect_what_the_loss_reads_are_part_of_the_function(kept: type) -> None:
    torch.manual_seed(0)
    body, last = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)
    model, batch, features, unread = nn.Sequential(body, last), (torch.randn(6, 4), torch.randint(3, (6,))), kept(), []

    def collected(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if kept is list:
            features.append(output)
        elif kept is dict:
            features["hidden"] = output
        else:
            features.hidden = output

    def watching(module: nn.Module, inputs: Any, output: Tensor) -> None:
        unread.append(output)

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        outputs = model(batch[0])
        hidden = features[-1] if kept is list else features["hidden"] if kept is dict else features.hidden
        return F.cross_entropy(outputs, batch[1]) + hidden.square().mean()

    body.register_forward_hook(collected)
    body.register_forward_hook(watching)
    model(batch[0])
    before = repr(features)
    H = Hessian(Objective(model, [batch], loss_fn=loss_fn, weight=lambda _: 1))
    v = torch.randn(H.shape[0])
    torch.testing.assert_close(H @ v, _plain_curvature(body, last, v, batch), rtol=1e-4, atol=1e-5)
    assert repr(features) == before
    assert len(unread) == 1


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
