"""What `watch` refuses before anything else: options that mean nothing."""

from __future__ import annotations

from typing import Any

from losscope.landscape import SettingError

__all__ = ["check_options"]

_DRIVES, _ON_ERROR = ("hooks", "manual"), ("warn", "raise")


def check_options(drive: Any, on_error: Any, on_verdict: Any, first_step: Any, *, resume: bool, out: Any) -> None:
    """Refuse them; see `losscope.probes.watch`.

    Raises:
        SettingError: naming what was given, and what is expected.
    """
    if drive not in _DRIVES:
        raise SettingError(f"drive must be one of {_DRIVES}, got {drive!r}")
    if on_error not in _ON_ERROR:
        raise SettingError(f"on_error must be one of {_ON_ERROR}, got {on_error!r}")
    if on_verdict is not None and not callable(on_verdict):
        raise SettingError(f"on_verdict takes a function of a Verdict, got {type(on_verdict).__name__}")
    if first_step is not None and (isinstance(first_step, bool) or not isinstance(first_step, int) or first_step < 0):
        raise SettingError(f"first_step must be an integer >= 0, got {first_step!r}")
    if resume and out is None:
        raise SettingError("resume=True needs out=, the folder of the run to append to")
