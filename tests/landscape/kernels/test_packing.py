"""Recorded operations write where what is read no more was written, and nowhere else."""

import torch
from torch import Tensor

from losscope.landscape.kernels.packing import Operation, bound, packed


def recorded(x: Tensor, W: Tensor) -> tuple[list[Operation], tuple[Tensor, ...]]:
    """Two products, sums of them with views, an operation in place, and two results of which one is read again."""
    operations: list[Operation] = []

    def take(run, *args, out=("out",), is_view=False, is_pointwise=False, **kwargs):  # type: ignore[no-untyped-def]
        result = run(*args, **kwargs)
        operations.append(Operation(run, args, kwargs, (result,), out, is_view, is_pointwise))
        return result

    a = take(torch.mm, x, W)
    b = take(torch.mm, a, W)
    c = take(torch.add, a, b, is_pointwise=True, alpha=2)  # both are read again below
    t = take(torch.ops.aten.t.default, c, out=(), is_view=True)
    d = take(torch.add, c, t, is_pointwise=True)  # c is read askew, and must not be written over
    e = take(torch.mul, d, b, is_pointwise=True)
    take(torch.ops.aten.mul_.Scalar, e, 0.5, out=())
    f = take(torch.mm, e, a)
    g = take(torch.cat, [f, e])
    return operations, (f, g)


def distinct(steps: list) -> int:
    return len({step.keywords["out"].data_ptr() for step in steps if "out" in step.keywords})


def test_the_same_results_in_less_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    x, W, y = (torch.randn(6, 6, generator=generator) for _ in range(3))
    operations, results = recorded(x, W)
    plain = bound(operations)
    steps, places = packed(operations, results)
    expected = [r.clone() for r in recorded(y.clone(), W)[1]]
    x.copy_(y)
    for step in steps:
        step()
    assert all(map(torch.equal, places, expected))
    assert len(steps) == len(plain) == 8
    assert distinct(steps) < distinct(plain)


def test_what_is_wanted_in_the_end_is_not_written_over() -> None:
    x, W = torch.randn(4, 4), torch.randn(4, 4)
    first = torch.mm(x, W)
    second = torch.mul(first, 2.0)
    operations = [
        Operation(torch.mm, (x, W), {}, (first,), ("out",)),
        Operation(torch.mul, (first, 2.0), {}, (second,), ("out",), is_pointwise=True),
    ]
    steps, (kept, unused, last) = packed(operations, (first, None, second))
    x.add_(1)
    for step in steps:
        step()
    assert unused is None
    assert torch.equal(kept, x @ W)
    assert torch.equal(last, 2 * (x @ W))
