"""What measuring will cost, before the training begins: every probe is tried, and nothing is changed."""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from losscope.landscape import Hessian, Objective, SettingError
from losscope.landscape.isolation import preserved_rng

from .cost import Cost, ProbeCost
from .memory import Memory
from .player import Player
from .probe import Probe, as_probes
from .sharpness import Sharpness
from .snapshot import Snapshot
from .stability import Stability
from .trace import Trace

__all__ = ["TensorPeak", "estimate"]


def estimate(
    model: nn.Module, optimizer: Any, *, data: Any, probes: Iterable[Any] | None = None, **options: Any
) -> Cost:
    """Try every probe at the present weights, and say what a measurement will cost.

    Each is measured by itself, twice (the second time as in the middle of a training, with warm starts), and once
    more while the tensors that live are counted. In a run probes share eigenpairs, trace and density, so that together
    they cost less than their sum. What looks at the step of the optimizer (the preconditioner of Adam, the update, the
    midpoint of two updates) is not there before the first update, and not in the figures.

    Args:
        model: the model.
        optimizer: its optimizer, or a list of them.
        data: batches to measure on, as for `losscope.probes.watch`.
        probes: as for `watch`.
        **options: ``batch_size``, ``kernel`` and those of the objective, as for `watch`.

    Returns:
        Of each probe the seconds of the first measurement and of a later one, products, gradients, and bytes of the
        tensors that live at the peak of one, beyond those before it; failures with their reasons. ``share`` is None.

    Raises:
        SettingError: for options that mean nothing.
        DataError: if the data is empty or can be read once only.
        LossError: if the loss is not a scalar connected to the parameters.

    Example:
        >>> import torch
        >>> from losscope.probes import Sharpness, estimate
        >>> model, data = torch.nn.Linear(2, 1), (torch.eye(2), torch.ones(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> found = estimate(model, optimizer, data=data, criterion=torch.nn.MSELoss(), probes=[Sharpness()])
        >>> found["sharpness"].measurements
        2
    """
    if unknown := set(options) - set(Player.__dataclass_fields__):
        raise SettingError(f"estimate has no option {', '.join(sorted(unknown))}")
    chosen = as_probes([Sharpness(), Trace(), Stability()] if probes is None else probes)
    player = Player("model", model, optimizer, data, **options)
    with preserved_rng():
        objective = player.checked_objective(0)
        gradient = _gradient_seconds(objective)
        reasons: dict[str, str] = {}
        began = time.perf_counter()
        costs = [_tried(probe, player, objective, gradient, reasons) for probe in chosen]
        seconds = time.perf_counter() - began
    ordered = tuple(sorted(costs, key=lambda each: -each.seconds))
    return Cost(ordered, seconds, None, None, {"model": gradient}, {"model": reasons} if reasons else {})


class TensorPeak(TorchDispatchMode):
    """Counts the bytes of tensors that live at once, of those made inside; what an operation needs within is not seen.

    Attributes:
        highest: most bytes at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.highest = self._living = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do it, and count what came out."""
        out = func(*args, **(kwargs or {}))
        given = {_storage(t) for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)}
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, Tensor) and _storage(tensor) not in given | self._known:
                self._count(tensor)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _storage(tensor)
        size = storage.nbytes()
        self._known.add(key)
        self._living += size
        self.highest = max(self.highest, self._living)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._living -= size


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _gradient_seconds(objective: Objective) -> float:
    """The median of five, after one that is not counted: as a run has it, with the graph of the gradient."""
    times = []
    for turn in range(6):
        hessian = Hessian(objective.snapshot(turn), "retained")
        started = time.perf_counter()
        hessian.value_and_gradient()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _tried(probe: Probe, player: Player, objective: Objective, gradient: float, reasons: dict[str, str]) -> ProbeCost:
    memory, times, products = Memory(), list[float](), 0
    failure, kernel, peak = "", "", TensorPeak()
    try:
        for turn in range(3):
            snapshot = Snapshot(
                turn, objective.snapshot(turn), lr=player.rate(), threshold=player.threshold(),
                batch_size=player.batch_size, needs=probe.needs(), memory=memory, kernel=player.kernel,
            )  # fmt: skip
            with snapshot.objective.isolated():
                started = time.perf_counter()
                if turn < 2:
                    kernel = probe.measure(snapshot).kernel or kernel
                    times.append(time.perf_counter() - started)
                    products = snapshot.matvecs
                else:
                    with peak:
                        probe.measure(snapshot)
            if snapshot.choice is not None:
                reasons[snapshot.choice.kernel] = snapshot.choice.reason
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    each = times[-1] if times else math.nan
    return ProbeCost(
        player=player.name, probe=probe.name, measurements=len(times), seconds=sum(times),
        first=times[0] if times else math.nan, each=each, products=products * len(times),
        gradients=sum(times) / gradient, share=None, memory=peak.highest or None, kernels=(kernel,) if kernel else (),
        postponed=0, left_out=0, failures=(failure,) if failure else (), attempts=max(len(times), 1),
    )  # fmt: skip
