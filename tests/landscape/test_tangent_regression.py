"""Kernel regression against scikit-learn's kernel ridge, and by hand."""

import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from losscope.landscape import SettingError
from losscope.landscape.tangent import kernel_regression


def test_against_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    J = torch.randn(30, 50, generator=generator, dtype=torch.float64)
    K, Y = J @ J.T, torch.randn(30, 3, generator=generator, dtype=torch.float64)
    found = kernel_regression(K, Y, 20, ridge=0.01)
    mean = Y[:20].mean(dim=0)
    assert found.ridge == pytest.approx(0.01 * float(K[:20, :20].diagonal().mean()))
    peer = KernelRidge(alpha=found.ridge, kernel="precomputed").fit(K[:20, :20].numpy(), (Y[:20] - mean).numpy())
    expected = mean + torch.from_numpy(peer.predict(K[20:, :20].numpy()))
    torch.testing.assert_close(found.predictions, expected, rtol=1e-9, atol=1e-10)
    assert found.error == pytest.approx(float((expected - Y[20:]).square().mean()))


def test_accuracy_beside_the_network() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    Y = torch.nn.functional.one_hot(labels).double()
    K = Y @ Y.T
    outputs = Y.clone()
    outputs[5] = torch.tensor([9.0, 0.0, 0.0])
    for given in (outputs, outputs[3:]):
        found = kernel_regression(K, labels, 3, outputs=given)
        assert (found.accuracy, found.network) == (1.0, pytest.approx(2 / 3))
    assert kernel_regression(K, labels, 3).network is None
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert kernel_regression(torch.outer(signs, signs), signs, 2).accuracy == 1


def test_bad_input() -> None:
    K, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
    for options, words in (
        ({"train": 0}, "train is how many samples to fit, .* from 1 to 3 of 4; got 0"), ({"train": 4}, "train"),
        ({"train": 2, "ridge": 0}, "ridge"),
        ({"train": 2, "outputs": torch.zeros(3, 2)}, r"outputs must be \(2, 2\)"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=words):
            kernel_regression(K, y, **options)
    with pytest.raises(SettingError, match="zero on the samples"):
        kernel_regression(torch.zeros(4, 4), y, 2)
