"""What the sentences of a story are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Sentence", "listed", "step", "steps_between"]


@dataclass(frozen=True)
class Sentence:
    """One sentence on a run, or a few that belong together.

    Attributes:
        about: ``"training"``, ``"edge"``, ``"spikes"``, ``"changes"``, ``"verdict"``, ``"gaps"`` or ``"cost"``.
        text: the sentence.
        steps: of the records that it rests on, the first and the last, or those that it names.
    """

    about: str
    text: str
    steps: tuple[int, ...] = ()


def step(at: int) -> str:
    """A step in words.

    Example:
        >>> from losscope.viz.sentences import step
        >>> step(1500)
        'step 1,500'
    """
    return f"step {at:,}"


def steps_between(first: int, last: int) -> str:
    """A stretch of steps in words.

    Example:
        >>> from losscope.viz.sentences import steps_between
        >>> steps_between(10, 1500)
        'steps 10 to 1,500'
    """
    return f"steps {first:,} to {last:,}"


def listed(names: Sequence[str]) -> str:
    """Names in a row.

    Example:
        >>> from losscope.viz.sentences import listed
        >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
