"""Groups of samples: what they hold, and that their losses make the objective's."""

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Objective, SettingError
from losscope.landscape.groups import deal, lengths_of, part


def objective_on(batch: int, reduction: str = "mean") -> Objective:
    x = torch.arange(1.0, 24.0, dtype=torch.float64)[:, None]
    data = list(zip(x.split(batch), (2 * x).split(batch), strict=True))
    return Objective(nn.Linear(1, 1).double(), data, criterion=nn.MSELoss(reduction=reduction))


def inputs(objective: Objective) -> list[float]:
    return torch.cat([batch.content[0] for batch in objective.batches]).flatten().tolist()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch", [23, 7])
def test_groups_hold_every_sample_once_and_make_the_loss(batch: int, reduction: str) -> None:
    objective = objective_on(batch, reduction)
    groups = deal(objective, 6, generator())
    assert len(groups) % 2 == 0 and len(groups) >= 6
    assert sorted(x for group in groups for x in inputs(group.objective)) == [float(i) for i in range(1, 24)]
    assert [group.size for group in groups] == [len(inputs(group.objective)) for group in groups]
    assert sum(group.share for group in groups) == pytest.approx(1.0)
    whole = sum(group.share * group.scale * group.objective.value() for group in groups)
    assert whole == pytest.approx(objective.value(), rel=1e-9)


def test_no_group_is_larger_than_a_batch() -> None:
    assert max(group.size for group in deal(objective_on(4), 2, generator())) <= 4


def test_a_part_runs_over_all_batches() -> None:
    objective = objective_on(7)
    assert lengths_of(objective) == [7, 7, 7, 2]
    some = part(objective, torch.tensor([0, 6, 7, 22]), lengths_of(objective), {})
    assert inputs(some) == [1.0, 7.0, 8.0, 23.0] and len(some.batches) == 1


def test_parts_whose_shapes_differ_stay_apart() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return model(batch[0].mean(dim=1, keepdim=True)).square().mean()

    data = [(torch.ones(3, 2),), (torch.ones(4, 5),)]
    objective = Objective(nn.Linear(1, 1), data, loss_fn=loss)
    assert len(part(objective, torch.tensor([0, 5]), [3, 4], {}).batches) == 2


def test_weighted_samples_are_refused() -> None:
    with pytest.raises(SettingError, match="samples have weights"):
        lengths_of(objective_on(7).weighted(torch.ones(23)))
