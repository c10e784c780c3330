"""Stochastic Lanczos quadrature: the rule itself, then traces of functions against dense eigenvalues."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losscope.landscape import SettingError, trace, trace_function
from losscope.landscape.operators import Observed, as_operator
from losscope.landscape.quadrature import LanczosProcesses
from spectra import SPECTRA, Diagonal, rotated, with_outliers

F64 = torch.float64
POSITIVE = with_outliers(600, [20.0, 50.0, 100.0]) + 0.1
FUNCTIONS = {
    "logarithm": (torch.log, POSITIVE),
    "square root": (torch.sqrt, SPECTRA["decaying"]),
    "square": (torch.square, SPECTRA["indefinite"]),
    "exponential": (lambda x: torch.exp(-x), POSITIVE),
    "effective dimension": (lambda x: x / (x + 0.05), SPECTRA["outliers"]),
}


def processes_of(A: object, starts: int = 3, seed: int = 0) -> LanczosProcesses:
    return LanczosProcesses(Observed(as_operator(A)), starts, torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------- the rule


@pytest.mark.parametrize("name", [name for name in SPECTRA if name != "clustered"])
def test_the_rule_is_exact_for_polynomials(name: str) -> None:
    """Of degree 2m - 1, for the measure that the start vector gives the eigenvalues."""
    values = SPECTRA[name]
    processes = processes_of(Diagonal(values))
    starts = [basis.newest[:, 0].clone() for basis in processes._bases]
    for m in range(1, 6):
        processes.step()
        for q, found in zip(starts, processes.quadratures(), strict=True):
            assert found.nodes.shape == found.weights.shape == found.residuals.shape == (m,)
            assert float(found.weights.sum()) == pytest.approx(1.0, rel=1e-12)
            for degree in range(2 * m):
                moment = float((q.square() * values**degree).sum())
                assert float((found.weights * found.nodes**degree).sum()) == pytest.approx(moment, rel=1e-9, abs=1e-12)
    assert processes.operator.matvecs == 15


def test_residuals_are_those_of_ritz_pairs() -> None:
    values = SPECTRA["outliers"]
    processes = processes_of(Diagonal(values), starts=1)
    for _ in range(20):
        processes.step()
    found = processes.quadratures()[0]
    basis = processes._bases[0]
    U = basis.combined(basis.eigh()[1])
    residuals = (values[:, None] * U - U * found.nodes).norm(dim=0)
    torch.testing.assert_close(found.residuals, residuals, rtol=1e-6, atol=1e-11)
    assert float(found.residuals[-1]) < 1e-6 < float(found.residuals[5])  # an eigenvalue, and a node in the bulk


def test_the_rule_of_a_step_before() -> None:
    processes = processes_of(Diagonal(SPECTRA["bulk"]))
    for _ in range(4):
        processes.step()
    kept = processes.quadratures()
    processes.step()
    for old, new in zip(kept, processes.quadratures(fewer=1), strict=True):
        torch.testing.assert_close(old.nodes, new.nodes)
        torch.testing.assert_close(old.weights, new.weights)
        torch.testing.assert_close(old.residuals, new.residuals)


def test_a_start_ends_where_its_space_is_invariant() -> None:
    A = Diagonal(SPECTRA["clustered"])  # two eigenvalues
    processes = processes_of(A)
    for _ in range(2):
        processes.step()
    assert all(processes.ended)
    assert A.products == 6
    for found in processes.quadratures():
        torch.testing.assert_close(found.nodes, torch.tensor([0.0, 2.0], dtype=F64), rtol=0, atol=1e-12)


# --------------------------------------------------------------------------- traces of functions


@pytest.mark.parametrize("name", FUNCTIONS)
def test_intervals_cover(name: str) -> None:
    f, values = FUNCTIONS[name]
    A, exact = rotated(values), float(f(values).sum())
    for options in ({"rtol": 0.1}, {"rtol": 1e-9, "max_matvecs": 120}):
        found = [trace_function(A, f, seed=seed, **options) for seed in range(50)]
        covered = [e.low <= exact <= e.high for e in found]
        assert np.mean(covered) >= 0.88
        if options["rtol"] == 0.1:
            assert all(e.converged and e.matvecs < 600 for e in found)
        else:
            assert all(e.matvecs <= 120 and not e.converged and e.method == "slq" for e in found)


def test_intervals_cover_where_looks_may_stop_by_luck() -> None:
    """One eigenvalue holds most of the trace, so that an estimate that is low by chance has a narrow interval."""
    values = with_outliers(1000, [500.0], 0.4)
    A, exact = Diagonal(values), float(values.sum())
    found = [trace_function(A, lambda x: x, rtol=0.4, seed=seed) for seed in range(200)]
    assert np.mean([e.low <= exact <= e.high for e in found]) >= 0.93
    assert np.mean([e.matvecs for e in found]) <= 120


@pytest.mark.parametrize("name", FUNCTIONS)
def test_small_matrices_are_exact(name: str) -> None:
    f, values = FUNCTIONS[name]
    found = trace_function(rotated(values[:25]), f, seed=0)
    assert (found.method, found.matvecs, found.converged) == ("exact", 25, True)
    assert found.value == pytest.approx(float(f(values[:25]).sum()), rel=1e-9)
    assert found.low <= found.value <= found.high


def test_where_n_products_are_cheaper_the_eigenvalues_are_computed() -> None:
    f, values = FUNCTIONS["exponential"]
    found = trace_function(rotated(values[:90]), f, rtol=1e-5, seed=0)
    assert found.method == "exact" and found.matvecs < 90 + 60
    assert found.value == pytest.approx(float(f(values[:90]).sum()), rel=1e-10)


def test_the_trace_is_the_first_moment() -> None:
    values = SPECTRA["indefinite"]
    one = trace(Diagonal(values), method="slq", rtol=0.05, seed=3)
    two = trace_function(Diagonal(values), lambda x: x, rtol=0.05, seed=3)
    assert (one.value, one.low, one.high, one.matvecs) == (two.value, two.low, two.high, two.matvecs)
    assert one.method == "slq" and one.low <= float(values.sum()) <= one.high


@settings(max_examples=25)
@given(c=st.floats(1e-20, 1e20), seed=st.integers(0, 2**32))
def test_scaling(c: float, seed: int) -> None:
    values = SPECTRA["outliers"]
    one, many = (trace(Diagonal(factor * values), method="slq", rtol=0.1, seed=seed) for factor in (1.0, c))
    assert one.matvecs == many.matvecs
    for name in ("value", "stderr", "low", "high"):
        assert getattr(many, name) == pytest.approx(c * getattr(one, name), rel=1e-7)


def test_the_log_determinant_adds_up() -> None:
    values = SPECTRA["decaying"] + 0.01
    A = rotated(values)
    found = trace_function(A, torch.log, rtol=0.01, seed=0)
    assert found.low <= float(torch.logdet(A)) <= found.high
    doubled = trace_function(A, lambda x: torch.log(2 * x), rtol=0.01, seed=0)
    assert doubled.value == pytest.approx(found.value + 300 * math.log(2), rel=1e-3)


def test_a_quadrature_that_does_not_converge_is_in_the_interval() -> None:
    """The number of eigenvalues above a threshold within the bulk: a step is no polynomial."""
    values = torch.linspace(-1, 1, 2000, dtype=F64)
    found = trace_function(Diagonal(values), lambda x: (x > 0.3).double(), rtol=0.01, max_matvecs=200, seed=0)
    assert not found.converged
    assert found.low <= float((values > 0.3).sum()) <= found.high


def test_single_precision() -> None:
    f, values = FUNCTIONS["logarithm"]
    A = rotated(values)
    found = trace_function(A.float(), f, rtol=0.02, seed=0)
    assert found.low <= float(f(values).sum()) <= found.high


@pytest.mark.parametrize("most", [2, 3, 7, 40])
def test_products_are_counted_and_within_their_limit(most: int) -> None:
    A = Diagonal(POSITIVE)
    found = trace_function(A, torch.log, rtol=1e-9, max_matvecs=most, seed=0)
    assert found.matvecs == A.products <= most
    assert not found.converged and found.low < found.value < found.high


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_matrix_of_zeros(dtype: torch.dtype) -> None:
    found = trace_function(torch.zeros(200, 200, dtype=dtype), torch.square, seed=0)
    assert (found.value, found.low, found.high, found.stderr) == (0, 0, 0, 0) and found.converged


def test_memory_bounds_how_many_starts_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("losscope.landscape.quadrature._MEMORY", 600 * 8 * 64)
    widths: list[int] = []

    class Watched(Diagonal):
        def product(self, V: Tensor) -> Tensor:
            widths.append(V.shape[1])
            return super().product(V)

    found = trace_function(Watched(POSITIVE), torch.log, rtol=0.1, seed=0)
    assert set(widths) == {1} and found.converged


def test_seeds() -> None:
    A = rotated(POSITIVE)
    state = torch.get_rng_state()
    same = [trace_function(A, torch.log, seed=seed).value for seed in (5, torch.Generator().manual_seed(5))]
    fresh = [trace_function(A, torch.log).value for _ in range(2)]
    assert same[0] == same[1] and len({*same, *fresh}) == 3
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (torch.log, r"f is not finite at -\d.*A\.shifted\(s\) moves that"),
        (lambda x: math.log(x), "f must take a tensor, as torch.log does"),
        (torch.sum, r"real tensor of the same shape; of \(1,\) it made \(\)"),
        (lambda x: x.to(torch.complex128), r"it made \(1,\), torch.complex128"),
    ],
)
def test_functions_that_mean_nothing_are_refused(f: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        trace_function(Diagonal(SPECTRA["indefinite"]), f, seed=0)


def test_bad_settings_are_refused() -> None:
    for options in ({"rtol": 0.0}, {"confidence": 1.0}, {"max_matvecs": 1}, {"min_matvecs": 1.5}):
        with pytest.raises(SettingError, match="must be"):
            trace_function(Diagonal(POSITIVE), torch.log, **options)


def test_matrices_that_are_not_symmetric_are_refused() -> None:
    A = torch.diag(torch.arange(1.0, 101.0, dtype=F64))
    A[0, 1] = 1000.0
    for matrix in (A, A[:20, :20]):
        with pytest.raises(SettingError, match="not symmetric"):
            trace_function(matrix, torch.square, seed=0)
