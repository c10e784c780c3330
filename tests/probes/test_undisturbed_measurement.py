"""One measurement leaves no trace, whatever fails in it, and may come between a forward and a backward pass."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.probes import Sharpness, Snapshot, Spectrum, Stability, Trace, watch
from probe_cases import CLASSES, MODELS, cnn, everything, loader, seed_everything, streams

pytestmark = pytest.mark.filterwarnings("ignore:losscope. .* is measured in mode=")  # dropout in eval mode


class Ready:
    """A CNN in the middle of a training: gradients, momentum, user's hooks, a frozen parameter, mixed flags."""

    def __init__(self) -> None:
        seed_everything(6)
        self.model = cnn().train()
        self.model[3].eval()  # type: ignore[index]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.x, self.y = torch.randn(8, 1, 6, 6), torch.randint(CLASSES, (8,))
        F.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        self.model[0].bias.requires_grad_(False)  # type: ignore[index, union-attr]
        self.called: list[str] = []
        self.model[0].register_forward_hook(lambda *_: self.called.append("forward"))  # type: ignore[index]
        self.model[5].register_full_backward_hook(lambda *_: self.called.append("backward"))  # type: ignore[index]
        self.model[5].weight.register_hook(lambda _: self.called.append("tensor"))  # type: ignore[index, union-attr]
        self.fault = ""

    def loss_fn(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        if self.fault == "loss raises":
            raise ZeroDivisionError("on purpose")
        return loss * float("nan") if self.fault == "loss is nan" else loss

    def probe(self, snapshot: Snapshot) -> dict[str, float]:
        torch.rand(1), random.random()
        if self.fault == "probe raises":
            raise ZeroDivisionError("on purpose")
        return {"value": snapshot.loss}

    def batches(self) -> Any:
        owner = self

        class Batches:
            def __iter__(self) -> Any:
                torch.rand(1), random.random()
                yield owner.x, owner.y
                if owner.fault == "data raises":
                    raise ZeroDivisionError("on purpose")
                yield owner.x[:3], owner.y[:3]

        return Batches()


@pytest.mark.filterwarnings("ignore:losscope")
@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.parametrize("mode", ["eval", "train", "train_frozen"])
@pytest.mark.parametrize("fault", ["", "probe raises", "loss raises", "loss is nan", "data raises"])
@pytest.mark.parametrize("kernel", ["auto", "finite_difference"])
def test_one_measurement_leaves_no_trace(kernel: str, fault: str, mode: str, on_error: str) -> None:
    ready = Ready()
    hooked = {name: list(table) for name, table in vars(ready.optimizer).items() if name.endswith("_hooks")}
    chosen = [Sharpness(), Spectrum(2, 4), Trace(rtol=0.5), Stability(rtol=0.5), ready.probe]
    options: dict[str, Any] = {"loss_fn": ready.loss_fn, "weight": lambda b: len(b[0]), "mode": mode, "every": [10**9]}
    options |= {"batch_size": 4, "on_error": on_error, "kernel": kernel}
    with watch(ready.model, ready.optimizer, data=ready.batches(), probes=chosen, **options) as run:
        ready.fault = fault
        before = everything(ready.model, ready.optimizer)
        if on_error == "raise" and fault.endswith("raises"):
            with pytest.raises(ZeroDivisionError, match="on purpose"):
                run.measure_now()
        else:
            statuses = [r.status for r in run.measure_now()]
            expected = {
                "": ["ok"] * 5, "probe raises": ["ok"] * 4 + ["error"], "loss is nan": ["nonfinite"] * 5,
            }  # fmt: skip
            assert statuses == expected.get(fault, ["error"] * 5)
        assert everything(ready.model, ready.optimizer) == before
        assert ready.called == []
    assert everything(ready.model, ready.optimizer) == before
    assert {n: list(t) for n, t in vars(ready.optimizer).items() if n.endswith("_hooks")} == hooked


def test_making_and_entering_a_watch_draws_nothing_and_changes_nothing() -> None:
    ready = Ready()
    before = everything(ready.model, ready.optimizer)
    with watch(ready.model, ready.optimizer, data=ready.batches(), loss_fn=ready.loss_fn, weight=lambda b: len(b[0])):
        assert everything(ready.model, ready.optimizer) == before
    assert everything(ready.model, ready.optimizer) == before


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_between_forward_and_backward(name: str, mode: str) -> None:
    """A pending graph has saved tensors, among them BatchNorm's; it must still be theirs."""
    found = []
    for watched in (False, True):
        seed_everything(7)
        model = MODELS[name][0]().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        (x, y), (u, v) = next(iter(loader(name))), next(iter(loader(name)))
        with watch(model, optimizer, data=(u, v), criterion=F.cross_entropy, mode=mode, every=[10**9]) as run:
            loss = F.cross_entropy(model(x), y)
            if watched:
                assert [r.status for r in run.measure_now()] == ["ok"] * 3
            loss = loss + F.cross_entropy(model(u), v)
            if watched:
                run.measure_now()
            loss.backward()
        gradients = [p.grad.numpy().tobytes() for p in model.parameters() if p.grad is not None]
        found.append((gradients, [b.tolist() for b in model.buffers()], streams()))
    assert found[0] == found[1]
