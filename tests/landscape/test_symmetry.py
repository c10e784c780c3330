"""What is symmetric is not refused, however little of it products show."""

import pytest
import torch

from losscope.landscape import SettingError, diagonal, frobenius_norm, spectral_density, trace
from losscope.landscape.operators import as_operator
from losscope.landscape.symmetry import refuse_asymmetric
from spectra import rotated


@pytest.mark.parametrize("estimate", [trace, diagonal, frobenius_norm, spectral_density])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices_of_low_rank_are_symmetric(estimate, dtype):
    """Products of what they annihilate are rounding, which is no more symmetric than any."""
    for rank in (1, 3):
        A = rotated(torch.cat([100 - torch.arange(rank), torch.zeros(200 - rank)]).double()).to(dtype)
        for seed in range(5):
            found = estimate((A + A.T) / 2, seed=seed)
            if estimate is trace:
                assert found.low <= 100 * rank - sum(range(rank)) <= found.high


def test_the_norm_that_was_seen_is_remembered():
    """A later look may be at nothing but what is annihilated."""
    A = torch.zeros(4, 4, dtype=torch.float64)
    A[0, 0] = 1.0
    A[2, 3] = 1e-14
    operator, unit = as_operator(A), torch.eye(4, dtype=torch.float64)
    with pytest.raises(SettingError, match="not symmetric"):
        refuse_asymmetric(operator, unit[:, 2:], A[:, 2:])
    refuse_asymmetric(operator, unit, A)
    refuse_asymmetric(operator, unit[:, 2:], A[:, 2:])


def test_what_is_far_from_symmetric_on_small_products_is_refused():
    A = torch.diag(torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    A[2, 3] = 1e-9
    with pytest.raises(SettingError, match="not symmetric"):
        refuse_asymmetric(as_operator(A), torch.eye(4, dtype=torch.float64), A)
