"""The case study of the tangent kernel, in short: its robust claims, and the networks that it is about."""

import pytest
import torch
from torch import nn

from claims import check_claims, read_claims, write_claims
from losscope.landscape import Objective, tangent_kernel
from losscope.probes import Run
from study import command_line
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
