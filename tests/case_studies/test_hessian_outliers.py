"""The case study of outliers, in short: its robust claims, and the data that it varies."""

import pytest
import torch

from claims import check_claims
from hessian_outliers import Case, spectrum, study
from over_parametrised.data import blobs, digits_of
from study import command_line


def test_the_short_version_asserts_its_claims(tmp_path) -> None:
    claims = study(command_line("", "hessian_outliers", arguments=["--quick", "--out", str(tmp_path / "run")]))
    robust = {claim.name for claim in claims} - {"no_barrier_faster"}
    assert {"outliers_stay", "one_for_each_output_and_cluster", "no_barrier_onward", "barrier_apart"} <= robust
    check_claims(claims, *robust)


def test_clusters_of_the_size_and_distance_asked_for() -> None:
    x, y = blobs(4, 0, apart=6.0, samples=400, classes=2)
    assert x.shape == (400, 20) and y.unique().tolist() == [0, 1]
    centres = torch.stack([x[i::4].mean(dim=0) for i in range(4)])
    assert centres.norm(dim=1).tolist() == pytest.approx([6.0] * 4, rel=0.05)


def test_digits_of_the_first_classes() -> None:
    x, y = digits_of(3, 0, 200)
    assert x.shape == (200, 64) and y.unique().tolist() == [0, 1, 2]


def test_without_clusters_there_is_no_gap() -> None:
    assert float(spectrum(Case(0, apart=0.1)).factors[24]) < 1.5
