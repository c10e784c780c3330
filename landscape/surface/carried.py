"""The buffers that points bring along: statistics of normalisation layers, and whatever else is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..objective import Objective
from .points import Point, buffers_at

__all__ = ["Carried", "with_buffers_of"]


@contextlib.contextmanager
def with_buffers_of(objective: Objective, point: Point) -> Iterator[None]:
    """Inside, the model has the buffers that a point brings along; a vector, and None, bring none.

    Raises:
        SettingError: if a scripted module has one that differs, which cannot be exchanged.
    """
    carried = Carried.between(objective, point, point)
    if not carried.buffers:
        yield
        return
    with carried.held():
        carried.write(0.0)
        yield


@dataclass(frozen=True, eq=False)
class Carried:
    """Buffers that differ between the ends of a path, or from the model's own, to be interpolated along it.

    Attributes:
        objective: whose model has them.
        buffers: for each the module that has it, its name there, and its values at the two ends.
    """

    objective: Objective
    buffers: tuple[tuple[nn.Module, str, Tensor, Tensor], ...]

    @classmethod
    def between(cls, objective: Objective, first: Point, second: Point) -> Carried:
        """Those of two points; one that brings none has the model's.

        Whole numbers that differ between the two (counts of batches) stay as the model has them.

        Raises:
            SettingError: if a scripted module has one, which cannot be exchanged.
        """
        one, other = buffers_at(objective, first), buffers_at(objective, second)
        if not (one or other):
            return cls(objective, ())
        found, modules = [], dict(objective.model.named_modules(remove_duplicate=False))
        for name, own in objective.model.named_buffers():
            a, b = (point.get(name, own).detach().to(own.device, own.dtype, copy=True) for point in (one, other))
            holder, _, leaf = name.rpartition(".")
            interpolated = own.is_floating_point() or torch.equal(a, b)
            if not interpolated or (torch.equal(a, own) and torch.equal(b, own)):
                continue
            if isinstance(modules[holder], torch.jit.ScriptModule):
                raise SettingError(
                    f"a point brings another {name} than that of the model, which is scripted, so that it cannot be "
                    "exchanged: build the objective on the model before it is scripted, or give points as vectors"
                )
            found.append((modules[holder], leaf, a, b))
        return cls(objective, tuple(found))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, `write` may be called; afterwards, whatever happens, the buffers are as before."""
        with self.objective.isolated():
            before = [module._buffers[name] for module, name, _, _ in self.buffers]
            try:
                yield
            finally:
                for (module, name, _, _), own in zip(self.buffers, before, strict=True):
                    module._buffers[name] = own

    def write(self, t: float) -> None:
        """Let the model have the buffers of this t: those of an end, or linearly between them."""
        for module, name, a, b in self.buffers:
            whole = not a.is_floating_point()
            module._buffers[name] = (a if t == 0 or whole else b if t == 1 else torch.lerp(a, b, t)).clone()
