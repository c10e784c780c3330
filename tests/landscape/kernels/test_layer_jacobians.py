"""Memory that is taken again: never the same for two that are there at once."""

from __future__ import annotations

import torch

from losscope.landscape.kernels.layer_jacobians import Scratch


def test_what_is_taken_is_apart_and_taken_again_after_a_start() -> None:
    scratch, like = Scratch(), torch.zeros(())
    first = []
    for _ in range(2):
        scratch.start(20)
        taken = [scratch.take((2, 3), like), scratch.take((4,), like)]
        with scratch.lent((5, 2), like) as room:
            taken.append(room)
        again = scratch.take((10,), like)
        assert again.data_ptr() == room.data_ptr()
        for i, tensor in enumerate(taken):
            tensor.fill_(i)
        assert [float(t.sum()) for t in taken] == [0, 4, 20]
        first.append(taken[0].data_ptr())
    assert first[0] == first[1]


def test_more_than_was_said_or_of_another_kind_is_new() -> None:
    scratch, like = Scratch(), torch.zeros(())
    scratch.start(4)
    a, b = scratch.take((3,), like).fill_(1), scratch.take((3,), like).fill_(2)
    c = scratch.take((1,), like.double()).fill_(3)
    assert a.tolist() == [1, 1, 1] and b.tolist() == [2, 2, 2] and c.dtype == torch.float64
    scratch.start(8)
    assert scratch.take((8,), like).shape == (8,)
    scratch.start(0)
    assert scratch.take((0,), like).numel() == 0
