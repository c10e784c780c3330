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

_SMALL = 1 << 16  # entries, of which a few copies are less than the calls that they save


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
        self._direction, self._weights = direction, list[Tensor]()
        self._short = len(direction) <= _SMALL and all(p.dtype == at.dtype for p, at in origin.items())
        self._short = self._short and all(p.dtype == direction.dtype for p in origin)

    def state_dict(self) -> dict[str, Any]:
        """What has been followed so far, for a checkpoint."""
        pieces, origin = [stored(piece) for _, piece, _ in self._pieces], [stored(at) for _, _, at in self._pieces]
        positions = [stored(position) for position in self.positions()]
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
        return len(self._positions) + len(self._weights) >= self.length

    def follow(self) -> None:
        """Record the present position along the direction; nothing is read back to the host yet.

        Of few weights it is the weights that are kept, and their positions found all at once.
        """
        with torch.no_grad():
            if self._short:
                now = [p for p, _, _ in self._pieces]
                self._weights.append(_flatten_dense_tensors(now) if len(now) > 1 else now[0].flatten().clone())
                return
            terms = [((p - at) * piece).sum(dtype=torch.float64) for p, piece, at in self._pieces]
            self._positions.append(torch.stack(terms).sum())

    def positions(self) -> list[Tensor]:
        """Those recorded so far, float64 scalars."""
        if self._weights:
            origin = _flatten_dense_tensors([at for _, _, at in self._pieces])
            moved = torch.stack(self._weights).sub_(origin).mul_(self._direction)
            self._positions += moved.sum(dim=1, dtype=torch.float64).unbind()
            self._weights = []
        return list(self._positions)

    def result(self) -> tuple[int, int]:
        """Number of sign flips of the motion, and of pairs of steps looked at (steps at rest are left out)."""
        known = self.positions()
        positions = torch.stack(known).tolist() if known else []
        moves = [b - a for a, b in itertools.pairwise(positions)]
        pairs = [(a, b) for a, b in itertools.pairwise(moves) if a * b != 0 and math.isfinite(a * b)]
        return sum(a * b < 0 for a, b in pairs), len(pairs)
