"""What `watch` refuses before anything else: options that mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from losscope.landscape import SettingError

__all__ = ["check_options", "checked_number", "checked_step"]

_DRIVES, _ON_ERROR = ("hooks", "manual"), ("warn", "raise")


def check_options(
    drive: Any, on_error: Any, on_verdict: Any, first_step: Any, seed: Any, *, resume: bool, out: Any
) -> None:
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
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise SettingError(f"seed must be an integer, got {seed!r}")
    if out is not None and not isinstance(out, str | Path):
        raise SettingError(f"out must be a folder, as a string or a Path, or None; got {type(out).__name__}")
    if resume and out is None:
        raise SettingError("resume=True needs out=, the folder of the run to append to")


def checked_number(name: str, value: Any) -> float | None:
    """A number of `Watch.log`.

    Raises:
        SettingError: if it is none.
    """
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        value = value.detach()
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingError(f"log({name}=...) takes a number or a scalar tensor, got {type(value).__name__}") from error


def checked_step(step: Any) -> int:
    """An update that `Watch.log` is told of.

    Raises:
        SettingError: if it is none.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise SettingError(f"log(step=...) takes the number of an update, an integer >= 0; got {step!r}")
    return step
