"""A Lanczos process that goes on as in its last step: the moments it keeps, and the laws it meets."""

import math

import pytest
import torch

from losscope.landscape.continuation import longer, symmetric_coupling
from losscope.landscape.operators import Observed, as_operator
from losscope.landscape.start_block import StartBlock
from losscope.landscape.wasserstein import distance
from net_spectra import ALL_KINDS, NETS, net_spectrum
from spectra import SPECTRA, Diagonal, rotated, with_outliers

F64 = torch.float64


def block_of(A: object, starts: int, steps: int, seed: int = 0) -> tuple[StartBlock, torch.Tensor]:
    """After some steps, and the vectors it began with, (starts, n)."""
    block = StartBlock(Observed(as_operator(A)), starts, torch.Generator().manual_seed(seed))
    first = block.basis.newest.T.clone()
    while block.steps < steps and not block.ended:
        block.step()
    return block, first


def nothing(block: StartBlock) -> torch.Tensor:
    return torch.zeros(len(block.rule.nodes), dtype=torch.bool)


# --------------------------------------------------------------------------- the longer matrix


@pytest.mark.parametrize("starts", [1, 3])
def test_it_has_the_moments_up_to_degree_2m(starts: int) -> None:
    """One more than the quadrature has."""
    values = SPECTRA["indefinite"]
    block, first = block_of(Diagonal(values), starts, 5)
    nodes, weights = block.before(0, rows=12)
    for degree in range(11):
        moment = float((first.square() @ values**degree).mean())
        assert float(weights @ nodes**degree) == pytest.approx(moment, rel=1e-9, abs=1e-12)
    nodes, weights = block.rule.mean
    assert float(weights @ nodes**10) != pytest.approx(float((first.square() @ values**10).mean()), rel=1e-6)


def test_coefficients_that_are_all_alike_make_the_semicircle_law() -> None:
    """Whose distribution function is 1/2 + x sqrt(4 - x^2) / (4 pi) + arcsin(x / 2) / pi on [-2, 2]."""
    one = torch.ones(1, 1, dtype=F64)
    T = longer(0 * one, one, 0 * one, one, rows=399)
    nodes, Y = torch.linalg.eigh(T)
    exact = 0.5 + nodes * (4 - nodes**2).sqrt() / (4 * math.pi) + (nodes / 2).asin() / math.pi
    assert float((Y[0].square().cumsum(0) - Y[0].square() / 2 - exact).abs().max()) < 1e-4


def test_it_is_the_same_in_any_basis_of_the_last_block() -> None:
    generator = torch.Generator().manual_seed(0)
    T, A, R = (torch.randn(k, k, generator=generator, dtype=F64) for k in (9, 3, 3))
    T, A = T + T.T, A + A.T
    Q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=F64))[0]
    last = torch.eye(9, dtype=F64)[-3:]
    one = torch.linalg.eigh(longer(T, last, A, symmetric_coupling(R), 12))
    other = torch.linalg.eigh(longer(T, Q.T @ last, Q.T @ A @ Q, symmetric_coupling(R @ Q), 12))
    torch.testing.assert_close(one.eigenvalues, other.eigenvalues)
    torch.testing.assert_close(one.eigenvectors[:9].square(), other.eigenvectors[:9].square())


def test_the_coupling_is_the_symmetric_factor() -> None:
    R = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=F64).triu()
    B = symmetric_coupling(R)
    torch.testing.assert_close(B @ B, R.T @ R)
    torch.testing.assert_close(B, B.T)
    assert float(torch.linalg.eigvalsh(B)[0]) >= 0


# --------------------------------------------------------------------------- the measure of a block


@pytest.mark.parametrize("name", ["outliers", "indefinite", "decaying"])
@pytest.mark.parametrize("starts", [1, 4])
def test_no_node_is_outside_of_the_spectrum(name: str, starts: int) -> None:
    values = SPECTRA[name]
    block, _ = block_of(Diagonal(values), starts, 10)
    nodes, weights = block.continued(nothing(block))
    assert float(values.min()) - 1e-9 <= float(nodes.min()) and float(nodes.max()) <= float(values.max()) + 1e-9
    assert (weights >= 0).all() and float(weights.sum()) == pytest.approx(1)


def test_a_resolved_eigenvalue_stays_one_place_with_its_mass() -> None:
    values = with_outliers(600, [20.0, 50.0])
    block, first = block_of(Diagonal(values), 1, 30)
    nodes, weights = block.continued(nothing(block))
    for value, seen in zip((20.0, 50.0), first[0, -2:].square().tolist(), strict=True):
        near = (nodes - value).abs() < 1e-6
        assert int((near & (weights > 1e-12)).sum()) == 1
        assert float(weights[near].sum()) == pytest.approx(seen, rel=1e-6)


def test_what_was_taken_out_does_not_come_back() -> None:
    values = with_outliers(400, [20.0, 50.0, 100.0])
    block, first = block_of(Diagonal(values), 3, 10)
    taken = block.rule.resolved(400, 1e-14)
    assert int(taken.sum()) == 3
    nodes, weights = block.continued(taken)
    assert float(weights[nodes > 1.5].sum()) < 1e-12
    rest = first[:, :-3].square()
    rest = (rest / rest.sum(dim=1, keepdim=True)).mean(dim=0)
    for degree in range(1, 12):
        assert float(weights @ nodes**degree) == pytest.approx(float(rest @ values[:-3] ** degree), rel=1e-3)


def test_a_space_that_has_ended_does_not_go_on() -> None:
    for values in (SPECTRA["clustered"], torch.zeros(50, dtype=F64), torch.full((50,), 2.0, dtype=F64)):
        for starts in (1, 2, 5):
            block, _ = block_of(Diagonal(values), starts, 30)
            nodes, weights = block.continued(nothing(block))
            assert block.ended and not block.goes_on and torch.equal(nodes, block.rule.nodes)
            torch.testing.assert_close(weights, block.rule.mean[1])


def test_without_a_basis_it_goes_on_alike() -> None:
    """Three Lanczos vectors know as much of T."""
    A = Observed(as_operator(rotated(ALL_KINDS["flat"])))
    found = []
    for kept in (True, False):
        block = StartBlock(A, 1, torch.Generator().manual_seed(0), kept=kept)
        for _ in range(12):
            block.step()
        found.append(block.continued(nothing(block)))
    assert distance(*found[0], *found[1]) < 1e-9


# --------------------------------------------------------------------------- what it is for


@pytest.mark.parametrize("name", [*NETS, *ALL_KINDS])
@pytest.mark.parametrize(("starts", "steps"), [(1, 12), (2, 24), (8, 8)])
def test_it_is_closer_to_what_starts_see_than_the_quadrature(name: str, starts: int, steps: int) -> None:
    """Or as close, where that is exact."""
    values = net_spectrum(name) if name in NETS else ALL_KINDS[name]
    norm, errors = float(values.abs().max()), []
    for seed in range(5):
        block, first = block_of(Diagonal(values), starts, steps, seed)
        seen = values, first.square().mean(dim=0)
        errors.append([distance(*found, *seen) for found in (block.continued(nothing(block)), block.rule.mean)])
    ours, quadrature = torch.tensor(errors).median(dim=0).values.tolist()
    assert ours <= 0.95 * quadrature + 1e-12 * norm
