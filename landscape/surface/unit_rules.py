"""How torch's operations pair the dimensions of their operands, one rule per kind of operation.

A rule takes the trace, the operation's arguments by name and its results, and returns the indices of the first
results. It unifies what the operation pairs and fixes what has an order (pixels that a convolution slides over, rows
that are looked up by number). None says that it does not know.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from .unit_algebra import Chain, Index, Product, Units, cut, fix, regroup

__all__ = ["Trace", "free", "keeps_equal", "rule_for"]


class Trace(Protocol):
    """What a rule may ask the trace for."""

    def of(self, tensor: Tensor) -> list[Index]:
        """The indices of a tensor's dimensions."""

    def pair(self, first: Index, second: Index) -> None:
        """Unify them, and remember it if that was not possible."""

    def contract(self, first: Tensor, i: int, second: Tensor, j: int) -> None:
        """Pair dimension i of one with j of the other, which are summed over."""


Arguments: TypeAlias = Mapping[str, Any]
Rule: TypeAlias = Callable[[Trace, Arguments, Sequence[Tensor]], list[list[Index]] | None]


def rule_for(name: str, pointwise: bool) -> Rule | None:
    """The rule of an operation; None where there is none.

    Args:
        name: of the operation without overload, e.g. ``"addmm"`` or ``"relu_"``.
        pointwise: whether torch says that it works entry by entry.
    """
    plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    if plain in _RULES:
        return _RULES[plain]
    if pointwise:
        return _pointwise
    sliding = re.search(r"(pool|upsample_[a-z]+|pad)(\d)d", plain)
    if sliding is None or "backward" in plain:
        return None
    return functools.partial(_spatial, int(sliding[2]))


def keeps_equal(rule: Rule | None) -> bool:
    """Whether of operands with equal entries (zeros) it makes such."""
    return rule is free or rule in _KEEP_EQUAL


# --------------------------------------------------------------------------- entry by entry


def _tensors(a: Arguments) -> list[Tensor]:
    found: list[Tensor] = []
    for value in a.values():
        found.extend(t for t in (value if isinstance(value, list | tuple) else [value]) if isinstance(t, Tensor))
    return found


def _broadcast(
    trace: Trace, operands: Sequence[tuple[list[Index], Sequence[int]]], shape: Sequence[int]
) -> list[Index]:
    found: list[Index] = []
    for back in range(len(shape), 0, -1):
        paired = [d[-back] for d, sizes in operands if len(sizes) >= back and sizes[-back] == shape[-back]]
        for other in paired[1:]:
            trace.pair(paired[0], other)
        found.append(paired[0] if paired else Units(shape[-back]))
    return found


def _pointwise(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    operands = [(trace.of(t), t.shape) for t in _tensors(a)]
    return [_broadcast(trace, operands, out[0].shape)] * len(out)


def _same(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    return [trace.of(next(iter(a.values())))] * len(out)


def _random(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    """Independent draws, for which any order is as likely."""
    return _same(trace, a, out)


def _pointwise_with_buffer(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    return _pointwise(trace, a, out)[:1]


def free(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    """All entries are equal, so any order is the same."""
    return [[Units(size) for size in t.shape] for t in out]


# --------------------------------------------------------------------------- the same entries in another shape


def _view(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]] | None:
    found = regroup(trace.of(a["self"]), out[0].shape)
    return None if found is None else [found]


def _restrided(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]] | None:
    """Of the same shape: kernels give dimensions of size 1 another stride."""
    return [trace.of(a["self"])] if tuple(a["size"]) == tuple(a["self"].shape) else None


def _transpose(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    indices = trace.of(a["self"])
    i, j = (a["dim0"], a["dim1"]) if "dim0" in a else (0, -1)
    if indices:
        indices[i], indices[j] = indices[j], indices[i]
    return [indices]


def _permute(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    indices = trace.of(a["self"])
    return [[indices[i] for i in a["dims"]]]


def _expand(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    return [_broadcast(trace, [(trace.of(a["self"]), a["self"].shape)], out[0].shape)]


def _repeat(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    indices = trace.of(a["self"])
    indices = [Units(1)] * (out[0].ndim - len(indices)) + indices
    return [[Product((Units(r, fixed=True), index)) for r, index in zip(a["repeats"], indices, strict=True)]]


def _select(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    indices = trace.of(a["self"])
    fix(indices.pop(a["dim"]))
    return [indices] * len(out)


def _slice(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]] | None:
    indices, dim, size = trace.of(a["self"]), a["dim"], a["self"].shape[a["dim"]]
    if out[0].shape[dim] == size:
        return [indices]
    start = min(max((a["start"] or 0) + (size if (a["start"] or 0) < 0 else 0), 0), size)
    if a["step"] != 1:
        fix(indices[dim])
        indices[dim] = Units(out[0].shape[dim], fixed=True)
        return [indices]
    tail = cut(indices[dim], start)
    piece = None if tail is None else cut(tail[1], out[0].shape[dim])
    if piece is None:
        return None
    indices[dim] = piece[0]
    return [indices]


def _split(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]] | None:
    indices, dim, found = trace.of(a["self"]), a["dim"], []
    rest = indices[dim]
    for t in out:
        pieces = cut(rest, t.shape[dim])
        if pieces is None:
            return None
        found.append([pieces[0] if i == dim % t.ndim else index for i, index in enumerate(indices)])
        rest = pieces[1]
    return found


def _gated(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]] | None:
    """One half times a function of the other."""
    indices, dim = trace.of(a["self"]), a["dim"]
    halves = cut(indices[dim], out[0].shape[dim])
    if halves is None:
        return None
    trace.pair(*halves)
    indices[dim] = halves[0]
    return [indices]


def _cat(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    dim, parts = a["dim"] % out[0].ndim, [trace.of(t) for t in a["tensors"] if t.shape != (0,)]
    for other in parts[1:]:
        for i, index in enumerate(other):
            if i != dim:
                trace.pair(parts[0][i], index)
    return [[Chain(tuple(p[dim] for p in parts)) if i == dim else parts[0][i] for i in range(out[0].ndim)]]


def _stack(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    parts = [trace.of(t) for t in a["tensors"]]
    found = _broadcast(trace, [(p, a["tensors"][0].shape) for p in parts], a["tensors"][0].shape)
    found.insert(a["dim"] % out[0].ndim, Units(len(parts), fixed=True))
    return [found]


def _pad(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]] | None:
    """A constant around it: what is added is free, since all of it is equal."""
    indices, pad = trace.of(a["self"]), a["pad"]
    if min(pad) < 0:
        return None
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        if before or after:
            indices[-1 - i] = Chain((Units(before), indices[-1 - i], Units(after)))
    return [indices]


# --------------------------------------------------------------------------- sums


def _mm(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    x, y = (a["self"], a["mat2"]) if "mat2" in a else (a["mat1"], a["mat2"])
    trace.contract(x, -1, y, -2)
    return [[*trace.of(x)[:-1], trace.of(y)[-1]]]


def _addmm(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    trace.contract(a["mat1"], 1, a["mat2"], 0)
    product = [trace.of(a["mat1"])[0], trace.of(a["mat2"])[1]]
    return [_broadcast(trace, [(product, out[0].shape), (trace.of(a["self"]), a["self"].shape)], out[0].shape)]


def _bmm(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    x, y = (a["batch1"], a["batch2"]) if "batch1" in a else (a["self"], a["mat2"])
    trace.pair(trace.of(x)[0], trace.of(y)[0])
    trace.contract(x, 2, y, 1)
    product = [*trace.of(x)[:2], trace.of(y)[2]]
    if "batch1" not in a:
        return [product]
    return [_broadcast(trace, [(product, out[0].shape), (trace.of(a["self"]), a["self"].shape)], out[0].shape)]


def _mv(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    x, y = (a["mat"], a["vec"]) if "mat" in a else (a["self"], a.get("vec", a.get("tensor", a.get("other"))))
    trace.contract(x, -1, y, -1)
    added = [(trace.of(a["self"]), a["self"].shape)] if "mat" in a else []
    return [_broadcast(trace, [(trace.of(x)[:-1], out[0].shape), *added], out[0].shape)]


def _linear(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    trace.contract(a["input"], -1, a["weight"], -1)
    product = [*trace.of(a["input"])[:-1], *trace.of(a["weight"])[:-1]]
    added = [] if a["bias"] is None else [(trace.of(a["bias"]), a["bias"].shape)]
    return [_broadcast(trace, [(product, out[0].shape), *added], out[0].shape)]


def _convolution(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    """Every group of channels alike: g (in/g) input channels, g (out/g) output channels."""
    x, weight, groups = a["input"], a["weight"], a["groups"]
    inputs, kernel = trace.of(x), trace.of(weight)
    for spatial in (*inputs[2:], *kernel[2:]):
        fix(spatial)
    if groups == 1:
        trace.contract(x, 1, weight, 0 if a["transposed"] else 1)
        channels = kernel[1 if a["transposed"] else 0]
    else:
        group = Units(groups)
        read, made = Units(x.shape[1] // groups), Units(out[0].shape[1] // groups)
        trace.pair(inputs[1], Product((group, read)))
        trace.pair(kernel[0], Product((group, read if a["transposed"] else made)))
        trace.pair(kernel[1], made if a["transposed"] else read)
        channels = Product((group, made))
    if a["bias"] is not None:
        trace.pair(trace.of(a["bias"])[0], channels)
    return [[inputs[0], channels, *(Units(size, fixed=True) for size in out[0].shape[2:])]]


def _reduction(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    indices, given = trace.of(a["self"]), a.get("dim")
    rank = len(indices)
    gone = {i % rank for i in ([given] if isinstance(given, int) else given or range(rank))} if rank else set()
    kept = bool(a.get("keepdim"))
    found = [Units(1) if i in gone else index for i, index in enumerate(indices) if kept or i not in gone]
    return [found] * len(out)


def _place_in_a_dimension(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    """A reduction whose result says where."""
    indices = trace.of(a["self"])
    for index in indices if a.get("dim") is None else [indices[a["dim"]]]:
        fix(index)
    return _reduction(trace, a, out)


def _ordered(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    """The same shape, but the order along some dimensions counts."""
    indices = trace.of(a["self"])
    given = a.get("dim", a.get("dims"))
    for i in [given] if isinstance(given, int) else given or range(len(indices)):
        fix(indices[i])
    return [indices] * len(out)


# --------------------------------------------------------------------------- layers


def _batch_norm(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    indices = trace.of(a["input"])
    for t in _tensors(a):
        if t is not a["input"] and t.ndim == 1:
            trace.pair(indices[1], trace.of(t)[0])
    return [indices]


def _layer_norm(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    indices = trace.of(a["input"])
    for t in (a.get("weight"), a.get("bias")):
        if t is not None:
            for index, other in zip(indices[-t.ndim :], trace.of(t), strict=True):
                trace.pair(index, other)
    return [indices]


def _group_norm(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    indices, groups = trace.of(a["input"]), a["group"]
    trace.pair(indices[1], Product((Units(groups), Units(a["C"] // groups))))
    for t in (a["weight"], a["bias"]):
        if t is not None:
            trace.pair(indices[1], trace.of(t)[0])
    return [indices]


def _embedding(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    words, features = trace.of(a["weight"])
    fix(words)
    return [[*trace.of(a["indices"]), features]]


def _index_select(trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    indices = trace.of(a["self"])
    fix(indices[a["dim"]])
    indices[a["dim"]] = trace.of(a["index"])[0] if a["index"].ndim else Units(1)
    return [indices]


def _spatial(rank: int, trace: Trace, a: Arguments, out: Sequence[Tensor]) -> list[list[Index]]:
    """Pooling, resizing and reflecting: over the last dimensions, sample by sample and channel by channel."""
    indices = trace.of(next(iter(a.values())))
    for i in range(-rank, 0):
        fix(indices[i])
        indices[i] = Units(out[0].shape[i], fixed=True)
    return [indices] * len(out)


def _table(*pairs: tuple[str, Rule]) -> dict[str, Rule]:
    return {name: rule for names, rule in pairs for name in names.split()}


_RULES: dict[str, Rule] = _table(
    ("view reshape _unsafe_view _reshape_alias unsqueeze squeeze flatten unflatten alias", _view),
    ("detach clone _to_copy contiguous lift_fresh lift_fresh_copy _softmax _safe_softmax _log_softmax", _same),
    ("softmax log_softmax logit fill zero", _same),
    ("native_dropout bernoulli rand_like randn_like", _random),
    # Entry by entry, which torch does not say of them.
    ("hardswish _prelu_kernel copy masked_fill rsub floor_divide special_erf where __and__ __or__", _pointwise),
    ("log_sigmoid_forward", _pointwise_with_buffer),
    ("as_strided", _restrided),
    ("zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty", free),
    ("scalar_tensor", free),
    ("t transpose numpy_T", _transpose),
    ("permute", _permute),
    ("expand", _expand),
    ("repeat", _repeat),
    ("select unbind", _select),
    ("slice", _slice),
    ("split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk", _split),
    ("glu", _gated),
    ("cat", _cat),
    ("stack", _stack),
    ("constant_pad_nd", _pad),
    ("mm", _mm),
    ("addmm", _addmm),
    ("bmm baddbmm", _bmm),
    ("mv addmv dot vdot", _mv),
    ("linear", _linear),
    ("convolution _convolution", _convolution),
    ("sum mean var std var_mean std_mean amax amin aminmax logsumexp norm linalg_vector_norm prod any all", _reduction),
    ("count_nonzero nansum nanmean max min median", _place_in_a_dimension),
    ("argmax argmin mode kthvalue nanmedian", _place_in_a_dimension),
    ("cumsum cumprod logcumsumexp flip roll sort", _ordered),
    ("native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit", _batch_norm),
    ("_native_batch_norm_legit_no_training _native_batch_norm_legit_functional", _batch_norm),
    ("_batch_norm_with_update _batch_norm_no_update", _batch_norm),
    ("native_layer_norm _fused_rms_norm rms_norm", _layer_norm),
    ("native_group_norm", _group_norm),
    ("embedding", _embedding),
    ("index_select", _index_select),
)

_KEEP_EQUAL = (_pointwise, _same, _view, _transpose, _permute, _expand, _repeat, _select, _slice, _split)
