"""Objectives with shuffled labels: what changes, and what does not."""

import pytest
import torch
from torch import Tensor, nn

from landscape_cases import mlp
from losscope.landscape import DataError, GaussNewton, Hessian, LossError, Objective, SettingError, shuffled_labels

F64 = torch.float64


def data(n: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 5, generator=generator, dtype=F64), torch.randint(0, 3, (n,), generator=generator)


def dense(A: Hessian | GaussNewton) -> Tensor:
    return A @ torch.eye(A.space.size, dtype=F64)


@pytest.mark.parametrize("batch", [60, 25])
def test_it_is_the_objective_of_the_shuffled_labels(batch: int) -> None:
    x, y = data()
    model = mlp(5, 4, 3).double()
    objective = Objective(
        model, list(zip(x.split(batch), y.split(batch), strict=True)), criterion=nn.CrossEntropyLoss()
    )
    null = shuffled_labels(objective, seed=1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    by_hand = Objective(model, (x, y[order]), criterion=nn.CrossEntropyLoss())
    assert null.value() == pytest.approx(by_hand.value(), rel=1e-12)
    torch.testing.assert_close(dense(Hessian(null)), dense(Hessian(by_hand)))
    assert float((dense(Hessian(null)) - dense(Hessian(objective))).norm()) > 1e-3
    assert objective.value() != null.value()  # and that of the labels themselves is as it was


def test_the_gauss_newton_matrix_does_not_depend_on_labels() -> None:
    objective = Objective(mlp(5, 4, 3).double(), data(), criterion=nn.CrossEntropyLoss())
    torch.testing.assert_close(dense(GaussNewton(shuffled_labels(objective, 0))), dense(GaussNewton(objective)))


def test_seeds_and_repeated_use() -> None:
    objective = Objective(mlp(5, 4, 3).double(), data(), criterion=nn.CrossEntropyLoss())
    state = torch.get_rng_state()
    values = [shuffled_labels(objective, seed).value() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), state)
    twice = shuffled_labels(shuffled_labels(objective, 0), 1)
    assert twice.value() != values[2]


def test_dictionaries_weights_and_ignored_tokens() -> None:
    """Denominators are those of the data: of classification losses the targets that are not ignored."""
    x, y = data()
    y[::4] = -100
    batches = [{"x": x[:40], "y": y[:40]}, {"x": x[40:], "y": y[40:]}]
    options = {"forward": lambda model, batch: model(batch["x"]), "targets": lambda batch: batch["y"]}
    model = mlp(5, 4, 3).double()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    by_hand = Objective(model, (x, y[order]), criterion=nn.CrossEntropyLoss()).value()
    assert shuffled_labels(Objective(model, batches, criterion=nn.CrossEntropyLoss(), **options), 2).value() == (
        pytest.approx(by_hand, rel=1e-12)
    )
    weighed = Objective(
        model, batches, criterion=nn.CrossEntropyLoss(reduction="mean"), weight=lambda batch: len(batch["x"]), **options
    )
    assert [batch.weight for batch in shuffled_labels(weighed, 2).batches] == [40, 20]


def test_what_cannot_be_shuffled_is_refused() -> None:
    x, y = data()
    model = mlp(5, 4, 3).double()
    hidden = Objective(model, (x, y), loss_fn=lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]))
    with pytest.raises(LossError, match="pass criterion= instead"):
        shuffled_labels(hidden)
    objective = Objective(model, (x, y), criterion=nn.CrossEntropyLoss())
    with pytest.raises(SettingError, match="samples have weights"):
        shuffled_labels(objective.weighted(torch.ones(60)))
    uneven = [(x[:30], torch.zeros(30, 3, dtype=F64)), (x[30:], torch.zeros(30, dtype=F64))]
    with pytest.raises(DataError, match="targets cannot be shuffled"):
        shuffled_labels(Objective(model, uneven, criterion=nn.MSELoss()))
