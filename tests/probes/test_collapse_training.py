"""Which networks collapse on digits, and which do not, under watch; see `case_studies/neural_collapse.py`."""

import pytest

from neural_collapse import check, trained


@pytest.mark.parametrize("normalised", [True, False], ids=["normalised", "plain"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_batch_normalisation_and_weight_decay_take_digits_to_collapse(seed: int, normalised: bool) -> None:
    run = trained(seed, normalised=normalised)
    check(run, normalised=normalised)
    first, last = run.select("neural_collapse")[0], run.select("neural_collapse")[-1]
    assert first.value is not None and last.value is not None
    assert first.value > last.value
    assert last.step == 200 * 24
