"""Inner products of rows: the same from either library, with any layout, and only where both are there."""

from __future__ import annotations

import pytest
import torch

from losscope.landscape.kernels import inner_products as library
from losscope.landscape.kernels.inner_products import add_products, inner_products, products

SIZES = [(0, 3, 20), (3, 4, 0), (1, 1, 1), (3, 2, 5), (160, 144, 64), (70, 256, 1000)]


@pytest.fixture(params=["by size", "always", "never"])
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which products oneDNN makes."""
    if request.param == "always":
        monkeypatch.setattr(library, "_FEWEST", 1)
        monkeypatch.setattr(library, "_SHORTEST", 1)
        monkeypatch.setattr(library, "_there_is_onednn", torch.backends.mkldnn.is_available)
    elif request.param == "never":
        monkeypatch.setattr(library, "_there_is_onednn", lambda: False)
    return str(request.param)


def near(found: torch.Tensor, expected: torch.Tensor, lengths: int) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * max(1, lengths) ** 0.5)


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns", "every second"])
def test_products_of_rows(size: tuple[int, int, int], layout: str) -> None:
    torch.manual_seed(0)
    m, n, k = size
    if layout == "columns":
        a, b = torch.randn(k, m).T, torch.randn(k, n).T
    elif layout == "every second":
        a, b = torch.randn(m, 2 * k)[:, ::2], torch.randn(2 * n, k)[::2]
    else:
        a, b = torch.randn(m, k), torch.randn(n, k)
    near(inner_products(a, b), a.double() @ b.double().T, k)
    torch.testing.assert_close(inner_products(a.double(), b.double()), a.double() @ b.double().T)


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_of_each_sample(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    m, k, t = size
    b, a, into = torch.randn(5, m, t), torch.randn(5, k, t).transpose(1, 2), torch.randn(5, m, k)
    expected, before = b.double() @ a.double(), into.double()
    add_products(b, a, into)
    near(into, before + expected, t)
    products(b, a, into)
    near(into, expected, t)


def test_several_threads_take_samples_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_there_is_onednn", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(library, "_onednn", None)  # would fail
    b, a, into = torch.randn(2, 160, 64), torch.randn(2, 64, 256), torch.empty(2, 160, 256)
    products(b, a, into)
    near(into, b.double() @ a.double(), 64)


def test_what_is_not_finite_stays_so() -> None:
    a = torch.ones(128, 128)
    a[3, 5] = torch.nan
    assert bool(inner_products(a, a)[3].isnan().all()) and int(inner_products(a, a).isnan().sum()) == 255


def test_an_operation_that_is_gone_or_another_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise AttributeError("no such operation")

    monkeypatch.setattr(library, "_foreign_to_mkl", lambda: True)
    for instead in (gone, lambda a, b: 2 * a @ b.T):
        monkeypatch.setattr(library, "_onednn", instead)
        library._there_is_onednn.cache_clear()
        try:
            assert not library._there_is_onednn()
            a = torch.randn(128, 128)
            torch.testing.assert_close(inner_products(a, a), a @ a.T)
        finally:
            library._there_is_onednn.cache_clear()
