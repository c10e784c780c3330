"""Optimizers that divide the gradient: the curvature their steps see, against a dense matrix made by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from losscope.landscape import Hessian, Objective
from losscope.probes import Record, Run, Sharpness, Stability, watch
from losscope.probes.seen import seen_by

F64 = torch.float64
BUILDS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "Adam": lambda m: Adam(m.parameters(), lr=0.01),
    "Adam, L2": lambda m: Adam(m.parameters(), lr=0.01, weight_decay=0.3),
    "AMSGrad": lambda m: Adam(m.parameters(), lr=0.01, amsgrad=True),
    "AdamW": lambda m: AdamW(m.parameters(), lr=0.01, weight_decay=0.5),
    "NAdam": lambda m: NAdam(m.parameters(), lr=0.01),
    "RMSprop": lambda m: RMSprop(m.parameters(), lr=0.01, momentum=0.5),
    "Adagrad": lambda m: Adagrad(m.parameters(), lr=0.05, lr_decay=0.1),
}


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        return model, torch.randn(20, 3, dtype=F64), torch.randn(20, 2, dtype=F64)


def dense_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)

    def loss(theta: Tensor) -> Tensor:
        pieces = theta.split([s.numel() for s in shapes])
        values = {n: piece.view(s) for n, piece, s in zip(names, pieces, shapes, strict=True)}
        return nn.functional.mse_loss(torch.func.functional_call(model, values, (x,)), y)

    return torch.func.hessian(loss)(torch.cat([p.detach().flatten() for p in model.parameters()]))


def divisor(optimizer: Optimizer) -> Tensor:
    """What the last step divided by, from the state as each optimizer's source has it."""
    found = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state[p]
            if "sum" in state:
                second = state["sum"]
            elif "square_avg" in state:
                second = state["square_avg"]
            else:
                moment = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
                second = moment / (1 - group["betas"][1] ** float(state["step"]))
            found.append((second.sqrt() + group["eps"]).flatten())
    return torch.cat(found)


def run(
    build: Callable[[nn.Module], Optimizer], probes: list, steps: int = 6, *, compared: bool = True, **options: object
) -> tuple:
    model, x, y = problem()
    optimizer = build(model)
    seen = []
    with watch(
        model, optimizer, data=(x, y), criterion=nn.functional.mse_loss, probes=probes, every=1, seed=0, **options
    ) as live:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            hessian = dense_hessian(model, x, y) if compared else None
            optimizer.step()
            seen.append((hessian, divisor(optimizer) if compared and not isinstance(optimizer, SGD) else None))
    return live.run, seen, optimizer


def records(of: Run) -> list[Record]:
    return of.select("stability")


@pytest.mark.parametrize("name", BUILDS)
def test_the_sharpness_is_that_of_the_preconditioned_hessian_with_the_steps_own_preconditioner(name: str) -> None:
    found, seen, optimizer = run(BUILDS[name], [Stability(tol=1e-6)])
    group = optimizer.param_groups[0]
    decay = 0.0 if group.get("decoupled_weight_decay") else group["weight_decay"]
    assert len(records(found)) == len(seen) == 6
    for record, (hessian, P) in zip(records(found), seen, strict=True):
        root = P.rsqrt()
        exact = float(torch.linalg.eigvalsh(root[:, None] * (hessian + decay * torch.eye(len(P))) * root)[-1])
        assert record.values["sharpness"] == pytest.approx(exact, rel=1e-6)
        assert record.values["threshold"] > 0
        assert record.value == pytest.approx(exact / record.values["threshold"], rel=1e-6)
        assert record.low <= record.value * (1 + 1e-9)
    line = found.audit()["sharpness"]
    assert line.symbol == "lambda_max(P^-1 H)" and line.formula and line.verdict != "NOT_APPLICABLE"


def test_early_steps_of_adam_have_their_own_threshold() -> None:
    found, _, _ = run(BUILDS["Adam"], [Stability()])
    thresholds = [record.values["threshold"] for record in records(found)]
    assert thresholds == pytest.approx([3800 * (1 - 0.9 ** (t + 1)) for t in range(6)], rel=1e-5)


def folded(optimizer: Optimizer) -> Tensor:
    """How many times the lowest group's threshold that of each coordinate's group is."""
    rates = torch.cat(
        [torch.full((p.numel(),), g["lr"], dtype=F64) for g in optimizer.param_groups for p in g["params"]]
    )
    return rates.max() / rates


BY_GROUPS = {
    "Adam": lambda m: Adam([{"params": m[0].parameters()}, {"params": m[2].parameters(), "lr": 0.03}], lr=0.01),
    "SGD": lambda m: SGD([{"params": m[0].parameters(), "lr": 0.002}, {"params": m[2].parameters()}], lr=0.01),
    "Adam, one decays": lambda m: Adam(
        [{"params": m[0].parameters(), "weight_decay": 0.5}, {"params": m[2].parameters(), "lr": 0.02}], lr=0.01
    ),
}


@pytest.mark.parametrize("name", BY_GROUPS)
def test_groups_of_different_rates_have_one_threshold(name: str) -> None:
    found, seen, optimizer = run(BY_GROUPS[name], [Stability(tol=1e-6), Sharpness(tol=1e-6)])
    groups = optimizer.param_groups
    decay = torch.cat([torch.full((p.numel(),), g["weight_decay"], dtype=F64) for g in groups for p in g["params"]])
    for record, plain, (hessian, P) in zip(records(found), found.select("sharpness"), seen, strict=True):
        root = ((1.0 if P is None else P) * folded(optimizer)).rsqrt()
        exact = float(torch.linalg.eigvalsh(root[:, None] * (hessian + torch.diag(decay)) * root)[-1])
        assert record.values["sharpness"] == pytest.approx(exact, rel=1e-6)
        assert record.values["threshold_largest"] == record.values["threshold"]
        assert plain.value == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)
    (facts,) = found.meta["players"].values()
    assert facts["preconditioned"] is facts["folded"] is True and facts["divides"] is (name != "SGD")
    audit = found.audit()
    assert audit["sharpness"].symbol == "lambda_max(P^-1 H)" and "of the strictest group" in audit["sharpness"].formula
    assert audit["s_mu"].verdict == "NOT_APPLICABLE"
    slowly = any("changes slowly" in a.text for a in audit["sharpness"].assumptions)
    assert slowly is (name != "SGD")


def test_groups_that_come_apart_on_the_way() -> None:
    """As where layers are unfrozen with a lower rate: from then on their rates are in the metric."""
    model, x, y = problem()
    optimizer = SGD([{"params": m.parameters()} for m in (model[0], model[2])], lr=0.01)
    with watch(model, optimizer, data=(x, y), criterion=nn.functional.mse_loss, probes=[Stability()], every=1) as live:
        for rate in (0.01, 0.002):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            (facts,) = live.run.meta["players"].values()
            assert facts["preconditioned"] is facts["folded"] is (rate == 0.002)
    assert all(r.values["threshold_largest"] == r.values["threshold"] == 200 for r in records(live.run))


def test_the_sharpness_probe_stays_with_the_hessian() -> None:
    found, seen, _ = run(BUILDS["Adam"], [Sharpness(tol=1e-6), Stability(tol=1e-6)])
    for record, (hessian, _) in zip(found.select("sharpness"), seen, strict=True):
        assert record.value == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-6)
        assert record.values["threshold"] is None


def test_before_the_first_step_there_is_nothing_to_compare_with() -> None:
    model, x, y = problem()
    optimizer = Adam(model.parameters())
    with watch(model, optimizer, data=(x, y), criterion=nn.functional.mse_loss, probes=[Stability()], every=1) as live:
        live.measure_now()
    assert records(live.run)[-1].values["threshold"] is None
    line = live.run.audit()["sharpness"]
    assert line.verdict == "NOT_APPLICABLE" and "not made a step yet" in line.reason


def test_the_audit_says_why_there_is_no_threshold() -> None:
    """Not that it is one of P^-1 H, which the audit itself compares with."""

    def apart(model: nn.Module) -> Optimizer:
        return AdamW([{"params": model[0].parameters(), "betas": (0.8, 0.99)}, {"params": model[2].parameters()}])

    found, _, _ = run(apart, [Stability(), Sharpness()], compared=False)
    assert "parameter groups differ in their dynamics" in found.audit()["sharpness"].reason
    reason = next(iter(found.meta["players"].values()))["threshold_reason"]
    assert "parameter groups differ in their dynamics" in reason


def test_every_group_has_an_epsilon_of_its_own() -> None:
    def build(model: nn.Module) -> Optimizer:
        return Adam([{"params": model[0].parameters(), "eps": 1e-12}, {"params": model[2].parameters(), "eps": 10.0}])

    model, x, y = problem()
    optimizer = build(model)
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
    objective = Objective(model, (x, y), criterion=nn.functional.mse_loss)
    seen = seen_by(optimizer, objective)
    P = torch.cat([p.flatten() for p in seen.preconditioner.values()])
    larger = torch.cat([p.flatten() for p in seen.with_epsilon(11).preconditioner.values()])
    torch.testing.assert_close(larger[:20], P[:20], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(larger[20:], P[20:] + 100.0)
    operator = seen.of(Hessian(objective))
    unit = torch.eye(len(P), dtype=F64)
    assert [seen.dead_share(operator, unit[i]) for i in (0, 25)] == [0.0, 1.0]


def test_the_criteria_of_sgds_noise_do_not_apply() -> None:
    found, _, _ = run(BUILDS["Adam"], [Stability()], batch_size=4)
    (facts,) = found.meta["players"].values()
    assert facts["preconditioned"] is True
    for name in ("trace", "s_mu"):
        assert found.audit()[name].verdict == "NOT_APPLICABLE"


class Valley(nn.Module):
    """Curved in two directions, of which the second has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 0.0], dtype=F64))

    def forward(self, scale: Tensor) -> Tensor:
        return (scale * self.w.square()).sum() / 2


def test_a_direction_without_gradients_is_told() -> None:
    """P is epsilon there, and the largest eigenvalue says more of that than of the loss."""
    model = Valley()
    optimizer = Adam(model.parameters(), lr=0.01)
    data = [torch.ones(2, dtype=F64)]
    with watch(
        model,
        optimizer,
        data=data,
        loss_fn=lambda m, batch: m(batch),
        probes=[Stability()],
        every=1,
        weight=lambda _: 1,
    ) as live:
        for _ in range(8):
            optimizer.zero_grad()
            model(data[0]).backward()
            optimizer.step()
    for record in records(live.run):
        assert record.values["sharpness"] == pytest.approx(1e8, rel=1e-3)
        assert record.values["dead_share"] > 0.99
    said = live.run.audit()["sharpness"].assumptions
    assert any("100% is not" in assumption.text and assumption.holds is False for assumption in said)


def test_training_is_the_same_to_the_bit() -> None:
    def trained(watched: bool) -> list[Tensor]:
        model, x, y = problem()
        optimizer = Adam(model.parameters(), lr=0.01, foreach=False)

        def loop() -> None:
            for _ in range(8):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()

        if watched:
            with watch(model, optimizer, data=(x, y), criterion=nn.functional.mse_loss, probes=[Stability()], every=1):
                loop()
        else:
            loop()
        return [*(p.detach() for p in model.parameters()), *(v for s in optimizer.state.values() for v in s.values())]

    for watched, alone in zip(trained(True), trained(False), strict=True):
        assert torch.equal(watched, alone)


# --------------------------------------------------------------------------- what the loss does not use


class WithHead(nn.Module):
    """A network, and a head that only some other loss would use."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = problem()[0], nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def apart(model: WithHead) -> list[dict]:
    return [{"params": model.body.parameters()}, {"params": model.head.parameters(), "lr": 7.0}]


UNUSED = {
    "Adam": lambda m: Adam(m.parameters(), lr=0.01),
    "Adam with decay": lambda m: Adam(m.parameters(), lr=0.01, weight_decay=0.5),
    "AdamW": lambda m: AdamW(m.parameters(), lr=0.01),
    "RMSprop": lambda m: RMSprop(m.parameters(), lr=0.01),
    "Adam, a group of its own": lambda m: Adam(apart(m), lr=0.01),
}


def trained(model: nn.Module, optimizer: Optimizer, steps: int = 6, uses: Callable | None = None) -> Run:
    _, x, y = problem()
    mse = nn.functional.mse_loss
    with watch(
        model, optimizer, data=(x, y), criterion=mse, probes=[Stability(tol=1e-6)], every=1, seed=0, batch_size=2
    ) as live:
        for _ in range(steps):
            optimizer.zero_grad()
            (mse(model(x), y) + (0 if uses is None else uses(model, x))).backward()
            optimizer.step()
    return live.run


@pytest.mark.parametrize("name", UNUSED)
def test_parameters_that_the_loss_does_not_use_are_left_out_by_name(name: str) -> None:
    model, alone = WithHead(), problem()[0]
    kind = UNUSED[name](model)
    same = type(kind)(alone.parameters(), lr=0.01, weight_decay=kind.param_groups[0]["weight_decay"])
    found, expected = trained(model, kind), trained(alone, same)
    assert len(records(found)) == 6
    for one, other in zip(records(found), records(expected), strict=True):
        for key in ("sharpness", "threshold", "threshold_largest", "batch_sharpness", "batch_sharpness_ratio"):
            assert one.values[key] == pytest.approx(other.values[key], rel=1e-5), key
    audit = found.audit()
    assert audit["sharpness"].verdict == expected.audit()["sharpness"].verdict != "NOT_APPLICABLE"
    (said,) = [each for each in audit.preconditions if "does not use" in each.text]
    assert said.holds is False and "head.weight, head.bias" in said.text
    assert not any("does not use" in each.text for each in expected.audit().preconditions)
    assert not found.meta["players"]["model"]["folded"]


def test_parameters_that_the_loss_uses_are_not_left_out() -> None:
    """The optimizer has not moved them, as the loop's loss is another one than that of watch."""

    class Both(WithHead):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + (self.head.weight.sum() if self.measured else 0)

        measured = False

    model = Both()
    optimizer = Adam(model.parameters(), lr=0.01)
    _, x, y = problem()
    mse = nn.functional.mse_loss
    with watch(model, optimizer, data=(x, y), criterion=mse, probes=[Stability()], every=2) as live:
        for _ in range(4):
            optimizer.zero_grad()
            mse(model(x), y).backward()
            model.measured = True
            optimizer.step()
            model.measured = False
    line = live.run.audit()["sharpness"]
    assert line.verdict == "NOT_APPLICABLE" and "head.weight" in line.reason


def test_an_unused_head_changes_no_bit_of_the_training() -> None:
    models = WithHead(), WithHead()
    models[1].load_state_dict(models[0].state_dict())
    _, x, y = problem()
    trained(models[0], Adam(models[0].parameters(), lr=0.01))
    optimizer = Adam(models[1].parameters(), lr=0.01)
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.mse_loss(models[1](x), y).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_a_p_that_was_being_made_bounds_nothing_of_the_one_that_is() -> None:
    """The first eigenvector is where one gradient was next to nothing: what follows starts afresh, with its bound."""
    torch.manual_seed(0)
    x = torch.randn(64, 6, dtype=F64)
    y = torch.tanh(x @ torch.randn(6, 3, dtype=F64))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = RMSprop(model[2].parameters(), lr=0.05, momentum=0.5)
    exact = []
    with watch(
        model, optimizer, data=(x, y), criterion=nn.functional.mse_loss, probes=[Stability(level="sharpness")], every=10
    ) as live:
        for step in range(21):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            whole = dense_hessian(model, x, y)[-27:, -27:] if step % 10 == 0 else None
            optimizer.step()
            if whole is not None:
                root = divisor(optimizer).rsqrt()
                exact.append(float(torch.linalg.eigvalsh(root[:, None] * whole * root)[-1]))
    bounds = [record.values["sharpness_high"] for record in records(live.run)]
    assert [high is not None for high in bounds] == [True, True, False]
    assert all(high is None or high >= top for high, top in zip(bounds, exact, strict=True))
