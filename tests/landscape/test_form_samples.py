"""The mean of quadratic forms: cycles by brute force, spread and skewness by the spectrum, coverage of few samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from losscope.landscape import form_samples
from losscope.landscape.form_samples import FormSamples
from losscope.landscape.space import VectorSpace

N = 200
F64 = torch.float64
SPECTRA = {
    "flat but for ten": torch.cat((torch.full((10,), 5.0, dtype=F64), torch.ones(N - 10, dtype=F64))),
    "one": torch.cat((torch.full((1,), 100.0, dtype=F64), torch.full((N - 1,), 0.5, dtype=F64))),
    "exponential": torch.exp(-torch.arange(N, dtype=F64) / 8) + 0.05,
    "indefinite": torch.cat(
        (torch.ones(8, dtype=F64), -torch.ones(8, dtype=F64), torch.full((N - 16,), 0.1, dtype=F64))
    ),
}


def samples_of(values: Tensor, seed: int, *blocks: int) -> FormSamples:
    """Of a diagonal matrix, in blocks of so many vectors."""
    generator, found = torch.Generator().manual_seed(seed), FormSamples(VectorSpace(N, F64, torch.device("cpu")), N)
    for count in blocks:
        Z = torch.randn(N, count, dtype=F64, generator=generator)
        found.add(Z, values[:, None] * Z)
    return found


def test_cycles_are_those_of_different_vectors() -> None:
    generator = np.random.default_rng(0)
    lengths, forms = (x + x.T for x in generator.standard_normal((2, 6, 6)))
    A = forms - 0.3 * lengths
    expected = [
        sum(math.prod(A[c[i], c[i - 1]] for i in range(p)) for c in itertools.permutations(range(6), p))
        for p in (2, 3, 4)
    ]
    assert form_samples._cycles(form_samples._apart(lengths, forms, 0.3)) == pytest.approx(expected)


@pytest.mark.parametrize("name", SPECTRA)
def test_many_vectors_show_what_the_spectrum_says(name: str) -> None:
    values = SPECTRA[name]
    found = samples_of(values, 0, 60, 40)
    apart = values - values.mean()
    spread, skewness, degrees = found._shape()
    variance = spread**2
    assert found.count == 100
    assert found.mean == pytest.approx(float(values.sum()), abs=4 * math.sqrt(variance / 100))
    assert variance == pytest.approx(2 * float(apart.square().sum()), rel=0.5 if name == "one" else 0.2)
    expected = 8 * float(apart.pow(3).sum()) / float(2 * apart.square().sum()) ** 1.5
    assert skewness == pytest.approx(expected, abs=0.3)
    assert degrees < 40 if name == "one" else degrees > 150
    assert found.spread == spread


def test_blocks_are_one_set_where_memory_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values = SPECTRA["exponential"]
    whole, cut = samples_of(values, 0, 12), samples_of(values, 0, 12)
    Z = torch.randn(N, 12, dtype=F64, generator=torch.Generator().manual_seed(1))
    whole.add(Z, values[:, None] * Z)
    for some in Z.split(5, dim=1):
        cut.add(some, values[:, None] * some)
    assert cut.interval(0.95) == pytest.approx(whole.interval(0.95))
    monkeypatch.setattr(form_samples, "_MEMORY", 4 * N * 8)
    apart = samples_of(values, 0, 4, 4, 4)
    assert apart.count == 12 and apart.mean == pytest.approx(samples_of(values, 0, 12).mean, rel=0.1)
    monkeypatch.setattr(form_samples, "_MEMORY", 1)
    alone = samples_of(values, 0, 2, 2, 2)
    assert alone.spread == pytest.approx(float(np.std(alone._values, ddof=1)))  # by the forms alone
    low, high = alone.interval(0.95)
    assert low < alone.mean < high


@pytest.mark.parametrize("count", [5, 8])
@pytest.mark.parametrize("name", SPECTRA)
def test_few_vectors_cover(name: str, count: int) -> None:
    values, hits, seeds = SPECTRA[name], 0, 400
    for seed in range(seeds):
        low, high = samples_of(values, seed, count).interval(0.95)
        hits += low <= float(values.sum()) <= high
    assert hits >= 0.915 * seeds


def test_a_multiple_of_the_identity_has_no_spread() -> None:
    found = samples_of(torch.full((N,), 2.0, dtype=F64), 0, 6)
    assert found.interval(0.95) == pytest.approx((2 * N, 2 * N), rel=1e-12)
    assert samples_of(torch.zeros(N, dtype=F64), 0, 6).interval(0.95) == (0.0, 0.0)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_scale_of_the_matrix_is_only_a_scale(scale: float) -> None:
    plain, scaled = samples_of(SPECTRA["exponential"], 0, 7), samples_of(SPECTRA["exponential"] * scale, 0, 7)
    assert scaled.interval(0.95) == pytest.approx([scale * end for end in plain.interval(0.95)])
    assert scaled.spread == pytest.approx(scale * plain.spread)
