"""Curves in characters."""

import numpy as np
import pytest

from losscope.viz.live.plot import curve, spans_much


def dots(lines: list[str]) -> np.ndarray:
    """The picture that Braille cells show, True where a dot is."""
    rows = len(lines)
    shown = np.zeros((rows * 4, len(lines[0]) * 2), dtype=bool)
    for i, line in enumerate(lines):
        for j, sign in enumerate(line):
            bits = ord(sign) - 0x2800 if 0x2800 <= ord(sign) < 0x2900 else 0
            places = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]  # bit by bit, as Unicode has them
            for bit, (y, x) in enumerate(places):
                shown[4 * i + y, 2 * j + x] = bool(bits >> bit & 1)
    return shown


def drawn(steps: np.ndarray, values: np.ndarray, width: int = 50, height: int = 6, **options: object) -> np.ndarray:
    lines = curve(steps, values, width=width, height=height, **options)  # type: ignore[arg-type]
    return dots([line.plain[10:].ljust(width - 10) for line in lines[:-1]])


def test_a_line_goes_from_corner_to_corner() -> None:
    picture = drawn(np.arange(200), np.arange(200.0))
    rows, columns = np.nonzero(picture)
    assert picture.any(axis=0).all()
    expected = (columns.max() - columns) / columns.max() * (picture.shape[0] - 1)
    assert np.abs(rows - expected).max() <= 1


def test_no_spike_is_lost() -> None:
    values = np.zeros(10_000)
    values[4321] = 5.0
    picture = drawn(np.arange(10_000), values)
    column = round(4321 / 9999 * (picture.shape[1] - 1))
    assert picture[:, column].all() and picture[0].sum() == 1


def test_what_is_not_finite_is_a_gap_and_few_points_are_joined() -> None:
    values = np.array([1.0, 1.0, np.nan, np.inf, 1.0, 1.0])
    line = drawn(np.arange(6), values).any(axis=0)
    assert line[: len(line) // 5 - 1].all() and line[-(len(line) // 5 - 1) :].all()
    assert not line[len(line) // 5 + 2 : -(len(line) // 5 + 2)].any()
    assert drawn(np.array([0, 100]), np.array([1.0, 2.0])).any(axis=0).all()


def test_scales() -> None:
    steps = np.arange(100)
    decay = np.exp(-steps / 10)
    picture = drawn(steps, decay)
    rows, columns = np.nonzero(picture)
    assert np.abs(rows - columns / columns.max() * (picture.shape[0] - 1)).max() <= 1  # a line on a logarithmic scale
    assert spans_much(decay) and not spans_much(decay + 1) and not spans_much(-decay) and not spans_much(decay[:0])
    negative = curve(steps, -decay, width=40, height=5)
    assert (negative[0].plain.split()[0], negative[3].plain.split()[0]) == ("-5.02e-05", "-1")


def test_the_threshold() -> None:
    steps, values = np.arange(100), np.linspace(1, 12, 100)
    lines = curve(steps, values, width=60, height=8, threshold=np.full(100, 20.0))
    assert lines[0].plain.split()[0] == "20" and lines[0].plain.count("╌") == 50
    late = curve(steps, values, width=60, height=8, threshold=np.where(steps < 50, np.nan, 10.0))
    assert sum(line.plain.count("╌") for line in late) > 20
    far = curve(steps, values, width=60, height=8, threshold=np.full(100, 2e6))  # would press the curve flat
    assert not any("╌" in line.plain for line in far)
    assert far[0].plain.split()[0] == "12"


def test_a_threshold_that_changes_is_drawn_where_it_held() -> None:
    steps = np.arange(100)
    lines = curve(steps, np.ones(100), width=60, height=9, threshold=np.where(steps < 50, 2.0, 4.0), signs=False)
    rows = [line.plain[10:].ljust(50) for line in lines]
    upper, lower = rows[0], rows[4 - 0]
    assert upper[30:].count("-") == 20 and upper[:20].count("-") == 0
    assert "-" in "".join(rows[3:6])[:] and lower[30:].count("-") == 0


@pytest.mark.parametrize("signs", [True, False])
@pytest.mark.parametrize("width", [14, 20, 60, 200])
@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [0.0], [1e-300, 1e300], [np.nan, 5.0], [-1.0, 1e9]])
def test_it_fits(signs: bool, width: int, values: list[float]) -> None:
    lines = curve(np.arange(len(values)), np.array(values), width=width, height=5, signs=signs)
    assert (len(lines) in (0, 5) and len(lines) == 5) or width < 15
    assert all(len(line.plain) <= width for line in lines)
    assert signs or all(line.plain.isascii() for line in lines)


@pytest.mark.parametrize(("values", "width", "height"), [([np.nan, np.inf], 60, 6), ([1.0], 10, 6), ([1.0], 60, 2)])
def test_nothing_to_draw(values: list[float], width: int, height: int) -> None:
    assert curve(np.arange(len(values)), np.array(values), width=width, height=height) == []
