"""Updates that a GradScaler skipped, counted without waiting for the device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from losscope.landscape import SettingError

__all__ = ["SkippedUpdates", "checked_scaler"]

_FOLD = 256  # looks at the scale that are kept before they are summed up


def checked_scaler(scaler: Any) -> Any:
    """The scaler, None where it is turned off.

    Raises:
        SettingError: if it is not torch's, whose scale can be looked at without waiting for it.
    """
    if scaler is None:
        return None
    wanted = ("_get_scale_async", "_get_growth_tracker", "get_scale", "get_backoff_factor", "is_enabled")
    if isinstance(scaler, type) or not all(callable(getattr(scaler, name, None)) for name in wanted):
        raise SettingError(f"scaler must be a torch.amp.GradScaler, got {type(scaler).__name__}")
    return scaler if scaler.is_enabled() else None


class SkippedUpdates:
    """Counts skipped updates.

    A scaler that finds infinite gradients does not call ``step``, and multiplies its scale by the backoff factor
    instead: the scale is looked at before each update, and a fall of it tells how many were skipped since the last
    one. It also grows, after so many updates in a row; that is told from its own count of them. All this stays on the
    scale's device until `read`. A scale that is lowered by hand counts as well.

    Args:
        scaler: a torch GradScaler. Without one only skips of optimizers that unscale by themselves (``fused=True``)
            are seen, since only those are told.
    """

    def __init__(self, scaler: Any = None) -> None:
        self._scaler = checked_scaler(scaler)
        self._told = 0
        self._folded: Tensor | None = None
        self._made: list[bool] = []
        self._looks: list[tuple[Tensor, Tensor]] = []
        if self._scaler is not None:
            self._start = float(self._scaler.get_scale()), int(self._scaler._get_growth_tracker())

    def look(self, made: bool) -> None:
        """Before an update.

        Args:
            made: whether one was made since the last look.
        """
        if self._scaler is None or (scale := self._scaler._get_scale_async()) is None:
            return
        tracker = self._scaler._growth_tracker
        if not self._looks:
            start = scale.new_full((), self._start[0]), tracker.new_full((), self._start[1])
            self._looks.append(start)
        self._looks.append((scale.detach().clone(), tracker.detach().clone()))  # it is written on in place
        self._made.append(made)
        if len(self._made) >= _FOLD:
            self._fold()

    def told(self) -> None:
        """An optimizer was called with infinite gradients, and did nothing."""
        self._told += 1

    def read(self) -> int | None:
        """Skipped updates so far; None where nothing of the kind can be known."""
        if self._scaler is None:
            return self._told or None
        self._fold()
        return 0 if self._folded is None else int(self._folded)

    def state_dict(self) -> dict[str, Any]:
        """The count so far, and how the scale was at the last look, for a checkpoint."""
        state: dict[str, Any] = {"count": self.read(), "scale": None}
        if self._scaler is not None:
            scale, tracker = self._looks[-1] if self._looks else self._start
            state["scale"] = float(scale), int(tracker)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting; the scaler's own state is its loop's to load."""
        if self._scaler is None:
            self._told = state["count"] or 0
        elif state["scale"] is not None:
            self._folded, self._start = torch.tensor(state["count"]), state["scale"]

    def _fold(self) -> None:
        """Sum up what was looked at, on its device."""
        if not self._made:
            return
        scale, tracker = (torch.stack(parts) for parts in zip(*self._looks, strict=True))
        made = torch.tensor(self._made).to(scale.device, non_blocking=True)
        before, after, steps, steps_after = scale[:-1], scale[1:], tracker[:-1], tracker[1:]
        # An update that completes the growth interval multiplies the scale, and begins the count anew.
        due = made & (steps + 1 >= self._scaler.get_growth_interval())
        changed = (after != before) | (steps_after != steps)
        grown = due | ((steps_after <= steps) & (after >= before) & changed)
        expected = torch.where(grown, before * self._scaler.get_growth_factor(), before)
        skips = (expected.log() - after.log()) / -math.log(self._scaler.get_backoff_factor())
        skips = torch.nan_to_num(skips, nan=0.0, posinf=0.0).round().clamp_min(0).sum().long()
        self._folded = skips if self._folded is None else self._folded + skips
        self._looks, self._made = self._looks[-1:], []
