"""How the weights move along one direction in the steps after a measurement."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

from losscope.landscape.complex_parts import as_real

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
        self._direction, self._parameters, self._origin = direction, list(origin), [as_real(t) for t in origin.values()]
        self._positions: list[Tensor] = []
        self._weights: list[Tensor] = []
        same = all(t.dtype == direction.dtype for t in (*self._parameters, *self._origin))
        self._short = same and len(direction) <= _SMALL

    def state_dict(self) -> dict[str, Any]:
        """What has been followed so far, for a checkpoint."""
        pieces, origin = [stored(piece) for piece in self._pieces()], [stored(at) for at in self._origin]
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
                now = _flatten_dense_tensors(self._parameters)
                self._weights.append(now if len(self._parameters) > 1 else now.clone())  # of one alone it is no copy
                return
            of_each = zip(self._parameters, self._origin, self._pieces(), strict=True)
            terms = [((as_real(p) - at) * piece).sum(dtype=torch.float64) for p, at, piece in of_each]
            self._positions.append(torch.stack(terms).sum())

    def _pieces(self) -> list[Tensor]:
        """The direction in each parameter."""
        pieces = self._direction.split([at.numel() for at in self._origin])
        return [piece.view(at.shape) for at, piece in zip(self._origin, pieces, strict=True)]

    def positions(self) -> list[Tensor]:
        """Those recorded so far, float64 scalars."""
        if self._weights:
            self._positions += self._of_weights().unbind()
            self._weights = []
        return list(self._positions)

    def _of_weights(self) -> Tensor:
        moved = torch.stack(self._weights).sub_(_flatten_dense_tensors(self._origin)).mul_(self._direction)
        return moved.sum(dim=1, dtype=torch.float64)

    def result(self) -> dict[str, float | None]:
        """How often the motion turned, ``flips`` of ``pairs``, and the oscillation, ``swings`` of ``swing_pairs``.

        The oscillation is how far each position is from the midpoint (x- + 2x + x+)/4 about it, in which what has
        period two cancels: without the drift, which hides it between bursts. Steps at rest are left out.
        """
        positions = torch.stack(self._positions).tolist() if self._positions else []
        positions += self._of_weights().tolist() if self._weights else []
        moves = [b - a for a, b in itertools.pairwise(positions)]
        flips, pairs = _turns(moves)
        swings, swing_pairs = _turns([a - b for a, b in itertools.pairwise(moves)])
        return {"flips": flips, "pairs": pairs, "swings": swings, "swing_pairs": swing_pairs}


def _turns(values: Sequence[float]) -> tuple[float, float]:
    """Changes of sign from one value to the next, and of how many."""
    pairs = [(a, b) for a, b in itertools.pairwise(values) if a * b != 0 and math.isfinite(a * b)]
    return float(sum(a * b < 0 for a, b in pairs)), float(len(pairs))
