"""Comparing pictures: what antialiasing may change is no difference, what an artist's move or absence changes is."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

DPI = 80
NEAR = 1
"""Pixels by which an edge may lie elsewhere."""
TOLERANCE = 40
"""Of 255, by which a colour may differ: less than the lightest of our colours differs from paper and grid together."""
MOST = 2
"""Pixels that may differ nevertheless, as where a letter is hinted otherwise."""

BASELINES = Path(__file__).parent.parent / "viz" / "baseline"
COMMAND = ".venv/bin/python tests/support/baselines.py"


def drawn(figure: Figure) -> np.ndarray:
    """A figure as RGB, (h, w, 3), in matplotlib's own settings and fonts whatever those of the user."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return np.asarray(Image.open(file).convert("RGB"))


def own_settings() -> object:
    """A context in which a matplotlibrc of the user's does not count."""
    return matplotlib.rc_context(dict(matplotlib.rcParamsDefault))


def kept(name: str) -> np.ndarray:
    """A baseline."""
    return np.asarray(Image.open(BASELINES / f"{name}.png").convert("RGB"))


def write(path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(path, optimize=True)


def differing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which pixels, (h, w), have a colour that the other picture has nowhere beside them, in either direction."""

    def lacks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        size = (2 * NEAR + 1, 2 * NEAR + 1, 1)
        low, high = minimum_filter(b, size).astype(int), maximum_filter(b, size).astype(int)
        return ((a < low - TOLERANCE) | (a > high + TOLERANCE)).any(axis=2)

    return lacks(one, other) | lacks(other, one)


def compare(name: str, picture: np.ndarray, out: Path) -> str:
    """What is wrong with a picture, empty where nothing is; then the picture and the difference are left in a folder.

    Args:
        name: of the baseline.
        picture: (h, w, 3).
        out: the folder.
    """
    expected = kept(name)
    if expected.shape != picture.shape:
        said, marked = f"its size is {picture.shape[:2]}, was {expected.shape[:2]}", None
    else:
        where = differing(picture, expected)
        if where.sum() <= MOST:
            return ""
        said = f"{int(where.sum())} pixels differ"
        marked = (128 + picture // 2).astype(np.uint8)
        marked[where] = (255, 0, 0)
    Image.fromarray(picture).save(out / f"{name}.png")
    if marked is not None:
        Image.fromarray(marked).save(out / f"{name}-difference.png")
    return f"{name}: {said}; see {out}. If it is better than it was, look at it and keep it: {COMMAND} {name}"
