"""The audit of real training runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from audited_runs import verdicts
from losscope.probes import Player, Run, Stability, watch


def half_squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return ((outputs - targets) ** 2).flatten(1).sum(1).mean() / 2


def regression(samples: int = 32) -> tuple[nn.Module, torch.Tensor, torch.Tensor, float]:
    """A linear model with one output on consistent data, and its sharpness."""
    model = nn.Linear(4, 1, bias=False).double()
    inputs = torch.randn(samples, 4, dtype=torch.float64)
    targets = inputs @ torch.randn(4, 1, dtype=torch.float64)
    return model, inputs, targets, float(torch.linalg.eigvalsh(inputs.T @ inputs / samples)[-1])


def train(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, optimizer: torch.optim.Optimizer, *,
    steps: int = 60, batch: int | None = None, criterion: Any = half_squares, every: int = 10, **options: Any,
) -> Run:  # fmt: skip
    with watch(
        model, optimizer, data=(inputs, targets), criterion=criterion, every=every, probes=[Stability()],
        on_error="raise", **options,
    ) as run:  # fmt: skip
        for _ in range(steps):
            chosen = torch.randperm(len(inputs))[: batch or len(inputs)]
            optimizer.zero_grad()
            loss = criterion(model(inputs[chosen]), targets[chosen])
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
    return run.run


def test_a_single_output_regression_with_single_samples_meets_the_trace():
    model, inputs, targets, _ = regression()
    trace = float(inputs.square().sum(1).mean())
    lr = 0.2 / trace
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    audit = train(model, inputs, targets, optimizer, steps=200, batch=1, batch_size=1, every=25).audit()
    line = audit["trace"]
    assert (line.verdict, line.kind) == ("NOT_EXCLUDED", "necessary")
    assert line.low <= trace * (1 + 1e-9)
    assert line.high >= trace * (1 - 1e-9)
    assert line.ratio == pytest.approx(0.1, rel=0.1)
    assert {a.text: a.holds for a in line.assumptions}["squared loss"] is True
    assert audit["s_mu"].verdict == "NOT_EXCLUDED"
    assert audit["sharpness"].verdict == "NOT_EXCLUDED"


@pytest.mark.parametrize("options", [{}, {"batch_size": 32}])
def test_gradient_descent_far_below_the_edge(options):
    model, inputs, targets, sharpness = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5 / sharpness)
    line = train(model, inputs, targets, optimizer, **options).audit()["sharpness"]
    assert line.verdict == "BELOW_EDGE"
    assert line.measured == pytest.approx(sharpness, rel=1e-3)
    assert line.low <= sharpness <= line.high
    assert line.ratio == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "times"), [({}, 2.0), ({"momentum": 0.9}, 3.8), ({"momentum": 0.5, "nesterov": True}, 1.5)]
)
def test_gradient_descent_above_the_edge(options, times):
    model, inputs, targets, sharpness = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.2 * times / sharpness, **options)
    audit = train(model, inputs, targets, optimizer, batch_size=32, steps=40).audit()
    assert audit["sharpness"].verdict == "ABOVE_EDGE"
    assert audit["sharpness"].ratio == pytest.approx(1.2, rel=1e-3)
    assert audit.above_edge
    assert "changed sign" in audit.evidence


def test_gradient_descent_on_the_edge_oscillates():
    model, inputs, targets, sharpness = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.99 / sharpness)
    audit = train(model, inputs, targets, optimizer, batch_size=32).audit()
    assert audit["sharpness"].verdict == "AT_EDGE"
    assert "100%" in audit.evidence


def test_a_subset_of_the_parameters_is_never_said_to_be_below_the_edge():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    inputs, targets = torch.randn(16, 4).double(), torch.randn(16, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for options in ({}, {"batch_size": 16}, {"batch_size": 2}):
        part = train(model, inputs, targets, optimizer, params="2.*", steps=20, **options).audit()["sharpness"]
        assert part.verdict == "INCONCLUSIVE"
        assert "only part" in part.reason
        whole = train(model, inputs, targets, optimizer, steps=20, **options).audit()["sharpness"]
        assert whole.verdict in ("BELOW_EDGE", "NOT_EXCLUDED")


def test_adam_and_cross_entropy():
    model = nn.Linear(4, 3)
    inputs, targets = torch.randn(24, 4), torch.randint(3, (24,))
    adam = torch.optim.Adam(model.parameters())
    audit = train(model, inputs, targets, adam, criterion=F.cross_entropy, batch=8, batch_size=8).audit()
    assert verdicts(audit, "sharpness", "trace", "s_mu") == {
        "sharpness": "NOT_EXCLUDED",
        "trace": "NOT_APPLICABLE",
        "s_mu": "NOT_APPLICABLE",
    }
    assert "Adam" in audit["s_mu"].reason and "s_mu" not in audit["sharpness"].reason
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    audit = train(model, inputs, targets, sgd, criterion=F.cross_entropy, batch=8, batch_size=8).audit()
    assert audit["sharpness"].verdict == "NOT_EXCLUDED"
    assert audit["s_mu"].verdict == "NOT_APPLICABLE"
    assert "cross-entropy" in audit["s_mu"].reason


def test_dropout_measured_without_is_inconclusive():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    inputs, targets = torch.randn(16, 4).double(), torch.randn(16, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.warns(RuntimeWarning, match='need mode="train"'):
        run = train(model, inputs, targets, optimizer, steps=20, batch_size=16)
    assert run.audit()["sharpness"].verdict == "INCONCLUSIVE"
    again = train(model, inputs, targets, optimizer, steps=20, batch_size=16, mode="train")
    assert again.audit()["sharpness"].verdict == "NOT_EXCLUDED"  # masks differ from step to step: noise


def test_two_optimizers_of_one_model_and_two_players_that_reach_each_other():
    model, inputs, targets, _ = regression()
    deep = nn.Sequential(model, nn.Linear(1, 1, bias=False).double())
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in deep]
    with watch(deep, optimizers, data=(inputs, targets), criterion=half_squares, every=1, probes=[Stability()]) as run:
        for _ in range(3):
            half_squares(deep(inputs), targets).backward()
            for optimizer in optimizers:
                optimizer.step()
    assert set(verdicts(run.run.audit()).values()) == {"NOT_APPLICABLE"}

    first, second = nn.Linear(4, 1), nn.Linear(1, 1)
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    players = [
        Player("first", first, torch.optim.SGD(first.parameters(), lr=0.01), [x],
               loss_fn=lambda m, b: second(m(b)).square().mean()),
        Player("second", second, torch.optim.SGD(second.parameters(), lr=0.01), [y],
               loss_fn=lambda m, b: m(b).square().mean()),
    ]  # fmt: skip
    with watch(players, every=1, probes=[Stability()]) as run:
        for _ in range(3):
            for player, batch in zip(players, (x, y), strict=True):
                player.optimizer.zero_grad()
                player.loss_fn(player.model, batch).backward()
                player.optimizer.step()
    assert set(verdicts(run.run.audit("first")).values()) == {"NOT_APPLICABLE"}
    assert "another player" in run.run.audit("first")["sharpness"].reason
    assert run.run.audit("second")["sharpness"].verdict == "BELOW_EDGE"  # its loss does not involve the first


def test_the_gradient_of_each_step_shows_what_training_does():
    model, inputs, targets, sharpness = regression()
    clip = lambda: nn.utils.clip_grad_norm_(model.parameters(), 1e-3)  # noqa: E731
    for batch, hook, expected in [(32, None, "BELOW_EDGE"), (8, None, "INCONCLUSIVE"), (32, clip, "INCONCLUSIVE")]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2 / sharpness)
        # 0.1 * threshold, whatever batch size is claimed
        with watch(
            model,
            optimizer,
            data=(inputs, targets),
            criterion=half_squares,
            every=1,
            probes=[Stability()],
            batch_size=32,
        ) as run:
            for step in range(6):
                nn.init.normal_(model.weight) if step == 0 else None
                optimizer.zero_grad()
                chosen = torch.arange(batch) if batch == 32 else torch.randperm(32)[:batch]
                half_squares(model(inputs[chosen]), targets[chosen]).backward()
                if hook:
                    hook()
                optimizer.step()
        line = run.run.audit()["sharpness"]
        assert line.verdict == expected, (batch, line)


def test_layers_that_thaw_and_rates_that_warm_up_are_noticed():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    inputs, targets = torch.randn(16, 4).double(), torch.randn(16, 1).double()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    with watch(model, optimizer, data=(inputs, targets), criterion=half_squares, every=1, probes=[Stability()]) as run:
        for step in range(8):
            optimizer.param_groups[0]["lr"] = 0.01 * step
            if step == 4:
                model[0].requires_grad_(True)
            optimizer.zero_grad()
            half_squares(model(inputs), targets).backward()
            optimizer.step()
    assert all(r.status == "ok" for r in run.run.select("stability", ok=False))
    facts = run.run.meta["players"]["model"]
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["threshold_formula"] == "(2+2b)/lr"
    assert run.run.audit()["sharpness"].formula == "(2+2b)/lr"


def test_a_partner_that_somebody_else_moves_is_noticed():
    model, partner = nn.Linear(4, 1), nn.Linear(1, 1)
    x = torch.randn(8, 4)
    mine, other = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, partner))
    loss_fn = lambda m, b: partner(m(b)).square().mean()  # noqa: E731
    with watch(model, mine, data=[x], loss_fn=loss_fn, every=1, probes=[Stability()]) as run:
        for _ in range(3):
            for optimizer in (mine, other):
                optimizer.zero_grad()
                loss_fn(model, x).backward()
                optimizer.step()
    line = run.run.audit()["sharpness"]
    assert line.verdict == "NOT_APPLICABLE"
    assert "moves" in line.reason


def climbing(optimizer: torch.optim.Optimizer, after: int, factor: float = -1.0) -> torch.optim.Optimizer:
    """Its rates turn negative, or what else, after so many updates, as with a schedule that runs past its end."""
    made = 0

    def turn(*_: Any) -> None:
        nonlocal made
        made += 1
        if made == after:
            for group in optimizer.param_groups:
                group["lr"] *= factor

    optimizer.register_step_post_hook(turn)
    return optimizer


def negative(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["lr"] *= -1
    return optimizer


BUILT = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "heavy ball": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW, two rates": lambda p: torch.optim.AdamW([{"params": p[:1]}, {"params": p[1:], "lr": 0.02}], lr=0.01),
}


@pytest.mark.parametrize("batch", [32, 4])
@pytest.mark.parametrize("after", [0, 80], ids=["from the start", "at the end"])
@pytest.mark.parametrize("name", BUILT)
def test_negative_rates_climb(name: str, after: int, batch: int, tmp_path: Path) -> None:
    inputs, targets = torch.randn(32, 3, dtype=torch.float64), torch.randn(32, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    optimizer = BUILT[name](list(model.parameters()))
    optimizer = climbing(optimizer, after) if after else negative(optimizer)
    run = train(model, inputs, targets, optimizer, steps=120, batch=batch, batch_size=batch, out=tmp_path / "run")
    for read in (run, Run(tmp_path / "run")):
        audit = read.audit()
        line = audit["sharpness"]
        assert line.verdict == "ABOVE_EDGE" and audit.above_edge, (line.verdict, line.reason)
        assert "the learning rate is -0.0" in line.reason and f"steps {after or 0}" in line.reason
        assert {c.verdict for c in audit.criteria[1:]} == {"NOT_APPLICABLE"}


def test_one_group_that_climbs() -> None:
    """Descent and ascent together are a game, which may be stable."""
    model, inputs, targets, _ = regression()
    other = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([{"params": model.parameters()}, {"params": [other], "lr": 0.02}], lr=0.01)
    optimizer.param_groups[1]["lr"] = -0.02
    model.register_parameter("other", other)
    audit = train(model, inputs, targets, optimizer, criterion=lambda o, t: half_squares(o, t) + other**2 / 2).audit()
    assert audit["sharpness"].verdict == "INCONCLUSIVE" and "-0.02" in audit["sharpness"].reason
    assert "other parameter groups" in audit["sharpness"].reason
