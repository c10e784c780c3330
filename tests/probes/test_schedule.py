import numpy as np
import pytest

from losscope.landscape import SettingError
from losscope.probes import logarithmic
from losscope.probes.schedule import as_schedule


def due(every, until: int = 30) -> list[int]:
    schedule = as_schedule(every)
    return [t for t in range(until) if schedule(t)]


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (1, list(range(30))),
        (10, [0, 10, 20]),
        (100, [0]),
        ([3], [3]),
        ((7, 3, 3), [3, 7]),
        ({5, 1}, [1, 5]),
        (range(0, 30, 9), [0, 9, 18, 27]),
        ((t for t in (2, 4)), [2, 4]),
        (lambda t: t % 7 == 1, [1, 8, 15, 22, 29]),
        (lambda t: t == 4 or None, [4]),
        (lambda t: np.bool_(t == 6), [6]),
    ],
)
def test_what_a_user_writes(every, steps):
    assert due(every) == steps
    assert all(isinstance(as_schedule(lambda t: np.bool_(True))(t), bool) for t in range(2))


@pytest.mark.parametrize(
    "every", [0, -1, 1.5, True, False, "50", b"50", None, [], set(), [-1], [1.0], ["a"], [True], [[1]], [{}], object()]
)
def test_what_means_nothing_is_refused(every):
    with pytest.raises(SettingError, match=r"every must be|explicit steps must be"):
        as_schedule(every)


@pytest.mark.parametrize("per_decade", [1, 3, 10])
def test_logarithmic(per_decade):
    steps = [t for t in range(10_001) if logarithmic(per_decade)(t)]
    assert steps[:2] == [0, 1]
    assert {10, 100, 1000, 10_000} <= set(steps)
    assert len([t for t in steps if 1000 < t <= 10_000]) == per_decade
    with pytest.raises(SettingError, match="per_decade"):
        logarithmic(0)
