"""Ctrl-C, held back while the model stands elsewhere.

Python raises KeyboardInterrupt between any two instructions, also between those that put a model back: a small model's
evaluation is made of such instructions for a good part, and one Ctrl-C in fifty would leave it changed.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["interrupts_held"]


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Inside, Ctrl-C waits for the end; a second one does not wait.

    At the end whoever handles SIGINT is called, as by default with a KeyboardInterrupt. Signals are the main thread's:
    in others, and where SIGINT is not handled by Python, nothing is done.

    Example:
        >>> import signal
        >>> from losscope.landscape.surface.interrupts import interrupts_held
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
