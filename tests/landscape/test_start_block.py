"""Random starts in one Krylov space: their quadratures, and the eigenpairs that they resolve."""

import pytest
import torch
from torch import Tensor

from losscope.landscape.operators import Observed, as_operator
from losscope.landscape.quadrature import LanczosProcesses
from losscope.landscape.start_block import Rule, StartBlock
from losscope.landscape.wasserstein import distance
from spectra import SPECTRA, Diagonal, rotated, with_outliers

F64 = torch.float64
SPREAD = [name for name in SPECTRA if name != "clustered"]


def block_of(A: object, starts: int = 3, steps: int = 0, without: Tensor | None = None, seed: int = 0) -> StartBlock:
    block = StartBlock(Observed(as_operator(A)), starts, torch.Generator().manual_seed(seed), without)
    while block.steps < steps and not block.ended:
        block.step()
    return block


# --------------------------------------------------------------------------- the rule


@pytest.mark.parametrize("name", SPREAD)
def test_the_rule_of_each_start_is_exact_for_polynomials(name: str) -> None:
    values = SPECTRA[name]
    block = block_of(Diagonal(values))
    starts = block.basis.newest.T.clone()
    torch.testing.assert_close(starts @ starts.T, torch.eye(3, dtype=F64), rtol=0, atol=1e-14)
    for m in range(1, 6):
        block.step()
        rule = block.rule
        assert rule.nodes.shape == rule.residuals.shape == (3 * m,) and rule.weights.shape == (3, 3 * m)
        torch.testing.assert_close(rule.weights.sum(dim=1), torch.ones(3, dtype=F64))
        for degree in range(2 * m):
            moments = starts.square() @ values**degree
            torch.testing.assert_close(rule.weights @ rule.nodes**degree, moments, rtol=1e-9, atol=1e-12)
    assert block.operator.matvecs == 15


def test_one_start_is_the_plain_process() -> None:
    A = rotated(SPECTRA["indefinite"])
    block = block_of(A, starts=1, steps=12, seed=5)
    process = LanczosProcesses(Observed(as_operator(A)), 1, torch.Generator().manual_seed(5))
    for _ in range(12):
        process.step()
    expected, found = process.quadratures()[0], block.rule
    torch.testing.assert_close(found.nodes, expected.nodes)
    torch.testing.assert_close(found.weights[0], expected.weights)
    torch.testing.assert_close(found.residuals, expected.residuals)


def test_residuals_are_those_of_ritz_pairs() -> None:
    values = SPECTRA["outliers"]
    block = block_of(Diagonal(values), steps=8)
    U = block.ritz_vectors(torch.ones(24, dtype=torch.bool))
    residuals = (values[:, None] * U - U * block.rule.nodes).norm(dim=0)
    torch.testing.assert_close(block.rule.residuals, residuals, rtol=1e-6, atol=1e-11)


def test_the_rule_of_steps_before() -> None:
    block = block_of(Diagonal(SPECTRA["bulk"]), steps=4)
    kept = block.rule
    block.step()
    block.step()
    again = block.shorter(2)
    torch.testing.assert_close(again.nodes, kept.nodes)
    torch.testing.assert_close(again.weights, kept.weights, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(again.residuals, kept.residuals, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", ["outliers", "indefinite", "decaying"])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_nodes_and_mean_weights_of_steps_before_without_eigenvectors(name: str, scale: float) -> None:
    """As a measure: what lies closer than rounding over the step may share its weight otherwise."""
    block = block_of(Diagonal(scale * SPECTRA[name]), starts=4, steps=40)
    for steps in (1, 2):
        nodes, weights = block.before(steps)
        exact = block.shorter(steps).mean
        assert len(nodes) == 4 * (40 - steps) > 100
        torch.testing.assert_close(nodes, exact[0], rtol=1e-9, atol=1e-9 * scale)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-6)  # 1e-8 or so from each
        assert distance(nodes, weights, *exact) <= 1e-6 * scale


# --------------------------------------------------------------------------- resolved eigenvalues


def test_outliers_are_resolved_and_the_bulk_is_not() -> None:
    values = with_outliers(600, [-30.0, 20.0, 50.0, 100.0])
    block = block_of(Diagonal(values), starts=4, steps=8)
    taken = block.rule.resolved(600, 1e-14)
    torch.testing.assert_close(block.rule.nodes[taken], torch.tensor([-30.0, 20.0, 50.0, 100.0], dtype=F64))
    assert float(block.rule.residuals[taken].max()) < 0.5 < float(block.rule.nodes[~taken].max())


@pytest.mark.parametrize("copies", [1, 2, 3, 4, 5, 9])
def test_an_eigenvalue_is_taken_as_often_as_it_occurs_if_there_are_more_starts(copies: int) -> None:
    """Else its multiplicity is not known, and it stays with the starts."""
    values = with_outliers(400, [10.0] * copies)
    block = block_of(rotated(values), starts=4, steps=8)
    taken = block.rule.resolved(400, 1e-13)
    found = block.rule.nodes[taken]
    assert int((found > 5).sum()) == (copies if copies < 4 else 0)


def test_near_copies_are_one_cluster_until_they_are_told_apart() -> None:
    values = with_outliers(400, [10.0 + 1e-6 * i for i in range(12)])
    assert not block_of(Diagonal(values), starts=4, steps=6).rule.resolved(400, 1e-14).any()


def test_taking_some_out_moves_eigenvalues_by_no_more_than_their_coupling() -> None:
    values = SPECTRA["decaying"]
    block = block_of(Diagonal(values), starts=3, steps=10)
    taken = block.rule.resolved(300, 1e-14)
    U, theta = block.ritz_vectors(taken), block.rule.nodes[taken]
    residual = values[:, None] * U - U * theta
    moving = block.moving(taken)
    assert moving == pytest.approx(float(torch.linalg.matrix_norm(residual, "nuc")), rel=1e-6)
    assert 0 < moving < 0.9 * float(block.rule.residuals[taken].sum())
    P = torch.eye(300, dtype=F64) - U @ U.T
    apart = U @ theta.diag() @ U.T + P @ values.diag() @ P
    assert float((torch.linalg.eigvalsh(apart) - values.sort().values).abs().sum()) <= 2 * moving
    assert block.moving(torch.zeros(30, dtype=torch.bool)) == 0


def test_what_is_resolved_is_the_same_mirrored() -> None:
    """A node that reaches past its neighbour to the next joins all three, from either side."""
    nodes, residuals = torch.tensor([0.0, 1.0, 1.3, 9.0]).double(), torch.tensor([0.01, 0.01, 1.35, 0.01]).double()
    rules = [
        Rule(sign * nodes[order], torch.full((4, 4), 0.5, dtype=torch.float64), residuals[order], 3)
        for sign, order in ((1, [0, 1, 2, 3]), (-1, [3, 2, 1, 0]))
    ]
    one, mirrored = (rule.resolved(6, 1e-9) for rule in rules)
    assert torch.equal(one, mirrored.flip(0)) and not one[:2].any()


def test_one_start_resolves_nothing() -> None:
    rule = block_of(Diagonal(SPECTRA["outliers"]), starts=1, steps=40).rule
    assert float(rule.residuals[-1]) < 1e-6 and not rule.resolved(300, 1e-14).any()


def test_what_is_left_is_what_the_starts_see_in_the_complement() -> None:
    """The measure of a start, projected and normalised, has the moments that the rule has left."""
    values = SPECTRA["outliers"]
    block = block_of(Diagonal(values), starts=3)
    starts = block.basis.newest.T.clone()
    for _ in range(10):
        block.step()
    taken = block.rule.resolved(300, 1e-14)
    assert int(taken.sum()) == 3
    rest = starts[:, :-3].square()
    rest = rest / rest.sum(dim=1, keepdim=True)
    for found, weights in zip(block.rule.without(taken), rest, strict=True):
        assert float(found.weights.sum()) == pytest.approx(1)
        for degree in range(1, 12):
            moment = float(weights @ values[:-3] ** degree)
            assert float(found.weights @ found.nodes**degree) == pytest.approx(moment, rel=1e-8)


# --------------------------------------------------------------------------- complements, and the end


def test_starts_in_a_complement_see_nothing_of_what_was_left_out() -> None:
    values = with_outliers(300, [20.0, 50.0, 100.0])
    A = rotated(values)
    U = torch.linalg.eigh(A).eigenvectors[:, -3:]
    block = block_of(A, steps=12, without=U)
    nodes, weights = block.rule.mean
    assert float(nodes.max()) <= 1 + 1e-9 and float(nodes.min()) >= -1e-9
    assert float(weights @ nodes) == pytest.approx(0.5, abs=0.1)
    assert float((U.T @ block.ritz_vectors(weights > 0)).abs().max()) < 1e-10


def test_directions_that_fill_up_a_block_are_nobodys() -> None:
    """Four starts in a complement of three eigenvalues: the block is exhausted, and no zero is made up."""
    values = torch.cat([torch.linspace(1, 2, 3).repeat(100), torch.tensor([50.0])]).double()
    A = rotated(values)
    U = torch.linalg.eigh(A).eigenvectors[:, -1:]
    block = block_of(A, starts=4, without=U)
    for _ in range(6):
        block.step()
    rule = block.rule
    assert block.ended and not rule.resolved(300, 1e-12).any()
    seen = rule.mean[1] > 1e-20
    assert all(min(abs(x - y) for y in (1, 1.5, 2)) < 1e-9 for x in rule.nodes[seen].tolist())


@pytest.mark.parametrize("starts", [1, 2, 5])
def test_the_end_is_noticed(starts: int) -> None:
    for values, distinct in ((SPECTRA["clustered"], 2), (torch.zeros(50), 1), (torch.full((50,), 2.0), 1)):
        block = block_of(Diagonal(values), starts=starts, steps=30)
        assert block.ended and block.steps == distinct
