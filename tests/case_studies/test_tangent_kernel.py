"""The case study of the tangent kernel, in short: its robust claims, and the networks that it is about."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from claims import check_claims, read_claims, write_claims
from losscope.landscape import Objective, tangent_kernel
from losscope.probes import Run
from study import command_line
from tangent import grokking
from tangent.grokking import Grokking, Start, grokked, grokking_claims
from tangent.quadratic_network import Network
from tangent_kernel import ROBUST, Scaled, centred_digits, network, study


def test_the_short_version_asserts_its_claims(tmp_path) -> None:
    options = command_line("", "tangent_kernel", quick_seeds=1, arguments=["--quick", "--out", str(tmp_path / "run")])
    claims = study(options)
    check_claims(claims, *ROBUST)
    _, read = read_claims(write_claims(options.out, "tangent_kernel", claims, quick=True))
    assert {claim.name for claim in read} >= set(ROBUST)
    records = Run(options.out / "runs" / "width-16-0").select("tangent_kernel")
    assert [r.status for r in records] == ["ok"] * 7
    assert records[-1].values["alignment"] > records[0].values["alignment"]


def test_the_kernel_of_the_start_has_a_limit() -> None:
    """In this parametrisation its trace hardly depends on the width; in torch's own it would grow with it."""
    x, y = centred_digits(0, 100)
    traces = []
    for width in (64, 256):
        torch.manual_seed(0)
        objective = Objective(network(width), (x, y), criterion=nn.CrossEntropyLoss())
        traces.append(float(tangent_kernel(objective).matrix.trace()))
    assert traces[1] == pytest.approx(traces[0], rel=0.3)


@pytest.mark.parametrize("alpha", [0.5, 10.0])
def test_the_scale_multiplies_the_kernel_and_the_outputs_begin_at_zero(alpha: float) -> None:
    torch.manual_seed(0)
    plain = network(16)
    model, (x, y) = Scaled(plain, alpha), centred_digits(0, 20)
    assert not model(x).any()
    with torch.no_grad():
        next(plain.parameters()).mul_(1.1)
    kernels = [tangent_kernel(Objective(m, (x, y), criterion=nn.CrossEntropyLoss())).matrix for m in (plain, model)]
    torch.testing.assert_close(kernels[1], alpha**2 * kernels[0], rtol=1e-4, atol=0)


def test_the_quadratic_network_is_what_its_formula_says() -> None:
    start = torch.randn(7, 50, dtype=torch.float64)
    model, x = Network(3.0, 0.5, start), torch.randn(4, 50, dtype=torch.float64)
    with torch.no_grad():
        model.weight.add_(0.1)
    before, after = x @ start.T, x @ (start + 0.1).T
    expected = [3.0 / 7 * float((a + 0.25 * a**2 - b - 0.25 * b**2).sum()) for a, b in zip(after, before, strict=True)]
    assert model(x).flatten().tolist() == pytest.approx(expected)


def test_delay_plateau_and_what_the_kernel_was_when_all_samples_were_fitted() -> None:
    late = Grokking((0, 10, 20, 30, 300), (0.9, 0.5, 0.0, 0.0, 0.0), (0.9, 0.8, 0.7, 0.6, 0.1), (1.0,) * 5,
                    (0, 15, 25), (0.0, 0.1, 0.4), (0.3, 0.4, 0.5), 0.75)  # fmt: skip
    assert (late.fitted, late.delay, late.plateau) == (2, 15, 0.7)
    assert late.at_fit(late.distance) == 0.1
    never = replace(late, train=(0.9,) * 5)
    assert never.fitted is None and math.isnan(never.delay) and math.isnan(never.plateau)
    assert replace(late, test=(0.9,) * 5).delay == math.inf
    claims = grokking_claims({Start(s, scale): late for s in range(5) for scale in (6.0, 1.0)}, range(5))
    verdicts = {claim.name: claim.verdict for claim in claims}
    assert verdicts.pop("grokking_usual") == "NOT_REPRODUCED" and set(verdicts.values()) == {"REPRODUCED"}


def test_from_large_initial_weights_a_lazy_model_generalises_badly(monkeypatch, tmp_path) -> None:
    for name, value in (("WIDTH", 50), ("TRAIN", 60), ("KERNEL", 32)):
        monkeypatch.setattr(grokking, name, value)
    found = grokked(Start(0, steps=120), tmp_path)
    assert found.steps[:3] == (0, 1, 2) and found.steps[-1] <= 120 and found.watched == found.steps[::3]
    assert found.norm[-1] < found.norm[0] and found.lazy > 0.5
    assert len(Run(tmp_path / "runs" / "grokking-6-0").select("tangent_kernel")) == len(found.watched)
