"""Names of several runs that tell them apart, short enough for a legend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from losscope.probes import Run

__all__ = ["distinct", "run_names", "shortened"]

MOST = 32


def run_names(runs: Sequence[Run]) -> list[str]:
    """The folders' names; of those with the same, as much of the path before it as tells them apart.

    Example:
        >>> from losscope.probes import Run
        >>> from losscope.viz.names import run_names
        >>> run_names([Run.from_records({}, []), Run.from_records({}, [])])
        ['run (1)', 'run (2)']
    """
    parts = [run.path.resolve().parts if run.path is not None else (run.name,) for run in runs]
    names = [each[-1] for each in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        folders: dict[str, set[tuple[str, ...]]] = {}
        for name, part in zip(names, parts, strict=True):
            folders.setdefault(name, set()).add(part)
        names = [
            "/".join(part[-depth:]) if len(folders[name]) > 1 else name for name, part in zip(names, parts, strict=True)
        ]
    return distinct(names)


def distinct(names: Sequence[str]) -> list[str]:
    """The same names, those that occur several times with a number.

    Example:
        >>> from losscope.viz.names import distinct
        >>> distinct(["a", "b", "a"])
        ['a (1)', 'b', 'a (2)']
    """
    counts, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if counts[name] == 1 else f"{name} ({seen[name]})")
    return found


def shortened(names: Sequence[str], most: int = MOST) -> list[str]:
    """Names of at most so many letters that still differ: what long ones share at either end is left out first.

    Example:
        >>> from losscope.viz.names import shortened
        >>> shortened(["resnet50_imagenet_lr0.1_seed0", "resnet50_imagenet_lr0.2_seed0"], 12)
        ['…lr0.1_seed0', '…lr0.2_seed0']
    """
    if all(len(name) <= most for name in names):
        return list(names)
    before = _shared(names)
    before = max(names[0].rfind(mark, 0, before) for mark in "/_- ") + 1 or max(before - 2, 0)  # whole words
    cut = [f"…{name[before:]}" if before > 1 and len(name) > most else name for name in names]
    after = _shared([name[::-1] for name in cut])
    cut = [f"{name[: len(name) - after]}…" if after > 1 and len(name) > most else name for name in cut]
    left = most // 2
    return distinct([name if len(name) <= most else f"{name[:left]}…{name[left + 1 - most :]}" for name in cut])


def _shared(names: Sequence[str]) -> int:
    """How many letters all of several names begin with."""
    if len(names) < 2:
        return 0
    return next((i for i, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), 0)
