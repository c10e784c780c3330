"""Metrics beside the loss: accuracy, functions, other objectives; weighted over batches as the loss is."""

import copy
import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape_cases import mlp
from losscope.landscape import Objective
from losscope.landscape.errors import LossError, SettingError
from losscope.landscape.surface import accuracy, evaluate

SIZES = (20, 20, 5)
GRID = torch.arange(-15, 16, dtype=torch.float64) / 15


def data(sizes: tuple[int, ...] = SIZES, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    return [(torch.randn(n, 4), torch.randint(3, (n,))) for n in sizes]


def whole(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp(4, 8, 3)


def values(objective: Objective, metrics: Any, engine: str = "auto") -> dict[str, Tensor]:
    axis = objective.space.random(1, torch.Generator().manual_seed(1))[:, 0]
    return evaluate(objective, None, [axis], GRID[:, None], metrics=metrics, engine=engine)


def at(model: nn.Module, x: float) -> nn.Module:
    """The model at a coordinate, written in."""
    objective = Objective(model, data(), criterion=F.cross_entropy)
    axis = objective.space.random(1, torch.Generator().manual_seed(1))[:, 0]
    for p, d in zip(model.parameters(), objective.space.unflatten(axis), strict=True):
        p.data.add_(d, alpha=x)
    return model


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def error(outputs: Tensor, targets: Tensor) -> float:
    """A number, as scikit-learn's metrics return."""
    return float((outputs.argmax(1) != targets).double().mean())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("engine", ["one by one", "auto"])
def test_of_all_samples_at_every_point(engine: str, reduction: str) -> None:
    criterion = nn.CrossEntropyLoss(reduction=reduction)
    found = values(Objective(network(), data(), criterion=criterion), ["accuracy", hits, error], engine)
    assert list(found) == ["loss", "accuracy", "hits", "error"]
    x, y = whole(data())
    for i, c in enumerate(GRID.tolist()):
        outputs = at(network(), c)(x).detach()
        expected = float((outputs.argmax(1) == y).double().mean())
        assert float(found["accuracy"][i]) == pytest.approx(expected, abs=1e-6)
        assert float(found["hits"][i]) == pytest.approx(expected, abs=1e-6)
        assert float(found["error"][i]) == pytest.approx(1 - expected, abs=1e-6)
        assert float(found["loss"][i]) == pytest.approx(float(criterion(outputs, y)), rel=1e-5)


def test_the_loss_is_the_same_with_metrics_and_without() -> None:
    objective = Objective(network(), data(), criterion=F.cross_entropy)
    assert torch.equal(values(objective, None, "one by one")["loss"], values(objective, hits, "one by one")["loss"])
    assert float(values(objective, "accuracy")["loss"][15]) == objective.value()


def test_another_objective_of_the_same_model() -> None:
    model = network()
    objective = Objective(model, data(), criterion=F.cross_entropy)
    test = Objective(model, data((30, 7), seed=5), criterion=F.cross_entropy, mode="train")
    found = values(objective, {"test loss": test, "hits": hits})
    assert list(found) == ["loss", "hits", "test loss"]
    assert float(found["test loss"][15]) == test.value()
    expected = values(test, None)["loss"]
    torch.testing.assert_close(found["test loss"], expected, rtol=1e-5, atol=0)


def test_another_objective_moves_with_the_parameters_of_the_first() -> None:
    model = network()
    objective = Objective(model, data(), criterion=F.cross_entropy, params="0.*")
    test = Objective(model, data(seed=5), criterion=F.cross_entropy)
    found = values(objective, {"test": test})["test"]
    part = Objective(model, data(seed=5), criterion=F.cross_entropy, params="0.*")
    torch.testing.assert_close(found, values(part, None)["loss"], rtol=1e-5, atol=0)


def test_a_loss_fn_can_have_an_objective_as_a_metric() -> None:
    model = network()
    objective = Objective(model, data(), loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    share = Objective(model, data(), criterion=accuracy)
    reference = Objective(model, data(), criterion=F.cross_entropy)
    torch.testing.assert_close(
        values(objective, {"accuracy": share})["accuracy"], values(reference, "accuracy")["accuracy"]
    )
    with pytest.raises(LossError, match="the metric 'accuracy' needs the model's outputs, and a loss_fn hides them"):
        values(objective, "accuracy")


def test_names() -> None:
    objective = Objective(network(), data(), criterion=F.cross_entropy)
    partial = functools.partial(F.cross_entropy, label_smoothing=0.1)
    assert list(values(objective, partial)) == ["loss", "cross_entropy"]
    assert list(values(objective, {"smooth": partial, "wrong": error})) == ["loss", "smooth", "wrong"]
    with pytest.raises(SettingError, match="two metrics are called 'hits'"):
        values(objective, [hits, hits])
    with pytest.raises(SettingError, match="two metrics are called 'loss'"):
        values(objective, {"loss": hits})


# --------------------------------------------------------------------------- bad input


def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def a_text(outputs: Tensor, targets: Tensor) -> str:
    return "high"


def test_a_metric_that_is_no_scalar_is_named() -> None:
    objective = Objective(network(), data(), criterion=F.cross_entropy)
    with pytest.raises(
        LossError, match=r"the metric 'per_sample' must return a real scalar, got a tensor of shape \(20,\)"
    ):
        values(objective, per_sample)
    with pytest.raises(LossError, match="the metric 'a_text' must return a scalar, got str"):
        values(objective, a_text)
    with pytest.raises(LossError, match="the metric 'nothing' must return a scalar, got NoneType"):
        values(objective, {"nothing": lambda *_: None})


def test_what_is_no_metric_is_refused() -> None:
    objective = Objective(network(), data(), criterion=F.cross_entropy)
    with pytest.raises(SettingError, match=r"a metric must be 'accuracy', a function .*; got 'f1'"):
        values(objective, "f1")
    with pytest.raises(SettingError, match=r"a metric must be 'accuracy', a function .*; got 3"):
        values(objective, [3])
    with pytest.raises(SettingError, match="the metric 'test' is an Objective of another model"):
        values(objective, {"test": Objective(network(), data(), criterion=F.cross_entropy)})


# --------------------------------------------------------------------------- accuracy


def test_accuracy_of_classes_tokens_and_pixels() -> None:
    torch.manual_seed(0)
    for shape in ((7,), (7, 5), (7, 4, 3)):
        scores, targets = torch.randn(7, 6, *shape[1:]), torch.randint(6, shape)
        expected = (scores.argmax(1) == targets).double().mean()
        assert float(accuracy(scores, targets)) == pytest.approx(float(expected))
        assert float(accuracy(SimpleNamespace(logits=scores), targets)) == pytest.approx(float(expected))


def test_accuracy_leaves_ignored_targets_out() -> None:
    scores = torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert float(accuracy(scores, torch.tensor([0, -100, 1, 1]))) == pytest.approx(2 / 3)


def test_accuracy_of_one_output_and_of_one_hot_targets() -> None:
    scores, labels = torch.tensor([-1.0, 2.0, 3.0, -4.0]), torch.tensor([0, 1, 0, 0])
    assert float(accuracy(scores, labels)) == float(accuracy(scores[:, None], labels.float()[:, None])) == 0.75
    several = torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])
    assert float(accuracy(several, torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.1, 0.9]]))) == pytest.approx(2 / 3)


def test_recomputed_statistics_are_those_of_the_data_of_the_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    train, test = data((20, 20)), data((30,), seed=5)
    objective = Objective(model, train, criterion=F.cross_entropy)
    other = Objective(model, test, criterion=F.cross_entropy)
    axis = objective.space.random(1, torch.Generator().manual_seed(1))[:, 0]
    C = torch.tensor([[0.0], [0.5]]).double()
    found = evaluate(objective, None, [axis], C, metrics={"test": other}, statistics="recomputed")
    for i, c in enumerate(C[:, 0].tolist()):
        there = copy.deepcopy(model)
        for p, d in zip(there.parameters(), objective.space.unflatten(axis), strict=True):
            p.data.add_(d, alpha=c)
        torch.optim.swa_utils.update_bn([x for x, _ in train], there)
        there.eval()
        assert float(found["test"][i]) == pytest.approx(
            float(F.cross_entropy(there(test[0][0]), test[0][1]).detach()), rel=1e-5
        )
