"""How the weights move along one direction in the steps after a measurement."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

from .checkpoint import stored

__all__ = ["OscillationWatch"]

_SMALL = 1 << 16  # entries, of which a copy is less than the calls that it saves


class OscillationWatch:
    """Follows the weights along a direction for a few steps and counts how often their motion turns.

    Args:
        step: step of the measurement the direction comes from.
        direction: vector (n,), e.g. the top eigenvector.
        origin: the parameters it refers to, with their values then: positions are relative to them.
        length: how many positions to record.
    """

    def __init__(self, step: int, direction: Tensor, origin: Mapping[nn.Parameter, Tensor], length: int = 8) -> None:
        self.step = step
        self.length = length
        pieces = direction.split([p.numel() for p in origin])
        self._pieces = [(p, piece.view(p.shape), at) for (p, at), piece in zip(origin.items(), pieces, strict=True)]
        self._positions: list[Tensor] = []
        self._flat: tuple[Tensor, Tensor] | None = None
        if len(direction) <= _SMALL and all(p.dtype == at.dtype == direction.dtype for p, at in origin.items()):
            self._flat = direction, _flatten_dense_tensors(tuple(origin.values()))

    def state_dict(self) -> dict[str, Any]:
        """What has been followed so far, for a checkpoint."""
        pieces, origin = [stored(piece) for _, piece, _ in self._pieces], [stored(at) for _, _, at in self._pieces]
        positions = list(self._positions)
        return {
            "step": self.step, "length": self.length, "positions": positions, "pieces": pieces, "origin": origin
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, Any], parameters: Sequence[nn.Parameter]) -> Self:
        """Go on with these parameters."""
        device = parameters[0].device
        direction = torch.cat([piece.flatten() for piece in state["pieces"]]).to(device)
        origin = {p: at.to(device) for p, at in zip(parameters, state["origin"], strict=True)}
        watch = cls(state["step"], direction, origin, state["length"])
        watch._positions = [position.to(device) for position in state["positions"]]
        return watch

    @property
    def done(self) -> bool:
        """Whether all positions are in."""
        return len(self._positions) >= self.length

    def follow(self) -> None:
        """Record the present position along the direction; nothing is read back to the host yet."""
        with torch.no_grad():
            self._positions.append(self._position())

    def _position(self) -> Tensor:
        if self._flat is not None:
            direction, origin = self._flat
            now = _flatten_dense_tensors(tuple(p for p, _, _ in self._pieces))  # of one alone that is no copy
            return (now - origin).mul_(direction).sum(dtype=torch.float64)
        terms = [((p - at) * piece).sum(dtype=torch.float64) for p, piece, at in self._pieces]
        return torch.stack(terms).sum()

    def result(self) -> tuple[int, int]:
        """Number of sign flips of the motion, and of pairs of steps looked at (steps at rest are left out)."""
        positions = torch.stack(self._positions).tolist() if self._positions else []
        moves = [b - a for a, b in itertools.pairwise(positions)]
        pairs = [(a, b) for a, b in itertools.pairwise(moves) if a * b != 0 and math.isfinite(a * b)]
        return sum(a * b < 0 for a, b in pairs), len(pairs)
