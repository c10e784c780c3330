"""What a measurement took besides its seconds and products: memory, and the time of one gradient to compare with."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

import torch

from .snapshot import Snapshot

__all__ = ["Expense", "Peak", "finish", "release"]


class Peak:
    """By how much what happens from here on raises the peak of the accelerator's memory.

    The allocator's own statistics are read and not reset: they are the user's. So a peak below one that the training
    has had before is not seen.

    Args:
        device: where; elsewhere than on CUDA nothing is known.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        if self._device is not None:
            self._before = torch.cuda.memory_allocated(self._device)
            self._highest = torch.cuda.max_memory_allocated(self._device)

    def bytes(self) -> int | None:
        """Bytes above what was allocated before; None where the peak is still the earlier one."""
        if self._device is None:
            return None
        highest = torch.cuda.max_memory_allocated(self._device)
        return highest - self._before if highest > self._highest else None


class Expense:
    """What one player's measurements are to be compared with, and how their products were computed.

    Attributes:
        kernels: why each kernel was chosen, by its name; empty where one was asked for.
    """

    def __init__(self) -> None:
        self._gradients: deque[float] = deque(maxlen=64)
        self.kernels: dict[str, str] = {}

    @property
    def gradient_seconds(self) -> float | None:
        """Median time of the objective's value and gradient; None where no measurement computed them."""
        return statistics.median(self._gradients) if self._gradients else None

    @property
    def facts(self) -> dict[str, Any]:
        """For the run's description."""
        return {"gradient_seconds": self.gradient_seconds, "kernels": dict(self.kernels)}

    def note(self, snapshot: Snapshot) -> None:
        """Take up what a snapshot has shown."""
        if snapshot.gradient_seconds is not None:
            self._gradients.append(snapshot.gradient_seconds)
        choice = snapshot.choice
        if choice is not None and (choice.candidates or choice.kernel not in self.kernels):  # a trial says more
            self.kernels[choice.kernel] = choice.reason


def finish(device: torch.device) -> None:
    """Wait for what training has asked of the device, so that measuring is not charged for it."""
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(device)


def release() -> None:
    """Hand back what an out-of-memory left behind; nothing otherwise."""
    if torch.cuda.is_initialized() and torch.cuda.memory_reserved() > 0.9 * torch.cuda.mem_get_info()[1]:
        torch.cuda.empty_cache()
