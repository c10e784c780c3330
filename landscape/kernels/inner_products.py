"""Products of matrices, by the faster of torch's two libraries.

On x86 torch multiplies float32 matrices by MKL, which on processors that are not Intel's takes vector instructions of
half the width that these have; oneDNN, which torch convolves with, takes what there is (an EPYC 9005: twice as fast).
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["add_products", "inner_products", "products"]

_FEWEST = 2 << 20  # multiplications: oneDNN takes some 10 microseconds to begin
_SHORTEST = 16  # rows: products of shorter ones are bound by memory


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """``a b'`` from a (m, k) and b (n, k), neither of which is differentiated."""
    if _by_onednn(a, len(a), len(b), a.shape[1]):
        return _onednn(a, b)
    return a @ b.T


def add_products(b: Tensor, a: Tensor, into: Tensor) -> None:
    """Add ``b_i a_i`` for each i, from b (n, m, t) and a (n, t, k), to (n, m, k).

    In place: making new memory for so many Jacobians takes longer than they do.
    """
    if _one_by_one(into, a.shape[1]):
        for one, left, right in zip(into, b, a, strict=True):
            one.add_(_onednn(left, right.T))
    else:
        into.baddbmm_(b, a)


def products(b: Tensor, a: Tensor, into: Tensor) -> None:
    """As `add_products`, in place of what is there."""
    if _one_by_one(into, a.shape[1]):
        for one, left, right in zip(into, b, a, strict=True):
            one.copy_(_onednn(left, right.T))
    else:
        torch.bmm(b, a, out=into)


def _one_by_one(into: Tensor, k: int) -> bool:
    """Whether products of all samples are faster by oneDNN, which takes one sample at a time.

    With several threads they are not: MKL gives each thread samples of its own, oneDNN a piece of every small product.
    """
    return torch.get_num_threads() == 1 and _by_onednn(into, into.shape[1], into.shape[2], k)


def _by_onednn(like: Tensor, m: int, n: int, k: int) -> bool:
    """Whether products of such a size, of tensors of this kind, are faster there."""
    return (
        like.dtype == torch.float32
        and like.device.type == "cpu"
        and k >= _SHORTEST
        and m * n * k >= _FEWEST
        and torch._C._get_mkldnn_enabled()
        and _there_is_onednn()
    )


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return found


@functools.cache
def _there_is_onednn() -> bool:
    """Beside MKL on a processor that is not Intel's; by name and not by time, so that runs repeat to the bit."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and _foreign_to_mkl()):
        return False
    a = torch.arange(1.0, 41.0).view(2, 20)
    try:  # the operation that torch's compiler calls: its name is not a promise
        with torch.no_grad():
            return torch.equal(_onednn(a, a), a @ a.T)
    except Exception:  # gone, or with other arguments
        return False


def _foreign_to_mkl() -> bool:
    """Whether this is an x86 processor of another maker."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
