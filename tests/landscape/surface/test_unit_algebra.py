"""Indices against tensors that are really reshaped, concatenated and permuted."""

import torch

from losscope.landscape.surface.unit_algebra import (
    Chain,
    Product,
    Units,
    cut,
    fix,
    leaves,
    positions,
    regroup,
    renewed,
    resolved,
    rows,
    unify,
)


def test_rows_of_a_product_permute_the_factor() -> None:
    channels, x = Units(5), torch.randn(2, 5, 3)
    order = torch.randperm(5)
    taken = rows(Product((Units(2, True), channels, Units(3, True))), {channels: order})
    assert torch.equal(x.flatten()[taken], x[:, order].flatten())


def test_rows_of_two_factors_and_of_a_chain() -> None:
    a, b, x, y = Units(3), Units(4), torch.randn(3, 4), torch.randn(4)
    p, q = torch.randperm(3), torch.randperm(4)
    taken = rows(Chain((Product((a, b)), b)), {a: p, b: q})
    assert torch.equal(torch.cat([x.flatten(), y])[taken], torch.cat([x[p][:, q].flatten(), y[q]]))


def test_positions_are_the_entries_of_each_unit() -> None:
    a, b = Units(3), Units(4)
    index = Chain((Product((Units(2, True), a, b)), Units(2, True), a))
    marks = torch.full((3, index.size), False)
    for units, entries in positions(index):
        if units is a:
            marks.scatter_(1, entries, torch.ones_like(entries, dtype=torch.bool))
    for unit in range(3):
        whole = torch.zeros(2, 3, 4)
        whole[:, unit] = 1
        expected = torch.cat([whole.flatten(), torch.zeros(2), torch.eye(3)[unit]])
        assert torch.equal(marks[unit], expected.bool())
    order = torch.tensor([2, 0, 1])
    moved = rows(index, {a: order})
    for unit in range(3):  # what stands where unit i's entries were are the entries of unit order[i]
        assert torch.equal(marks[order[unit]], marks.new_zeros(index.size).index_fill(0, moved[marks[unit]], True))


def test_flattened_channels_divide_what_reads_them() -> None:
    channels, features = Units(6), Units(54)
    assert unify(Product((channels, Units(3, True), Units(3, True))), features)
    assert {units for units in leaves(features) if not units.fixed} == {channels}
    ((units, entries),) = positions(features)
    assert units is channels and torch.equal(entries, torch.arange(54).view(6, 9))


def test_pieces_and_factors_that_count_the_same() -> None:
    gates, state = Units(12), Units(4)
    piece, rest = cut(gates, 4)
    assert unify(piece, state) and unify(cut(rest, 4)[0], state)
    assert [len(entries) for _, entries in positions(gates)] == [4, 4, 4]
    heads = regroup([Product((Units(2, True), gates))], (2, 3, 4))  # only if the gates' units are the same ones
    assert heads is not None and unify(heads[2], state)
    assert all(resolved(part) is resolved(state) for part in resolved(gates).parts)


def test_what_cannot_be_paired_is_fixed() -> None:
    a, b = Units(4), Units(6)
    assert not unify(Chain((a, b)), Product((Units(2), Units(5))))
    assert a.fixed and b.fixed
    c, d = Units(4), Units(6)
    assert not unify(c, d) and c.fixed and d.fixed
    assert regroup([Units(4), Units(6)], (5, 5)) is None


def test_binding_what_is_fixed_fixes() -> None:
    a, b = Units(6), Units(6)
    fix(b)
    assert unify(a, b) and all(units.fixed for units in leaves(a))
    c = Units(6)
    assert unify(Product((Units(2), Units(3))), c) and fix(c) and not fix(c)


def test_renewed_indices_leave_the_old_ones_as_they_are() -> None:
    a, new = Units(6), {}
    copy = renewed(Product((a, Units(2, True))), new)
    assert unify(new[a], Units(6, fixed=True))
    assert not a.fixed and a.bound is None and copy.size == 12
