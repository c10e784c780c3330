"""Failing without harm: what goes wrong in watching is warned about once, and does not reach the training loop."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Callable, Iterator

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

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Whatever goes wrong in here is warned about once and does not reach the training loop."""
        try:
            yield
        except Exception as error:
            if self.raises:
                raise
            self.warn(name, error)

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


def say(message: str) -> None:
    """Warn, but never raise: with ``-W error`` a warning of ours must not end a training run."""
    with contextlib.suppress(Warning):
        warnings.warn(message, RuntimeWarning, stacklevel=3)
