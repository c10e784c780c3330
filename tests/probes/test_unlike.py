"""Full-batch steps whose gradients are not those of data= are told, with what they may be; noise of the loss is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audited_runs import FULL, SMALL, audit_of, steady, with_gradient
from losscope.landscape import Objective
from losscope.probes import Audit, Record, Stability, watch
from losscope.probes.unlike import redrawn_gradient, unlike
from losscope.viz.demo import digits, half_squared_error, network
from observed_runs import observed_run

Change = Callable[[nn.Module, int], None]
JUDGED = {"ABOVE_EDGE", "AT_EDGE", "NEAR_EDGE_NO_OSCILLATION", "BELOW_EDGE", "NOT_EXCLUDED"}


def audited(**options: Any) -> Audit:
    return observed_run(probes=[Stability(level="sharpness")], **options).audit()


def precondition(audit: Audit, begins: str) -> tuple[bool | None, str]:
    (found,) = (a for a in audit.preconditions if a.text.startswith(begins))
    return found.holds, found.text


# --------------------------------------------------------------------------- steps of other gradients


def by_layer(model: nn.Module, _: int) -> None:
    for p in model.parameters():
        nn.utils.clip_grad_norm_([p], 0.01)


def penalty(model: nn.Module, _: int) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p.grad += 0.02 * p.detach()


@pytest.mark.parametrize("seed", range(2))
def test_clipping_layer_by_layer(seed: int) -> None:
    audit = audited(change=by_layer, lr=0.2, seed=seed)
    line = audit["sharpness"]
    assert line.verdict == "INCONCLUSIVE" and "clipped layer by layer" in line.reason and "cosine 0." in line.reason
    assert not audit.above_edge and not {c.verdict for c in audit.criteria} & JUDGED
    holds, text = precondition(audit, "gradients are not clipped")
    assert holds is False and "layer by layer" in text and "times as long" in text
    assert precondition(audit, "data= is what is trained on")[0] is True


@pytest.mark.parametrize(
    "options",
    [
        {"change": penalty, "lr": 0.1, "steps": 400},
        {"size": 8, "batch_size": 200},
        {"size": 100, "batch_size": 200},
        {"data": lambda x, y: (torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), y)},
        {"size": 32, "data": lambda x, y: (x[:32], y[:32])},
    ],
    ids=["a penalty in the loop", "mini-batches of 8", "of half the data", "other data", "data of one mini-batch"],
)
@pytest.mark.parametrize("make", [None, lambda parameters: torch.optim.Adam(parameters, lr=1e-3)], ids=["SGD", "Adam"])
def test_other_data_another_loss_or_smaller_batches(options: dict[str, Any], make: Any) -> None:
    audit = audited(make=make, **options)
    line = audit["sharpness"]
    assert line.verdict == "INCONCLUSIVE" and "steps are of other gradients (cosine" in line.reason
    assert "batch_size= in use" in line.reason and "penalties" in line.reason
    assert not {c.verdict for c in audit.criteria} & JUDGED
    assert "steps are of other gradients" in audit["s_mu"].reason
    holds, text = precondition(audit, "data= is what is trained on")
    assert holds is False and "times as long" in text and len(text) < 160
    assert precondition(audit, "gradients are not clipped")[0] is None


def test_clipping_of_entries_is_called_that() -> None:
    def clip(model: nn.Module, _: int) -> None:
        nn.utils.clip_grad_value_(model.parameters(), 0.002)

    audit = audited(change=clip, lr=0.02)
    assert precondition(audit, "gradients are not clipped")[0] is False
    assert precondition(audit, "data= is what is trained on")[0] is None
    assert "were clipped" in audit["sharpness"].reason and audit["sharpness"].verdict == "INCONCLUSIVE"


# --------------------------------------------------------------------------- noise of the loss itself


def with_dropout(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 50), nn.Tanh(), nn.Dropout(0.3), nn.Linear(50, 10))


def with_statistics(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 10))


def full_batches(
    seed: int, net: Callable[[int], nn.Module], *, pieces: int = 1, half: bool = False, adam: bool = False,
    steps: int = 300, data: Callable[[Tensor, Tensor], Any] = lambda x, y: (x, y),
) -> Audit:  # fmt: skip
    """All samples in each step, in pieces dealt anew and added up, or under autocast."""
    x, y = digits(seed=seed, samples=200)
    torch.manual_seed(seed)
    model = net(seed).train()
    parameters = model.parameters()
    optimizer = torch.optim.Adam(parameters, lr=1e-3) if adam else torch.optim.SGD(parameters, lr=0.1)
    probes = [Stability(level="sharpness")]
    options: dict[str, Any] = {"criterion": half_squared_error, "probes": probes, "every": 15, "batch_size": 200}
    with watch(model, optimizer, data=data(x, y), mode="train", on_error="raise", **options) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            for chosen in torch.randperm(200).tensor_split(pieces):
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    outputs = model(x[chosen])
                (half_squared_error(outputs.float(), y[chosen]) / pieces).backward()
            optimizer.step()
    return run.run.audit()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("net", "options"),
    [
        (network, {"pieces": 4}),
        (with_dropout, {}),
        (with_dropout, {"adam": True}),
        (with_statistics, {}),
        (with_statistics, {"pieces": 4}),
        (with_statistics, {"pieces": 4, "data": lambda x, y: list(zip(x.split(50), y.split(50), strict=True))}),
        (network, {"half": True, "adam": True, "steps": 600}),
    ],
    ids=["added up", "dropout", "dropout, Adam", "statistics", "of pieces", "of pieces, as data", "half precision"],
)
def test_what_the_loss_or_rounding_do_is_no_other_gradient(net: Any, options: dict[str, Any], seed: int) -> None:
    audit = full_batches(seed, net, **options)
    assert precondition(audit, "data= is what is trained on")[0] is not False
    assert precondition(audit, "gradients are not clipped")[0] is not False
    assert audit["sharpness"].verdict in JUDGED and "s_mu" not in audit["sharpness"].reason.replace("see s_mu", "s_mu")


def test_smaller_batches_are_told_from_dropout() -> None:
    prepare = lambda model: nn.Sequential(*model[:2], nn.Dropout(0.3), *model[2:])  # noqa: E731
    audit = audited(prepare=prepare, mode="train", size=8, batch_size=200)
    assert precondition(audit, "data= is what is trained on")[0] is False
    assert audit["sharpness"].verdict == "INCONCLUSIVE"


def test_dropout_that_is_measured_without_is_not_called_other_data() -> None:
    prepare = lambda model: nn.Sequential(*model[:2], nn.Dropout(0.5), *model[2:]).train()  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        audit = audited(prepare=prepare)
    holds, text = precondition(audit, "data= is what is trained on")
    assert holds is None and "another mode" in text and 'mode="train"' in audit["sharpness"].reason


# --------------------------------------------------------------------------- drawn records


def distant(cosine: float, scale: float = 1.0, *, first: float = 0.5, **values: float) -> list[Record]:
    """Measurements late in a run that began with a gradient of that length; all later ones have 0.5."""
    records = with_gradient(steady(0.5), cosine, scale)
    records[0].values["gradient_norm"] = first
    for record in records:
        record.values.update(values)
    return records


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (distant(0.5), True),
        (distant(0.5, first=20.0), True),
        (distant(0.5, first=30.0), False),  # 0.5, a sixtieth
        (distant(0.5, gradient_redraw=0.4), False),
        (distant(0.5, gradient_redraw=0.1), True),
        (distant(0.996), False),
    ],
)
def test_when_it_is_told(records: list[Record], told: bool) -> None:
    audit = audit_of(records, **FULL)
    assert (audit["sharpness"].verdict == "INCONCLUSIVE") == told
    assert (precondition(audit, "data= is what is trained on")[0] is False) == told
    facts = FULL | {"full_batch": False, "gradient_cosine": 0.5, "gradient_scale": 1.0}
    assert (
        unlike(records, records, facts | SMALL) is None and unlike(records, records, facts | {"samples": None}) is None
    )


def test_layers_in_records() -> None:
    audit = audit_of(distant(0.5, 0.3, gradient_cosine_by_layer=0.9999), **FULL)
    assert "layer by layer" in audit["sharpness"].reason and "0.3 times as long" in audit["sharpness"].reason


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_no_verdict_whatever_the_ratio(ratio: float) -> None:
    audit = audit_of(with_gradient(steady(ratio, s_mu=100.0), 0.4), **FULL)
    assert not {c.verdict for c in audit.criteria} & JUDGED and not audit.above_edge


# --------------------------------------------------------------------------- another draw of the gradient


def objective(model: nn.Module, data: Any, **options: Any) -> Objective:
    options = {"criterion": half_squared_error, "mode": "train"} | options
    return Objective(model, data, **options)


def test_another_draw_is_the_same_where_nothing_is_drawn() -> None:
    x, y = digits(samples=61)
    for data in ((x, y), list(zip(x.split(20), y.split(20), strict=True))):
        for criterion in (half_squared_error, lambda o, t: (o - t).square().sum(), nn.MSELoss(reduction="sum")):
            whole = objective(network(), data, criterion=criterion)
            own, again = whole.gradient(), redrawn_gradient(whole, 3)
            apart = min(float((c * again - own).norm()) for c in (1.0, 2.0))
            assert apart <= (0.05 if c_is_a_hidden_sum(whole) else 1e-5) * float(own.norm())


def c_is_a_hidden_sum(whole: Objective) -> bool:
    """One batch does not show that a loss adds up; then halves of unequal sizes make twice the mean only about."""
    return not whole.loss.summed


def test_another_draw_has_other_masks_and_other_batches() -> None:
    x, y = digits(samples=60)
    torch.manual_seed(0)
    for net in (with_dropout, with_statistics):
        whole = objective(net(0), (x, y))
        own, again = whole.gradient(), redrawn_gradient(whole, 3)
        assert 1e-3 < float((again - own).norm() / own.norm()) < 0.5
        torch.testing.assert_close(whole.gradient(), own, rtol=0, atol=0)


def test_batches_that_cannot_be_cut_are_drawn_again_as_they_are() -> None:
    x, y = digits(samples=3)  # halves of one sample have no batch statistics
    torch.manual_seed(0)
    whole = objective(with_statistics(0), (x, y))
    torch.testing.assert_close(redrawn_gradient(whole, 3), whole.gradient())
