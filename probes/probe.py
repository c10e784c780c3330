"""A probe answers one question about a snapshot; what it needs and what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from losscope.landscape import SettingError

from .schedule import Schedule, as_schedule

if TYPE_CHECKING:
    from losscope.landscape import Objective

    from .checkpoint import Room
    from .memory import Memory
    from .run import Run
    from .snapshot import Snapshot

__all__ = ["FunctionProbe", "Measurement", "Needs", "Probe", "as_probe"]

_TAKEN = ("log", "midpoint", "oscillation")
"""Names of records that no probe in the list leaves."""


@dataclass(frozen=True)
class Needs:
    """What a probe asks of the shared snapshot; merged over all due probes before anything is computed.

    Attributes:
        eigenpairs: how many top eigenpairs of the Hessian.
        eigenpair_tol: at what relative residual.
        bound_every: how many steps an upper bound of the sharpness may be old before it is renewed.
        trace_rtol: relative half-width of the trace's interval; None where it is not needed.
        trace_matvecs: most products to spend on the trace.
        training_gradient: whether to keep the gradient that the optimizer is about to step with.
        guards: how many eigenvectors to follow beside the pairs.
        density_vectors: random starts of the spectral density; 0 where it is not needed.
        density_steps: Lanczos steps from each.
        seen: whether the curvature is wanted as the optimizer's preconditioner shows it.
        midpoint: whether to measure the loss, the gradient and the sharpness at the midpoint of the next updates
            too, as a record of probe ``midpoint``. That costs a gradient, one to three products, and a copy of the
            parameters until the second update after the measurement.
    """

    eigenpairs: int = 0
    eigenpair_tol: float = math.inf
    bound_every: int | None = None
    trace_rtol: float | None = None
    trace_matvecs: int = 0
    training_gradient: bool = False
    guards: int = 0
    density_vectors: int = 0
    density_steps: int = 0
    seen: bool = False
    midpoint: bool = False

    def __or__(self, other: Needs) -> Needs:
        """The needs of both: the most pairs, the tightest tolerances."""
        bounds = [b for b in (self.bound_every, other.bound_every) if b is not None]
        rtols = [r for r in (self.trace_rtol, other.trace_rtol) if r is not None]
        return Needs(
            max(self.eigenpairs, other.eigenpairs),
            min(self.eigenpair_tol, other.eigenpair_tol),
            min(bounds, default=None),
            min(rtols, default=None),
            max(self.trace_matvecs, other.trace_matvecs),
            self.training_gradient or other.training_gradient,
            max(self.guards, other.guards),
            max(self.density_vectors, other.density_vectors),
            max(self.density_steps, other.density_steps),
            self.seen or other.seen,
            self.midpoint or other.midpoint,
        )


@dataclass(frozen=True)
class Measurement:
    """What a probe returns; the fields are those of `Record`, arrays still in memory."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    kernel: str = ""
    reason: str | None = None
    values: Mapping[str, float | None] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class Probe:
    """Base of the probes: a name, a schedule of its own if wanted, needs, and a measurement.

    Args:
        every: when to measure (see `as_schedule`); None follows the schedule given to `watch`.

    Attributes:
        name: of its records.
        evaluates: whether it is about the loss: only where one that is due is, the loss and its gradient are computed,
            and what is not finite is recorded as such.
        data_parallel: whether it is right where every rank holds a part of the data: all it takes of it are the
            objective's value, gradient and curvature products, which are those of all parts. Others are skipped then.
    """

    name = "probe"
    evaluates = True
    data_parallel = False

    def __init__(self, every: Any = None) -> None:
        self.schedule: Schedule | None = None if every is None else as_schedule(every)

    def needs(self) -> Needs:
        """What to compute once for all probes."""
        return Needs()

    def measure(self, snapshot: Snapshot) -> Measurement:
        """Answer the question about this snapshot."""
        raise NotImplementedError

    def recall(self, run: Run, player: str, memory: Memory) -> None:
        """Take up what an earlier part of a run that is resumed has recorded, into the player's memory."""

    def state_dict(self, memory: Memory, room: Room) -> dict[str, Any] | None:
        """What this probe keeps in the player's memory, for a checkpoint; None for nothing.

        Plain numbers, words, lists, dicts and tensors; those that have no `room` are left out.
        """
        return None

    def load_state_dict(self, state: dict[str, Any], memory: Memory, objective: Objective) -> None:
        """Take up what `state_dict` gave, for the parameters of this objective."""


class FunctionProbe(Probe):
    """A user's own probe: a function ``snapshot -> dict`` of numbers and arrays.

    The keys ``value``, ``low``, ``high`` and ``unit`` fill the record's fields of that name; other numbers
    go to its ``values``, tensors and arrays with more than one entry to its ``arrays``.
    """

    data_parallel = True  # its author sees to that: it is called on every rank

    def __init__(self, function: Callable[[Snapshot], Any], every: Any = None) -> None:
        super().__init__(every)
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def measure(self, snapshot: Snapshot) -> Measurement:
        """Call the function and sort what it returns.

        Raises:
            SettingError: if it does not return a dict of numbers and arrays.
        """
        returned = self.function(snapshot)
        if not isinstance(returned, Mapping):
            raise SettingError(f"probe {self.name} must return a dict, got {type(returned).__name__}")
        content = {str(k): _plain(self.name, k, v) for k, v in returned.items()}
        main: dict[str, Any] = {
            k: content.pop(k) for k in ("value", "low", "high") if isinstance(content.get(k), float)
        }
        unit = content.pop("unit", "")
        values = {k: v for k, v in content.items() if isinstance(v, float)}
        arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray)}
        return Measurement(**main, unit=str(unit), values=values, arrays=arrays)


def _plain(probe: str, key: Any, value: Any) -> float | np.ndarray | str:
    if key == "unit" and isinstance(value, str):
        return value
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float64 if value.is_floating_point() else value.dtype).numpy()
    try:
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return float(array) if array.ndim == 0 else array
    except (TypeError, ValueError):
        pass
    raise SettingError(f"probe {probe} returned {key!r} of type {type(value).__name__}; expected numbers or arrays")


def as_probe(probe: Any) -> Probe:
    """A probe from a probe, or from a function of a snapshot.

    Raises:
        SettingError: if it is neither, e.g. a probe class that was not instantiated.
    """
    if isinstance(probe, Probe):
        return probe
    if isinstance(probe, type):
        raise SettingError(f"probes takes instances: write {probe.__name__}() for {probe.__name__}")
    if callable(probe):
        return FunctionProbe(probe)
    raise SettingError(f"a probe must be a Probe or a function snapshot -> dict, got {type(probe).__name__}")


def as_probes(probes: Iterable[Any]) -> list[Probe]:
    """Probes with distinct names.

    Raises:
        SettingError: if two have the same name, or the name is taken.
    """
    if isinstance(probes, Probe) or callable(probes):
        probes = [probes]
    if isinstance(probes, str) or not isinstance(probes, Iterable):
        raise SettingError(f"probes must be a list of probes or functions snapshot -> dict, got {probes!r}")
    made = [as_probe(p) for p in probes]
    names = [p.name for p in made]
    for name in names:
        if names.count(name) > 1 or name in _TAKEN:
            taken = ", ".join(map(repr, _TAKEN[:-1])) + f" or {_TAKEN[-1]!r}"
            raise SettingError(f"probe names must be distinct and not {taken}, got {', '.join(names)}")
    return made
