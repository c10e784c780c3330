"""The case study of SGD's stability, in short: its robust claims, and what a run leaves behind."""

import math

import pytest
import torch

from claims import check_claims, read_claims, write_claims
from losscope.landscape import Hessian, Objective
from losscope.probes import Run
from sgd.bounds import real_claims
from sgd.linear import ROWS, rows_of
from sgd.networks import DiagonalNetwork, path_norm, squared_error, two_layer_relu, two_layer_trace, white
from sgd.sparse import diagonal_claims
from sgd_stability import study
from study import command_line


def test_the_short_version_asserts_its_claims(tmp_path) -> None:
    options = command_line("", "sgd_stability", arguments=["--quick", "--out", str(tmp_path / "run")])
    claims = study(options)
    check_claims(claims)
    names = {claim.name for claim in read_claims(write_claims(options.out, "sgd_stability", claims, quick=True))[1]}
    assert {"trace_necessary", "diagonal_l1", "sgd_trace", "gd_weaker", "frobenius"} <= names
    (folder, *_) = (options.out / "runs").iterdir()
    assert math.isfinite(Run(folder).select("stability")[-1].values["trace"])


@pytest.mark.parametrize("kind", ROWS)
def test_thresholds_lie_between_the_bounds(kind: str) -> None:
    rows = rows_of((kind, 3))
    thresholds = list(rows.exact.values())
    assert thresholds == sorted(thresholds) and thresholds[0] <= 1 + 1e-9 and thresholds[-1] <= rows.descent
    assert rows.radius[0] < 1 < rows.radius[1]


def test_the_bounds_of_norms_by_the_trace() -> None:
    model = DiagonalNetwork(10)
    torch.nn.init.normal_(model.u)
    torch.nn.init.normal_(model.v)
    assert 2 * float(model.weights.detach().abs().sum()) <= model.trace
    assert path_norm(two_layer_relu(10, 7, 0)) <= two_layer_trace(two_layer_relu(10, 7, 0))


def test_the_trace_of_two_layers_needs_the_mirrored_data() -> None:
    x, model = white(30, 10, 0), two_layer_relu(10, 7, 0).double()
    H = Hessian(Objective(model, (x, torch.zeros(30, 1, dtype=x.dtype)), criterion=squared_error))
    trace = float((H @ torch.eye(H.shape[0], dtype=x.dtype)).trace())
    assert abs(trace / two_layer_trace(model) - 1) > 1e-3


def test_claims_of_a_model_whose_runs_all_diverge() -> None:
    claims = real_claims([0], {(0, 1, 0.04): None, (0, 100, 0.04): None})
    claims += diagonal_claims([0], {(0, 0.01, False): None, (0, 0.01, True): None})
    assert all(math.isnan(claim.mean) and claim.held == 0 for claim in claims)
    assert "2 of 2 runs diverged" in claims[0].note
