"""The case study of batch sizes, in short: its robust claims, and how rates and exponents are found."""

import math

import pytest

import batch_size
from batch_size import ROBUST, Trained, exponent, from_spectrum, largest_rate, study
from claims import check_claims
from study import command_line


def test_the_short_version_asserts_its_claims(tmp_path) -> None:
    claims = study(command_line("", "batch_size", arguments=["--quick", "--out", str(tmp_path / "run")]))
    check_claims(claims, *ROBUST)


def test_exponents() -> None:
    rates = {B: 0.1 * B**0.5 for B in (1, 2, 4, 8, 1000)} | {2000: math.nan}
    assert exponent(rates, (1, 1000)) == pytest.approx(0.5)
    assert exponent({**rates, 4: 9.0}, (1, 2)) == pytest.approx(0.5)
    assert math.isnan(exponent(rates, (900, 2000)))


def test_bisection_finds_the_edge(monkeypatch) -> None:
    monkeypatch.setattr(batch_size, "trains", lambda rule, rate, size, seed: 0.01 * size < rate < 0.2 * size)
    assert 0.2 / batch_size.FINENESS <= largest_rate(("SGD", 1, 0)) < 0.2
    assert 0.8 / batch_size.FINENESS <= largest_rate(("SGD", 4, 0)) < 0.8
    monkeypatch.setattr(batch_size, "trains", lambda rule, rate, size, seed: False)
    assert math.isnan(largest_rate(("Adam", 1, 0)))


def test_a_rate_that_diverges_is_told() -> None:
    found = from_spectrum((50.0, True, 0), steps=40)
    assert found == Trained(math.inf, {0: 50.0})
