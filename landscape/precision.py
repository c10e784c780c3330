"""The precision of float32 arithmetic: full unless tensor cores are asked for, whatever the process has set.

torch has two interfaces for it, which refuse to be mixed: a flag set by the older one reads as an error once
the newer has set another. Both are put back as they were found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from .errors import SettingError

__all__ = ["PRECISIONS", "checked_precision", "float32_arithmetic"]

_CUDA: Any = torch.backends.cuda
_CPU: Any = torch.backends.mkldnn
_CUDNN: Any = torch.backends.cudnn

PRECISIONS = ("full", "tf32", "bf16")
"""What products may be computed in: float32 as it is; TF32 tensor cores (CUDA); bfloat16 autocast in the forward."""


def checked_precision(precision: str, device: torch.device) -> str:
    """The precision, if there is such a one on the device.

    Raises:
        SettingError: if not.
    """
    if precision not in PRECISIONS:
        raise SettingError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise SettingError(
            f'precision="tf32" needs a CUDA device, the parameters are on {device}; pass "full" or "bf16"'
        )
    return precision


@contextlib.contextmanager
def float32_arithmetic(device: torch.device, tf32: bool) -> Iterator[None]:
    """Inside, float32 products are computed as such, or by TF32 tensor cores where asked for.

    cuDNN uses TF32 in convolutions by default, which costs curvature three digits.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_matmul("high" if tf32 else "highest"))
        if device.type == "cuda":
            stack.enter_context(_cudnn(tf32))
        yield


@contextlib.contextmanager
def _matmul(wanted: str) -> Iterator[None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer interface
        with _set((_CUDA.matmul, _CPU.matmul), "tf32" if wanted == "high" else "ieee"):
            yield
        return
    if before == wanted and (wanted == "highest" or _CUDA.matmul.fp32_precision == "tf32"):
        yield
        return
    backends = (_CUDA.matmul, _CPU.matmul)
    newer = [(b, b.fp32_precision) for b in backends]
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        _put_back(newer)


@contextlib.contextmanager
def _cudnn(tf32: bool) -> Iterator[None]:
    backends = (_CUDNN.conv, _CUDNN.rnn)
    try:
        before = _CUDNN.allow_tf32
    except RuntimeError:
        with _set(backends, "tf32" if tf32 else "ieee"):
            yield
        return
    if before == tf32:
        yield
        return
    newer = [(b, b.fp32_precision) for b in backends]
    _CUDNN.allow_tf32 = tf32
    try:
        yield
    finally:
        _CUDNN.allow_tf32 = before
        _put_back(newer)


@contextlib.contextmanager
def _set(backends: tuple[Any, ...], value: str) -> Iterator[None]:
    before = [(b, b.fp32_precision) for b in backends]
    try:
        for backend in backends:
            backend.fp32_precision = value
        yield
    finally:
        _put_back(before)


def _put_back(before: list[tuple[Any, str]]) -> None:
    for backend, value in before:
        if backend.fp32_precision != value:
            backend.fp32_precision = value
