"""Costly things are made no more often than their share of the time."""

import time

import pytest

from losscope.viz.live.paced import LEAST_PAUSE, Paced


def test_no_more_often_than_their_share() -> None:
    paced: Paced[int] = Paced(0.25)
    made = []

    def make() -> int:
        begun = time.thread_time()
        while time.thread_time() < begun + 0.2:
            pass
        made.append(0)
        return len(made)

    begun = time.monotonic()
    key = 0
    while time.monotonic() < begun + 2:
        key += 1
        assert paced.get(key, make) == len(made)
        time.sleep(0.001)
    assert 2 <= len(made) <= 3  # 0.8 s apart at least
    count = len(made)
    paced.hurry()
    assert not paced.due(0) and paced.due(key + 1)
    assert paced.get(key + 1, make) == count + 1
    assert not paced.due(key + 2) and paced.get(key + 2, make) == count + 1
    paced.hurry()
    assert paced.get(1, make) == count + 1  # what was made of less does not come back


def test_what_cannot_be_made_is_not_tried_all_the_time() -> None:
    paced, tried = Paced[int](0.1), []

    def fail() -> int:
        tried.append(0)
        raise ZeroDivisionError

    for key in range(5):
        with pytest.raises(ZeroDivisionError):
            paced.get(key, fail)
    assert len(tried) == 1
    time.sleep(LEAST_PAUSE)
    assert paced.get(9, lambda: 7) == 7
