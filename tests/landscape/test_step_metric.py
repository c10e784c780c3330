"""Groups of different rates and weight decays are stable up to one threshold, which is that of the real optimizer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from losscope.landscape import Hessian, Objective, Preconditioned, SettingError
from losscope.landscape.compositions import Diagonal
from losscope.landscape.stability import stability_threshold, step_decay, step_preconditioner
from losscope.landscape.step_metric import rates_differ

F64 = torch.float64
START, LONG = 1e-9, 1_000_000


class Bowl(nn.Module):
    """``w'Sw / 2`` times a factor, of two tensors of two entries that S couples."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        Q = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64)).Q
        self.S, self.factor = Q @ torch.diag(torch.linspace(0.3, 1, 4, dtype=F64)) @ Q.T, 1.0
        self.a, self.b = (nn.Parameter(START * torch.randn(2, generator=generator, dtype=F64)) for _ in range(2))

    def forward(self, _: Any = None) -> Tensor:
        w = torch.cat((self.a, self.b))
        return self.factor * (w @ self.S @ w) / 2


def groups(bowl: Bowl, first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"params": [bowl.a], **first}, {"params": [bowl.b], **second}]


FAST, SLOW = {"lr": 0.1}, {"lr": 0.01}
BUILDS: dict[str, Callable[[Bowl], Optimizer]] = {
    "gradient descent": lambda m: SGD(groups(m, FAST, SLOW)),
    "of decays": lambda m: SGD(groups(m, FAST | {"weight_decay": 2.0}, SLOW | {"weight_decay": 30.0})),
    "heavy ball": lambda m: SGD(groups(m, FAST, SLOW), momentum=0.9),
    "Nesterov": lambda m: SGD(groups(m, FAST, SLOW | {"weight_decay": 1.0}), momentum=0.9, nesterov=True),
    "dampened": lambda m: SGD(groups(m, FAST, SLOW), momentum=0.5, dampening=0.3),
    "Adam": lambda m: Adam(groups(m, FAST, SLOW), eps=1e-20),
    "Adam, one decays": lambda m: Adam(groups(m, SLOW | {"weight_decay": 50.0}, SLOW), eps=1e-20),
    "AdamW, one decays": lambda m: AdamW(groups(m, {"weight_decay": 5.0}, {"weight_decay": 0.0}), lr=0.1, eps=1e-20),
    "AdamW": lambda m: AdamW(groups(m, FAST | {"weight_decay": 5.0}, SLOW | {"weight_decay": 9.0}), eps=1e-20),
    "RMSprop": lambda m: RMSprop(groups(m, FAST, SLOW | {"weight_decay": 3.0}), momentum=0.5, alpha=0.9999, eps=1e-20),
    "Adagrad": lambda m: Adagrad(groups(m, FAST, SLOW)),
}  # fmt: skip


def settled(optimizer: Optimizer, seed: int) -> None:
    """The preconditioner where it stays, decades apart, and bias corrections over."""
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            state, moment = optimizer.state[p], 10 ** torch.randn(2, generator=generator, dtype=F64)
            for name in ("exp_avg_sq", "square_avg", "sum"):
                if name in state:
                    state[name].copy_(moment)
            if "step" in state:
                state["step"].fill_(LONG)


def course(optimizer: Optimizer, bowl: Bowl, seed: int) -> str:
    with torch.no_grad():
        for i, p in enumerate(bowl.parameters()):
            p.copy_(START * torch.tensor([1.0, 0.5 + i], dtype=F64))
            if (momentum := optimizer.state[p].get("momentum_buffer")) is not None:
                momentum.zero_()  # a first step of RMSprop is as long as rates are
    for _ in range(20_000):
        size = float(torch.cat((bowl.a, bowl.b)).detach().norm())
        if not 1e-14 < size < 1e-4:
            break
        optimizer.zero_grad()
        bowl().backward()
        optimizer.step()
        settled(optimizer, seed)
    return "grows" if size > 1e-4 else "decays" if size < 1e-14 else "neither"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", BUILDS)
def test_the_whole_decays_just_below_and_grows_just_above(name: str, seed: int) -> None:
    bowl = Bowl(seed)
    optimizer = BUILDS[name](bowl)
    bowl().backward()
    optimizer.step()
    settled(optimizer, seed)
    objective = Objective(bowl, [torch.zeros(1)], loss_fn=lambda m, b: m(b))
    threshold = stability_threshold(optimizer)
    assert rates_differ(optimizer) or name in ("Adam, one decays",)
    P = step_preconditioner(optimizer, objective)
    root = torch.cat([piece.flatten() for piece in P.values()]).rsqrt()
    decay = torch.cat([torch.full((2,), w, dtype=F64) for w in step_decay(optimizer, objective).values()])

    def ratio(factor: float) -> float:
        matrix = root[:, None] * (factor * bowl.S + torch.diag(decay)) * root
        return float(torch.linalg.eigvalsh(matrix)[-1]) / threshold.value

    low, high = 0.0, 1e9
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) < 1 else (low, middle)
    for share, expected in ((0.99, "decays"), (1.01, "grows")):
        bowl.factor = share * low
        assert course(optimizer, bowl, seed) == expected


def test_the_strictest_groups_own_step_is_the_unit() -> None:
    bowl = Bowl(0)
    objective = Objective(bowl, [torch.zeros(1)], loss_fn=lambda m, b: m(b))
    P = step_preconditioner(SGD(groups(bowl, {"lr": 0.5}, {"lr": 0.05})), objective)
    assert [set(piece.tolist()) for piece in P.values()] == [{1.0}, {10.0}]


def test_a_group_at_rate_zero_counts_for_nothing() -> None:
    bowl = Bowl(0)
    objective = Objective(bowl, [torch.zeros(1)], loss_fn=lambda m, b: m(b))
    optimizer = SGD(groups(bowl, FAST, {"lr": 0.0}), lr=0.1)
    seen = Preconditioned(Hessian(objective), step_preconditioner(optimizer, objective)) @ torch.eye(4, dtype=F64)
    exact = torch.linalg.eigvalsh(bowl.S[:2, :2])[-1]
    torch.testing.assert_close(torch.linalg.eigvalsh(seen)[-1], exact)


@pytest.mark.parametrize(
    "build",
    [lambda m: SGD(m.parameters(), lr=0.1), lambda m: SGD(groups(m, FAST, FAST | {"weight_decay": 1e-3}))],
    ids=["one group", "of nearly one threshold"],
)
def test_at_one_rate_the_threshold_is_of_the_hessian(build: Callable[[Bowl], Optimizer]) -> None:
    bowl = Bowl(0)
    assert not rates_differ(build(bowl))
    with pytest.raises(SettingError, match="SGD has no preconditioner: its threshold is one for the Hessian itself"):
        step_preconditioner(build(bowl), Objective(bowl, [torch.zeros(1)], loss_fn=lambda m, b: m(b)))


def test_a_diagonal_by_names() -> None:
    objective = Objective(Bowl(0), [torch.zeros(1)], loss_fn=lambda m, b: m(b))
    D, V = Diagonal({"a": 2.0, "b": 0.0}, objective.space), torch.ones(4, 2, dtype=F64)
    assert torch.equal(D @ V, torch.tensor([2.0, 2, 0, 0], dtype=F64)[:, None] * V) and D.psd
    assert torch.equal(D.block_products(V, [[0]])[:2], 2 * V[:2])
    assert not Diagonal({"a": -1.0, "b": 0.0}, objective.space).psd
