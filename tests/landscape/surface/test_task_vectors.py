"""Task vectors by hand: angles, signs and rank of vectors that are known; interference of quadratics; bad input."""

import math

import pytest
import torch
from torch import nn

from losscope.landscape import NonFiniteError, Objective, ParameterError, SettingError
from losscope.landscape.surface.task_vectors import task_conflict


class Weights(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.tensors = nn.ParameterList([nn.Parameter(torch.zeros(size, dtype=torch.float64)) for size in sizes])


def objective(*sizes: int, target: torch.Tensor | None = None) -> Objective:
    """Half the squared distance from ``target``."""
    goal = torch.zeros(sum(sizes), dtype=torch.float64) if target is None else target
    model = Weights(*sizes)
    return Objective(
        model, [goal], loss_fn=lambda m, batch: (torch.cat(list(m.tensors)) - batch).square().sum() / 2,
        weight=lambda _: 1,
    )  # fmt: skip


def test_of_vectors_by_hand() -> None:
    base = torch.ones(10, dtype=torch.float64)
    first = torch.tensor([5.0, -4, 1, 0, 0, 1, 0, 3, 0, 0], dtype=torch.float64)
    second = torch.tensor([5.0, 4, 0, 1, 0, 1, 0, 0, 0, 2], dtype=torch.float64)
    found = task_conflict(objective(4, 6), base, [base + first, base + second], keep=0.3)
    torch.testing.assert_close(found.whole.norms, torch.stack([first.norm(), second.norm()]))
    assert float(found.whole.cosines[0, 1]) == pytest.approx(float(first @ second / first.norm() / second.norm()))
    # Kept are entries 0, 1, 7 of the first and 0, 1, 9 of the second: two in common, of which one disagrees.
    assert found.whole.kept.tolist() == pytest.approx([0.3, 0.3])
    assert float(found.whole.overlaps[0, 1]) == pytest.approx(0.2)
    assert float(found.whole.sign_conflicts[0, 1]) == found.whole.sign_conflict == 0.5
    head, tail = found.tensors["tensors.0"], found.tensors["tensors.1"]
    assert float(head.cosines[0, 1]) == pytest.approx(9 / 42) and head.sign_conflict == 0.5
    assert tail.kept.tolist() == pytest.approx([1 / 6, 1 / 6]) and math.isnan(tail.sign_conflict)
    cosine = float(found.whole.cosines[0, 1])
    assert found.whole.stable_rank == pytest.approx(2 / (1 + abs(cosine)))
    torch.testing.assert_close(found.vector, base + (first + second) / 2)


def test_stable_rank_counts_directions() -> None:
    a, b, c = torch.eye(6, dtype=torch.float64)[:3]
    zero = torch.zeros(6, dtype=torch.float64)
    rank = {
        name: task_conflict(objective(6), zero, vectors).whole.stable_rank
        for name, vectors in {
            "all": [a, 9 * b, c],
            "one": [a, 3 * a, -a],
            "two": [a, a, b, b],
            "none": [a, zero],
        }.items()
    }
    assert rank == pytest.approx({"all": 3, "one": 1, "two": 2, "none": 1})
    alone = task_conflict(objective(6), zero, [a, zero])
    assert math.isnan(float(alone.whole.cosines[0, 1])) and float(alone.whole.norms[1]) == 0


def test_unrelated_vectors_disagree_in_half_of_the_signs() -> None:
    torch.manual_seed(0)
    base = torch.zeros(60_000)
    found = task_conflict(objective(60_000), base, [torch.randn(60_000) for _ in range(2)])
    assert float(found.whole.overlaps[0, 1]) == pytest.approx(0.04, abs=0.004)
    assert found.whole.sign_conflict == pytest.approx(0.5, abs=0.04)
    assert found.whole.stable_rank == pytest.approx(2, abs=0.05)
    three = task_conflict(objective(60_000), base, [torch.randn(60_000) for _ in range(3)], keep=1.0)
    assert three.whole.sign_conflict == pytest.approx(0.75, abs=0.01)  # all three alike: 1/4


def test_interference_of_quadratics() -> None:
    # Task i is at its minimum at its own target: the sum misses it by what the others add and the scale takes away.
    torch.manual_seed(0)
    targets = [torch.randn(5, dtype=torch.float64) for _ in range(3)]
    tasks = [objective(5, target=target) for target in targets]
    zero = torch.zeros(5, dtype=torch.float64)
    found = task_conflict(tasks[0], zero, targets, objectives=tasks, scale=0.7, names=("a", "b", "c"))
    assert found.interference is not None
    expected = torch.stack([(0.7 * sum(targets) - target).square().sum() / 2 for target in targets])
    torch.testing.assert_close(found.interference.merged, expected)
    torch.testing.assert_close(found.interference.loss, expected)
    assert found.interference.own.tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    torch.testing.assert_close(found.interference.base, torch.stack([t.square().sum() / 2 for t in targets]))
    assert repr(found).endswith(f"on {'abc'[int(expected.argmax())]})")


def test_orthogonal_tasks_do_not_interfere() -> None:
    a, b = torch.eye(4, dtype=torch.float64)[:2]

    def on(entry: int) -> Objective:
        model = Weights(4)
        return Objective(
            model, [torch.ones(1)], loss_fn=lambda m, _: (m.tensors[0][entry] - 1) ** 2, weight=lambda _: 1
        )

    found = task_conflict(on(0), torch.zeros(4), [a, b], objectives=[on(0), on(1)], scale=1.0)
    assert found.interference is not None and found.interference.loss.tolist() == [0, 0]
    assert found.whole.stable_rank == pytest.approx(2)


def test_bad_input() -> None:
    ours, zero, one = objective(4), torch.zeros(4), torch.ones(4)
    with pytest.raises(SettingError, match="two task vectors at least"):
        task_conflict(ours, zero, [one])
    with pytest.raises(SettingError, match="keep must be a share"):
        task_conflict(ours, zero, [one, one], keep=0)
    with pytest.raises(SettingError, match="scale must be"):
        task_conflict(ours, zero, [one, one], scale=math.inf)
    with pytest.raises(SettingError, match="objectives must be 2"):
        task_conflict(ours, zero, [one, one], objectives=[ours])
    with pytest.raises(SettingError, match="names must be 2"):
        task_conflict(ours, zero, [one, one], names=["a"])
    with pytest.raises(ParameterError, match=r"tensors.0 \(5,\) where tensors.0 \(4,\) is"):
        task_conflict(ours, zero, [one, one], objectives=[ours, objective(5)])
    with pytest.raises(ParameterError, match="the point of task 1"):
        task_conflict(ours, zero, [one, torch.ones(5)])
    with pytest.raises(NonFiniteError, match=r"tensors.0 of the base"):
        task_conflict(ours, zero / 0, [one, one])
