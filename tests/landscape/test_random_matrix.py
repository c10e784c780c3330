"""Laws of random matrices: against numerical integration, published quantiles, and simulated matrices."""

import math
import pickle

import pytest
import torch
from scipy.integrate import quad

from losscope.landscape import MarchenkoPastur, Semicircle, SettingError
from losscope.landscape.random_matrix import tracy_widom_cdf, tracy_widom_quantile

F64 = torch.float64
LAWS = [
    Semicircle(1.0),
    Semicircle(0.2, center=-3.0),
    *(MarchenkoPastur(aspect, 2.0) for aspect in (0.01, 0.3, 0.9, 1.0, 1.5, 20.0)),
]


def wigner(n: int, generator: torch.Generator) -> torch.Tensor:
    """Symmetric, entries of variance 1 / n off the diagonal and twice that on it."""
    W = torch.randn(n, n, generator=generator, dtype=F64)
    return (W + W.T) / math.sqrt(2 * n)


def integral(law: Semicircle | MarchenkoPastur, end: float, power: int = 0) -> float:
    """Of x^power times the density up to ``end``, with x = low + t^2, so that no end is singular."""
    low = law.edges[0]

    def f(t: float) -> float:
        x = low + t * t
        return float(law.density(torch.tensor(x, dtype=F64))) * x**power * 2 * t

    return float(quad(f, 0, math.sqrt(max(0.0, end - low)), epsabs=1e-10, limit=400)[0])


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_cdf_is_the_integral_of_the_density(law: Semicircle | MarchenkoPastur) -> None:
    low, high = law.edges
    atom = law.atom if isinstance(law, MarchenkoPastur) else 0.0
    for share in (0.001, 0.1, 0.5, 0.97, 1.0):
        x = low + share * (high - low)
        assert float(law.cdf(torch.tensor(x, dtype=F64))) == pytest.approx(atom + integral(law, x), abs=1e-7)
    x = torch.tensor([low - 1e6, high + 1e-9, 1e9], dtype=F64)
    torch.testing.assert_close(law.cdf(x), torch.tensor([0.0, 1.0, 1.0], dtype=F64), rtol=0, atol=1e-9)
    assert float(law.density(torch.tensor(high + 1e-6))) == 0


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_mean_and_variance(law: Semicircle | MarchenkoPastur) -> None:
    mean, square = (integral(law, law.edges[1], power) for power in (1, 2))
    if isinstance(law, Semicircle):
        assert (mean, square - mean**2) == (pytest.approx(law.center, rel=1e-6), pytest.approx(law.scale**2, rel=1e-5))
    else:
        assert mean == pytest.approx(law.scale, rel=1e-6)
        assert square - mean**2 == pytest.approx(law.aspect * law.scale**2, rel=1e-5)
        assert MarchenkoPastur.fitted(mean, square - mean**2).aspect == pytest.approx(law.aspect, rel=1e-5)


@pytest.mark.parametrize(("n", "samples"), [(600, 2400), (600, 600), (600, 200)])
def test_covariances_follow_marchenko_and_pastur(n: int, samples: int) -> None:
    X = torch.randn(samples, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    values = torch.linalg.eigvalsh(X.T @ X / samples)
    law = MarchenkoPastur(n / samples)
    empirical = torch.arange(1, n + 1, dtype=F64) / n
    beyond = values > 1e-9  # the zeros of a singular matrix are an atom, of which rounding makes a cloud
    assert float((law.cdf(values[beyond]) - empirical[beyond]).abs().max()) < 0.02
    assert float(1 - beyond.double().mean()) == pytest.approx(law.atom, abs=1e-9)
    assert abs(float(values[-1]) - law.edges[1]) < 5 * law.edge_scale(n)


def test_symmetric_matrices_follow_the_semicircle() -> None:
    values = torch.linalg.eigvalsh(3 * wigner(800, torch.Generator().manual_seed(0)) + 5 * torch.eye(800, dtype=F64))
    law = Semicircle(3.0, center=5.0)
    empirical = torch.arange(1, 801, dtype=F64) / 800
    assert float((law.cdf(values) - empirical).abs().max()) < 0.01
    assert abs(float(values[-1]) - law.edges[1]) < 5 * law.edge_scale(800)


@pytest.mark.parametrize("strength", [0.4, 0.9, 1.5, 3.0, -0.5, -2.0])
def test_where_an_outlier_shows(strength: float) -> None:
    """Péché's map, mirrored for negative strengths; at the edge below the threshold."""
    n, law, found = 1000, Semicircle(1.0), []
    for seed in range(4):
        A = wigner(n, torch.Generator().manual_seed(seed))
        A[0, 0] += strength
        values = torch.linalg.eigvalsh(A)
        found.append(float(values[-1] if strength > 0 else values[0]))
    expected = law.outlier(strength)
    assert sum(found) / 4 == pytest.approx(expected, abs=0.06 if abs(strength) > 1 else 0.03)
    assert law.outlier(-strength) == -expected
    if abs(strength) <= law.threshold:
        assert abs(expected) == law.edges[1]


@pytest.mark.parametrize(
    ("samples", "strength", "formula"), [(100, 20.0, 20.75), (100, 6.0, 8.5), (100, 2.0, 7.746), (25, 20.0, 23.0)]
)
def test_mini_batches_of_matrices(samples: int, strength: float, formula: float) -> None:
    """Of a deformed Wigner matrix with P = 1500, sigma_e = 1: lambda + P sigma^2 / (b lambda), or the edge."""
    law = Semicircle(math.sqrt(1500 / samples))
    assert law.outlier(strength) == pytest.approx(formula, rel=1e-3)
    A = law.scale * wigner(1500, torch.Generator().manual_seed(1))
    A[0, 0] += strength
    assert float(torch.linalg.eigvalsh(A)[-1]) == pytest.approx(formula, rel=0.03)


@pytest.mark.parametrize(("aspect", "strength"), [(0.5, 3.0), (0.5, 1.4), (2.0, 6.0), (0.25, 0.3), (0.25, 0.8)])
def test_spiked_covariances(aspect: float, strength: float) -> None:
    """Baik and Silverstein, above the bulk and below it."""
    n, law, found = 400, MarchenkoPastur(aspect, 2.0), []
    for seed in range(6):
        X = torch.randn(int(n / aspect), n, generator=torch.Generator().manual_seed(seed), dtype=F64)
        X[:, 0] *= math.sqrt(strength)
        values = torch.linalg.eigvalsh(2 * X.T @ X / len(X))
        found.append(float(values[-1] if strength > 1 else values[0]))
    assert sum(found) / 6 == pytest.approx(law.outlier(strength), rel=0.05)


def test_tracy_and_widom() -> None:
    """Mean and quantiles of the law for beta = 1 (Bornemann, Math. Comput. 79, 871, 2010; Prähofer's tables)."""
    for probability, quantile in ((0.05, -3.1804), (0.5, -1.2686), (0.95, 0.9793), (0.99, 2.0234), (0.999, 3.2724)):
        assert tracy_widom_quantile(probability) == pytest.approx(quantile, abs=5e-4)
        assert tracy_widom_cdf(tracy_widom_quantile(probability)) == pytest.approx(probability, abs=1e-9)
    steps = torch.linspace(-10, 8, 181).tolist()
    cdf = torch.tensor([tracy_widom_cdf(x) for x in steps], dtype=F64)
    assert 8 - float(torch.trapezoid(cdf, torch.tensor(steps, dtype=F64))) == pytest.approx(-1.2065335746, abs=1e-5)
    assert bool((cdf.diff() > -1e-12).all())
    assert (tracy_widom_cdf(-math.inf), tracy_widom_cdf(math.inf)) == (0.0, 1.0)


def test_the_extreme_eigenvalue_scatters_as_tracy_and_widom_say() -> None:
    """In the tridiagonal form of Dumitriu and Edelman, whose eigenvalues are those of a Gaussian matrix."""
    n, law, found = 400, Semicircle(1.0), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        T = torch.zeros(n, n, dtype=F64)
        T.diagonal().copy_(torch.randn(n, generator=generator, dtype=F64) * math.sqrt(2 / n))
        chi = torch._standard_gamma(torch.arange(n - 1, 0, -1, dtype=F64) / 2, generator=generator)
        T.diagonal(1).copy_((2 * chi).sqrt() / math.sqrt(n))
        T.diagonal(-1).copy_(T.diagonal(1))
        found.append((float(torch.linalg.eigvalsh(T)[-1]) - law.edges[1]) / law.edge_scale(n))
    below = [sum(x <= tracy_widom_quantile(p) for x in found) / 100 for p in (0.1, 0.5, 0.9)]
    assert below == [pytest.approx(p, abs=0.15) for p in (0.1, 0.5, 0.9)]


def test_scaling() -> None:
    c = 1e-7
    a, b = MarchenkoPastur(0.3, 2.0), MarchenkoPastur(0.3, 2.0 * c)
    x = torch.linspace(0, 6, 50, dtype=F64)
    torch.testing.assert_close(b.cdf(c * x), a.cdf(x))
    torch.testing.assert_close(c * b.density(c * x), a.density(x))
    assert (b.outlier(3.0), b.edge_scale(500)) == (
        pytest.approx(c * a.outlier(3.0)),
        pytest.approx(c * a.edge_scale(500)),
    )


def test_a_point() -> None:
    law = Semicircle(0.0, center=2.0)
    assert (law.edges, law.outlier(3.0), law.outlier(0.0)) == ((2.0, 2.0), 5.0, 2.0)
    assert law.cdf(torch.tensor([1.9, 2.0])).tolist() == [0.0, 1.0]
    with pytest.raises(SettingError, match="above 0 for a density"):
        law.density(torch.tensor(2.0))


def test_they_pickle() -> None:
    for law in (LAWS[0], LAWS[3]):
        assert pickle.loads(pickle.dumps(law)) == law


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Semicircle(-1.0), "scale must be a finite number 0 or more, got -1.0"),
        (lambda: Semicircle(1.0, center=math.nan), "center must be a finite number, got nan"),
        (lambda: MarchenkoPastur(0.0), "aspect must be a finite number above 0"),
        (lambda: MarchenkoPastur(1.0, math.inf), "scale must be a finite number above 0"),
        (lambda: MarchenkoPastur.fitted(0.0, 1.0), "mean must be"),
        (lambda: tracy_widom_quantile(1.0), "probability must be within"),
    ],
)
def test_what_means_nothing_is_refused(make: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()  # type: ignore[operator]
