"""Failing without harm: what goes wrong in watching is warned about once, and does not reach the training loop."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType

__all__ = ["Guard", "say"]


class Guard:
    """Catches exceptions of one player's measuring.

    Args:
        player: its name, for the warnings.
        step: where its training stands.
        raise_errors: let the exceptions out instead.
        speaks: whether this process is the one that warns, of several that train one model.
    """

    def __init__(
        self, player: str, step: Callable[[], int], *, raise_errors: bool, speaks: Callable[[], bool] = lambda: True
    ) -> None:
        self._speaks = speaks
        self._player, self._step, self.raises = player, step, raise_errors
        self._warned: set[str] = set()

    def __call__(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Whatever goes wrong in here is warned about once and does not reach the training loop."""
        return _Guarded(self, name)

    def warn(self, name: str, error: Exception) -> None:
        """Say what failed, the first time it does."""
        if name in self._warned or not self._speaks():
            return
        self._warned.add(name)
        where = traceback.extract_tb(error.__traceback__)
        place = f" ({where[-1].name}, line {where[-1].lineno})" if where else ""
        say(
            f"losscope: {name} of {self._player!r} failed at step {self._step()}: {type(error).__name__}: "
            f"{error}{place}; training goes on, the failure is recorded, further ones are recorded only"
        )


class _Guarded:
    """A context of `Guard`; no generator, as several are entered at every update."""

    __slots__ = ("_guard", "_name")

    def __init__(self, guard: Guard, name: str) -> None:
        self._guard, self._name = guard, name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or self._guard.raises:
            return False
        self._guard.warn(self._name, error)
        return True


def say(message: str) -> None:
    """Warn, but never raise: with ``-W error`` a warning of ours must not end a training run."""
    with contextlib.suppress(Warning):
        warnings.warn(message, RuntimeWarning, stacklevel=3)
