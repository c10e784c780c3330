"""What the verdict predicts of a restart at a larger rate, in short; see `case_studies/restart_test.py`."""

import pytest

from restart_test import checkpoints
from stability_audit import gradient_descent


@pytest.mark.parametrize(("edge", "kind", "least"), [(20, "at the edge", 4), (40, "far below", 8)])
def test_a_larger_rate_spikes_at_the_edge_and_not_far_below(edge: float, kind: str, least: int) -> None:
    found = [c for c in checkpoints(gradient_descent(edge), seed=0, steps=1000, every=100) if c.kind == kind]
    assert len(found) >= least
    rises = {checkpoint.step: checkpoint.rise() for checkpoint in found}
    wrong = {c.step: rises[c.step] for c in found if not c.predicted(rises[c.step])}
    assert len(wrong) <= 0.1 * len(found), wrong
