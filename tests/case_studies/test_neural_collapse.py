"""The case study of neural collapse, in short: its robust claims, and the models that its theory is about."""

import pytest
import torch

from claims import check_claims, read_claims, write_claims
from collapse.free_features import CLASSES, Tether, minimiser, peeled
from losscope.probes import Run
from neural_collapse import ROBUST, Case, data, study
from study import command_line


def test_the_short_version_asserts_its_claims(tmp_path) -> None:
    options = command_line("", "neural_collapse", quick_seeds=1, arguments=["--quick", "--out", str(tmp_path / "run")])
    claims = study(options)
    check_claims(claims, *ROBUST)
    _, read = read_claims(write_claims(options.out, "neural_collapse", claims, quick=True))
    stalls = next(claim for claim in read if claim.name == "plain_stalls")
    assert stalls.mean > 0.1  # and so is noticed where it does not hold
    records = Run(options.out / "runs" / "normalised-0.005-1-0").select("neural_collapse")
    assert records[0].value > records[-1].value
    assert {"2/nc1_quotient", "5/nc1_quotient", "nc1_quotient"} <= set(records[-1].values)


def test_a_tight_tether_lets_nothing_shrink() -> None:
    before, after, _ = minimiser(Tether(beta=1e6), 0)
    assert after == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("tether", [Tether(), Tether(beta=0.01, decay=0.02, feature_decay=0.1)], ids=["a", "b"])
def test_the_tethered_minimum_is_one(tether: Tether) -> None:
    """The gradient of the written loss is zero there, by torch's own differentiation."""
    given = tether.given(3)
    H = given.clone()
    for _ in range(2000):
        H = tether.features(tether.classifier(H), given)
    W = tether.classifier(H).requires_grad_()
    H.requires_grad_()
    Y = torch.eye(CLASSES, dtype=H.dtype).repeat_interleave(len(H) // CLASSES, dim=0)
    fit = (H @ W.T - Y).square().sum() + tether.beta * (H - given).square().sum()
    loss = (fit + tether.feature_decay * H.square().sum()) / (2 * len(H)) + tether.decay / 2 * W.square().sum()
    for gradient in torch.autograd.grad(loss, (H, W)):
        assert gradient.norm() < 1e-8


def test_rows_of_rare_classes_come_together_with_the_ratio() -> None:
    cosines = [peeled(ratio, seed=1) for ratio in (1, 10, 100, 1000)]
    assert cosines == sorted(cosines)


def test_rare_classes_are_rare() -> None:
    _, y, _, test = data(Case(0, rare=20))
    counts = y.bincount()
    assert counts[5:].max() * 15 < counts[:5].min() and len(test) == 297
