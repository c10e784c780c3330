"""Deep matrix factorisation in short: the formula against dense Hessians, minimisers of every kind, the script."""

import json
from pathlib import Path

import pytest
import torch
from torch.func import functional_call, hessian

from deep_factorisation import minimisers as fac
from deep_factorisation.figures import draw
from deep_factorisation.measurements import Plan, frobenius_balanced, off_minimiser, study, with_gap
from matrix_factorisation import FAIL, judged, main


def dense_sharpness(factors: list[torch.Tensor], m: torch.Tensor) -> float:
    """The top eigenvalue of the whole Hessian, by torch.func."""
    model = fac.network(factors)
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        outputs = functional_call(model, dict(zip(names, parts, strict=True)), (torch.eye(m.shape[1], dtype=m.dtype),))
        return fac.squared_error(outputs, m.T)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return float(torch.linalg.eigvalsh(hessian(loss)(flat))[-1])


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 4, 4), (4, 2, 5)])
def test_the_formula_is_that_of_the_dense_hessian(depth: int, shape: tuple[int, int, int]) -> None:
    m = fac.target(*shape[:2], seed=1)
    even = fac.balanced(m, depth, shape[2], seed=2)
    for factors in (even, fac.mixed(even, 0.5, seed=3)):
        torch.testing.assert_close(fac.product(factors), m)
        assert float(fac.exact_sharpness(factors)) == pytest.approx(dense_sharpness(factors, m), rel=1e-10)
        assert fac.measured_sharpness(fac.network(factors), m) == pytest.approx(dense_sharpness(factors, m), rel=1e-10)
        assert fac.bound(factors) >= float(fac.exact_sharpness(factors)) * (1 - 1e-12)
    assert float(fac.exact_sharpness(even)) == pytest.approx(fac.least_sharpness(m, depth), rel=1e-12)
    assert fac.imbalance(even) == pytest.approx(1, rel=1e-12)


def test_special_minimisers_are_what_they_are_called() -> None:
    m = fac.target(3, 4, seed=0)
    same = frobenius_balanced(m, 5, seed=0)
    torch.testing.assert_close(fac.product(same), m)
    assert fac.frobenius_imbalance(same) == pytest.approx(1, rel=1e-12) and fac.imbalance(same) > 1.1
    gap = with_gap(m)
    equal = fac.reweighted(gap, 2, 5, 0, 3, 1 / 6)
    torch.testing.assert_close(fac.product(equal), gap)
    assert fac.imbalance(equal) == pytest.approx(1, rel=1e-12)
    assert float(fac.exact_sharpness(equal)) == pytest.approx(9 * fac.least_sharpness(gap, 2), rel=1e-12)


def test_the_formula_fails_away_from_minimisers() -> None:
    errors = list(off_minimiser(seed=0).values())
    assert errors == sorted(errors) and errors[0] < 1e-4 < 1e-3 < errors[-1]


def test_a_plan_of_little_makes_fewer_claims_and_figures(tmp_path: Path) -> None:
    plan = Plan(((2, 3, 4),), (3,), 3, 5, escapes=(), trials=1, near=(), lopsided=(), times=())
    found = study(0, plan)
    names = {claim.name for claim in judged({0: found})}
    assert {"exact", "least_attained", "bound_deep", "away"} <= names
    assert names.isdisjoint({"two_factors", "scalars", "below_stays", "growth", "rates_flatter", "lands_flatter"})
    assert {path.name for path in draw([found], plan, tmp_path, 0)} == {"sharpness.png", "limits.png"}


def test_quick(tmp_path: Path) -> None:
    claims = main(["--quick", "--out", str(tmp_path / "new")])
    assert {claim.verdict for claim in claims if claim.name not in FAIL} == {"REPRODUCED"}
    assert {claim.verdict for claim in claims if claim.name in FAIL} == {"NOT_REPRODUCED"}
    written = json.loads((tmp_path / "new" / "claims.json").read_text())
    assert [each["name"] for each in written["claims"]] == [claim.name for claim in claims]
    assert len(list((tmp_path / "new").glob("*.png"))) == 4
