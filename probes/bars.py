"""Progress bars that know where they are: on a terminal, in a notebook, or in a log file, where there is none."""

from __future__ import annotations

import sys
import warnings
from typing import Any, Self

from tqdm import tqdm

__all__ = ["bar", "in_notebook"]


def in_notebook() -> bool:
    """Whether what is printed appears in a notebook."""
    return type(sys.stdout).__module__.partition(".")[0] == "ipykernel"


class _Nothing:
    """Is used as a bar is, and shows nothing: a bar of tqdm's that is turned off takes longer than a small product."""

    disable = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        pass


def bar(words: str, unit: str, *, silent: bool = False) -> Any:
    """A bar that appears after two seconds and goes when it is done: tqdm's, with widgets in a notebook that has them.

    Off a terminal and a notebook it is silent: in a file no line is written over, and each update would stay.

    Args:
        words: before it.
        unit: what is counted.
        silent: whether not to show it anywhere.
    """
    in_cell = not silent and in_notebook()
    if silent or not (in_cell or sys.stderr.isatty()):
        return _Nothing()
    options: dict[str, Any] = {"desc": words, "unit": unit, "delay": 2.0, "leave": False}
    if not in_cell:
        return tqdm(**options)
    with warnings.catch_warnings():  # of widgets that are not installed: text will do
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm as either

        return either(file=sys.stdout, **options)
