"""A watch whose options are known now, and whose model and optimizer a framework makes later."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from losscope.landscape import SettingError

from ..folder import META
from ..guard import say
from ..run import Run
from ..watch import Watch, watch

__all__ = ["Binding"]

_NOT_THE_USERS = {"drive": "hooks drive it", "resume": "its checkpoints say so", "first_step": "it counts the updates"}


class Binding:
    """Opens a watch when a training begins, and closes it however that ends; the part that callbacks share.

    As a context manager around the training it closes the watch at once, and with the reason, where the framework
    does not tell its callbacks that the training raised.

    Args:
        framework: whose training, for messages.
        options: what the user asked of `losscope.probes.watch`.

    Raises:
        SettingError: for options that are the framework's to say.
    """

    def __init__(self, framework: str, options: Mapping[str, Any]) -> None:
        for name in _NOT_THE_USERS.keys() & options.keys():
            raise SettingError(f"{name}= is not for the callback: {framework} trains, and {_NOT_THE_USERS[name]}")
        self.framework, self.options = framework, {k: v for k, v in options.items() if v is not None}
        self._watch: Watch | None = None
        self._leaving: weakref.finalize[Any, Any] | None = None
        self._left = False

    @property
    def live(self) -> Watch | None:
        """The watch of a training that is under way."""
        return self._watch if self._leaving is not None and self._leaving.alive else None

    @property
    def run(self) -> Run:
        """The run so far, as a reader sees it.

        Raises:
            SettingError: before a training has begun.
        """
        if self._watch is None:
            raise SettingError(f"there is no run yet: it begins with {self.framework}'s training")
        return self._watch.run

    def begin(
        self, model: Any, optimizer: Any = None, *, step: int, state: Mapping[str, Any] | None = None, **derived: Any
    ) -> Watch:
        """Open the watch of a training that stands at update ``step``.

        Args:
            model: as for `watch`.
            optimizer: as for `watch`.
            step: updates made before; where there are some, the run in ``out`` goes on.
            state: what `Watch.state_dict` gave for the framework's checkpoint.
            **derived: options that the framework knows, where the user has given none.
        """
        if self.live is not None:  # as when a Trainer begins anew with smaller batches
            self.close(RuntimeError("the training was begun again"))
            self._left = True
        out = self.options.get("out")
        resume = out is not None and (Path(out) / META).exists() and (step > 0 or self._left)
        run = watch(model, optimizer, resume=resume, first_step=step, **{**derived, **self.options})
        if state is not None:
            try:
                run.load_state_dict(state)
            except Exception as error:
                say(f"losscope: the watch's part of the checkpoint is left out, estimates start afresh: {error}")
        self._watch = run.__enter__()
        self._leaving = weakref.finalize(self, _leave, run)  # when the callback is dropped, or Python ends
        return run

    def close(self, error: BaseException | None = None) -> None:
        """Close the watch, as failed if there is an error; nothing where none is open."""
        if (run := self.live) is not None and self._leaving is not None:
            self._leaving.detach()
            run.__exit__(None if error is None else type(error), error, None)

    def note(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers among what the framework logs, as those of one update."""
        numbers: dict[str, Any] = {name: value for name, value in values.items() if isinstance(value, int | float)}
        numbers.pop("step", None), numbers.pop("player", None)  # words of log's own
        if (run := self.live) is not None and numbers:
            run.log(step=max(step, 0), **numbers)

    def __enter__(self) -> Self:
        """Nothing begins before the training does."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what the training left open."""
        self.close(error)


def _leave(run: Watch) -> None:
    """Close what nobody has closed."""
    with contextlib.suppress(Exception):
        run.__exit__(RuntimeError, RuntimeError("the training did not come to its end"), None)
