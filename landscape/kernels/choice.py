"""Which kernel computes the products: the fastest of those that work and agree, measured here and now."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import DoubleBackwardError, LosscopeError, SettingError
from ..html_table import Shown
from ..objective import Objective
from .agreement import agreement
from .batched import Batched
from .compiled import Compiled, shapes_of
from .finite_difference import FiniteDifference
from .retained import Retained, allowed_distance

__all__ = ["KERNELS", "Candidate", "Choice", "Kernel", "check_count", "choose", "settle", "withdraw"]


class Kernel(Protocol):
    """A map ``V -> H V``, (n, k) -> (n, k), at the parameters' present values."""

    name: str

    def __call__(self, V: Tensor) -> Tensor:
        """H V."""


KERNELS: dict[str, Callable[..., Kernel]] = {
    kernel.name: kernel for kernel in (Retained, Batched, Compiled, FiniteDifference)
}
"""By name; each is made from an objective and ``memory``."""

_COMPILE_SECONDS = 20.0  # what a compilation is taken to need before one has been made
_REPAID = 4.0  # compile only where the work planned takes this many times as long
_SIMPLER = 1.05  # a kernel must be this much faster to be chosen over one before it in KERNELS
_TRIAL_SECONDS = 0.5
_TRIAL_SHARE = 0.05  # of the time that the products planned take
_MANY = 64  # blocks: fewer do not repay a trial
_MANY_SINGLE = 2000  # single products: only compiling could be faster
_HOPELESS = 3.0  # times slower per vector, at a pair of vectors: a block is not tried


@dataclass(frozen=True)
class Candidate(Shown):
    """What is known of one kernel.

    Attributes:
        name: its name.
        seconds: median time per vector; None where it was not measured.
        error: distance of its products from double backward's, relative; None where not compared.
        refused: why it cannot be, or was not, tried; empty otherwise.
    """

    name: str
    seconds: float | None = None
    error: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Choice(Shown):
    """A kernel, and why it was chosen.

    Attributes:
        kernel: its name.
        agreement: ``"agrees"``, ``"ambiguous"`` or ``"unverified"``; see `agreement.Agreement`.
        reason: in words, with both values where it is ambiguous.
        candidates: what was tried.
        block: vectors at a time that it was chosen for.
    """

    kernel: str
    agreement: str
    reason: str
    candidates: tuple[Candidate, ...]
    block: int = 1

    def __repr__(self) -> str:
        """The choice, and one line per candidate."""
        lines = [f"Choice({self.kernel}, {self.agreement}, {self.block} at a time: {self.reason})"]
        for c in self.candidates:
            lines.append(f"  {c.name}: " + (c.refused or f"{1e3 * (c.seconds or 0):.3g} ms per vector"))
        return "\n".join(lines)


def choose(objective: Objective, *, block: int = 1, planned: int = 1000, memory: int | None = None) -> Choice:
    """Choose a kernel for an objective.

    First *agreement*: where double backward is not the derivative of the gradient (`agreement`), the
    choice is double backward, said to be ambiguous, whatever is faster. Then *capability*: kernels that
    fail, or differ from double backward, are refused with the reason. Then a short *trial*. Where there
    is no double backward at all, finite differences take its place.

    Args:
        objective: what is differentiated.
        block: vectors at a time.
        planned: products that are to come; compiling is tried where their time repays it.
        memory: bytes that the kernels may take; None for their default.

    Raises:
        SettingError: for numbers that are no integers above 0.
        DoubleBackwardError: if there is no double backward, and finite differences fail as well.
    """
    for name, value in (("block", block), ("planned", planned), ("memory", memory)):
        check_count(name, value)
    with objective.isolated():
        trial = _Trial(objective, block, planned, memory)
        try:
            trial.measure("retained")
        except DoubleBackwardError as error:
            return _without_double_backward(trial, error)
        agreed = agreement(objective)
        if agreed.status == "ambiguous":
            return Choice("retained", "ambiguous", agreed.reason, trial.candidates, block)
        if block > 1:
            trial.attempt_batched()
        trial.attempt_compiled()
        trial.settle()
    best, why = trial.best()
    return Choice(best, agreed.status, "; ".join(filter(None, (agreed.reason, why))), trial.candidates, block)


def check_count(name: str, value: int | None) -> None:
    """Refuse what is no positive integer; None is a default.

    Raises:
        SettingError: naming the setting.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SettingError(f"{name} must be a positive integer, got {value!r}")


def settle(objective: Objective, *, block: int, planned: int, memory: int | None) -> Choice:
    """`choose`, with a trial only where the products planned are many to one it takes; kept with the objective.

    Where there are several ranks each tries on its own part of the data, and they take one together.

    Raises:
        DoubleBackwardError: if there is no double backward, and finite differences fail as well.
    """
    if objective.ranks.size > 1:
        _ = objective.batches  # reading them is an exchange of its own
        part = objective.alone()
        found = objective.ranks.gather(lambda: settle(part, block=block, planned=planned, memory=memory))
        return _of_all_ranks(found)
    tried = planned >= _MANY * block if block > 1 else planned >= _MANY_SINGLE
    key = ("choice", id(objective.loss), block if tried else 0, memory)
    kept = objective.kept.get(key)
    stale = kept is not None and kept.kernel == Compiled.name and not Compiled(objective, memory).is_ready(block)
    if kept is None or stale:  # batches of other shapes would be compiled for again
        make = choose if tried else _untried
        objective.kept[key] = make(objective, block=block, planned=planned, memory=memory)
    choice: Choice = objective.kept[key]
    return choice


def _of_all_ranks(found: list[Choice]) -> Choice:
    """What all ranks can do: finite differences or double backward where one of them must, else what rank 0 took."""
    for rank, choice in enumerate(found):
        if choice.kernel == FiniteDifference.name or choice.agreement == "ambiguous":
            return dataclasses.replace(choice, reason=f"rank {rank}: {choice.reason}")
    refused = [{c.name for c in choice.candidates if c.refused} for choice in found]
    if refusing := [rank for rank, names in enumerate(refused) if found[0].kernel in names]:
        reason = f"rank {refusing[0]} cannot take {found[0].kernel}; {found[0].reason}"
        return dataclasses.replace(found[0], kernel=Retained.name, reason=reason)
    return found[0]


def withdraw(objective: Objective, kernel: str, error: Exception) -> None:
    """Let double backward take the place of a kernel that was chosen and fails later."""
    for key, kept in list(objective.kept.items()):
        if key[0] == "choice" and kept.kernel == kernel:
            objective.kept[key] = dataclasses.replace(kept, kernel="retained", reason=f"{kernel} failed: {error}")


def _untried(objective: Objective, *, block: int, planned: int, memory: int | None) -> Choice:
    agreed = agreement(objective)
    if agreed.status == "unverified":  # it may be that nothing can be differentiated twice
        trial = _Trial(objective, 1, planned, memory)
        try:
            trial.measure("retained")
        except DoubleBackwardError as error:
            return _without_double_backward(trial, error)
    reason = "; ".join(filter(None, (agreed.reason, f"no trial for {planned} product{'s' if planned != 1 else ''}")))
    return Choice("retained", agreed.status, reason, (), block)


def _without_double_backward(trial: _Trial, error: DoubleBackwardError) -> Choice:
    trial.found["retained"] = Candidate("retained", refused=str(error))
    try:
        trial.measure("finite_difference")
    except LosscopeError as second:
        raise error from second
    reason = f"finite differences of the gradient, since {_first_sentence(error)}"
    return Choice("finite_difference", "unverified", reason, trial.candidates, trial.block)


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].split("; ")[0]


class _Trial:
    """Times kernels on the same block of random vectors."""

    def __init__(self, objective: Objective, block: int, planned: int, memory: int | None) -> None:
        self.objective, self.block, self.planned, self.memory = objective, block, planned, memory
        self.V = objective.space.random(block, torch.Generator().manual_seed(0))
        self.found: dict[str, Candidate] = {}
        self.expected: Tensor | None = None
        self._kernels: dict[str, Kernel] = {}
        self._seconds: dict[str, list[float]] = {}

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(self.found.values())

    def measure(self, name: str, columns: int | None = None) -> None:
        """Make a kernel, compare its products, time the second call."""
        V = self.V[:, :columns]
        kernel = self._kernels[name] = KERNELS[name](self.objective, memory=self.memory)
        result = kernel(V)
        error = 0.0
        if self.expected is None:
            self.expected = result
        else:
            expected = self.expected[:, :columns]
            size = float(expected.norm())
            error = float((result - expected).norm()) / size if size > 0 else float(result.norm())
            allowed = allowed_distance(self.objective)
            if not error <= allowed:
                raise LosscopeError(
                    f"its products differ from double backward's: norms {float(result.norm()):.6g} and {size:.6g}, "
                    f"{error:.2g} apart, relative"
                )
        self.found[name] = Candidate(name, self._time(name, V) / V.shape[1], error)

    def attempt(self, name: str, columns: int | None = None) -> None:
        """Measure a kernel, or keep the reason why not."""
        try:
            self.measure(name, columns)
        except torch.OutOfMemoryError:
            self.found[name] = Candidate(name, refused="out of memory")
        except LosscopeError as error:
            self.found[name] = Candidate(name, refused=str(error))

    def attempt_batched(self) -> None:
        """Try a pair of vectors first: on a CPU a block of them can be many times slower than one by one."""
        if self.block > 2:
            self.attempt("batched", columns=2)
            tried = self.found["batched"]
            if tried.seconds is None or tried.seconds > _HOPELESS * (self.found["retained"].seconds or 0.0):
                return
        self.attempt("batched")

    def attempt_compiled(self) -> None:
        """Compile where that is repaid, and say so where it is not."""
        kernel = Compiled(self.objective, self.memory)
        cost = 0.0 if kernel.is_ready(self.block) else _COMPILE_SECONDS * len(shapes_of(self.objective))
        work = self.planned * (self.found["retained"].seconds or 0.0)
        if work < _REPAID * cost:
            self.found["compiled"] = Candidate(
                "compiled",
                refused=f"not tried: compiling takes about {cost:.0f} s, {self.planned} products {work:.2g} s",
            )
            return
        self.attempt("compiled")

    def settle(self) -> None:
        """Time the candidates in turns, for as long as a trial may take."""
        names = list(self._seconds)
        started = time.perf_counter()
        allowed = min(_TRIAL_SECONDS, _TRIAL_SHARE * self.planned * (self.found["retained"].seconds or 0.0))
        while len(names) > 1 and time.perf_counter() - started < allowed:
            for name in names:
                self._time(name, self.V)
        for name in names:
            median = statistics.median(self._seconds[name]) / self.block
            self.found[name] = Candidate(name, median, self.found[name].error)

    def best(self) -> tuple[str, str]:
        """The fastest, and the reason in words."""
        timed = {name: c.seconds for name, c in self.found.items() if c.seconds is not None}
        best = "retained"
        for name, seconds in timed.items():
            if seconds * _SIMPLER < timed[best]:
                best = name
        if len(timed) == 1:
            return best, "the others were refused or not tried"
        shown = ", ".join(f"{name} {1e3 * s:.3g}" for name, s in timed.items())
        return best, f"fastest in a trial (ms per vector: {shown})"

    def _time(self, name: str, V: Tensor) -> float:
        _synchronize(V)
        started = time.perf_counter()
        self._kernels[name](V)
        _synchronize(V)
        taken = time.perf_counter() - started
        if V.shape[1] == self.block:
            self._seconds.setdefault(name, []).append(taken)
        return taken


def _synchronize(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
