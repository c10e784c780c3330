"""Weights that move while nobody says so: by an optimizer that is not watched, or a `step` that the loop forgets."""

from __future__ import annotations

from torch import nn

from .player import Player

__all__ = ["StrayWrites"]

_MANY = 10
"""Writes that no loop makes in passing: it may clip its weights, or load and average them, once or a few times."""


class StrayWrites:
    """Counts writes on a player's weights since the last update or measurement, on one parameter that trains.

    Args:
        player: the player.
    """

    def __init__(self, player: Player) -> None:
        self._player = player
        self._followed: tuple[nn.Parameter, int] | None = None
        self.explained()

    def explained(self) -> None:
        """What has been written up to now is known of."""
        kept = None if self._followed is None or not self._followed[0].requires_grad else self._followed[0]
        p = next((p for p in self._player.moved if p.requires_grad), None) if kept is None else kept
        self._followed = None if p is None else (p, p._version)

    def words(self, updates: int, *, manual: bool) -> str:
        """What became of the weights by the end of a training; empty where all is explained.

        Args:
            updates: how many were seen.
            manual: whether the loop says when one was made.
        """
        writes = 0 if self._followed is None else self._followed[0]._version - self._followed[1]
        if writes < (_MANY if updates else 1):
            return ""
        likely = "run.step() was not called" if manual else "another optimizer than the one that is watched moves them"
        seen = f"the last of {updates} updates was seen" if updates else "the run began, and no update was seen"
        return f"written on {writes} times after {seen}: {likely}"
