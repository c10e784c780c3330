"""Ctrl-C and SIGTERM wait while what was borrowed is put back.

Python runs signal handlers between any two instructions of the main thread. One that raises, as that of Ctrl-C does,
could leave a model half at one set of weights and half at another. A small model's evaluation is made of such
instructions for a good part: one Ctrl-C in fifty did. An isolation waits while it is left; what moves a model in one,
again and again, holds Ctrl-C from the beginning to the end.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["PostponedSignals", "interrupts_held"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU")
_ENDING = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Signals with which people and schedulers end a training, or have it saved."""


class PostponedSignals:
    """A context, from `begin` to the end of which handlers of signals wait; then they run as if the signal came then.

    For the outermost of several contexts: what is left between `begin` and the end is left in full. Only in the main
    thread, the only one in which handlers run; elsewhere nothing is done.

    Example:
        >>> import signal
        >>> from losscope.landscape.interrupts import PostponedSignals
        >>> done = []
        >>> try:
        ...     with PostponedSignals() as signals:
        ...         signals.begin()
        ...         signal.raise_signal(signal.SIGINT)
        ...         done.append("put back")
        ... except KeyboardInterrupt:
        ...     done.append("interrupted")
        >>> done
        ['put back', 'interrupted']
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: list[tuple[int, FrameType | None]] = []

    def begin(self) -> None:
        """From here on they wait."""
        if threading.current_thread() is not threading.main_thread():
            return
        with contextlib.suppress(ValueError):  # not the main interpreter
            for number in _ENDING:
                if callable(handler := signal.getsignal(number)):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.append((number, frame))

    def __enter__(self) -> Self:
        """Nothing waits yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the handlers back, and run those that waited."""
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        came, self._came = self._came, []
        for number, frame in came:
            handlers[number](number, frame)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Inside, Ctrl-C waits for the end; a second one does not wait.

    At the end whoever handles SIGINT is called, as by default with a KeyboardInterrupt. Signals are the main thread's:
    in others, and where SIGINT is not handled by Python, nothing is done.

    Example:
        >>> import signal
        >>> from losscope.landscape.interrupts import interrupts_held
        >>> try:
        ...     with interrupts_held():
        ...         signal.raise_signal(signal.SIGINT)
        ...         print("to the end")
        ... except KeyboardInterrupt:
        ...     print("then interrupted")
        to the end
        then interrupted
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append((number, frame))
        if len(held) > 1:
            handler(number, frame)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if len(held) == 1:
        handler(*held[0])
