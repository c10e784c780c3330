"""Statistics of normalisation layers away from the centre: against those computed by hand, and put back to the bit."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from digits_nets import digits
from losscope.landscape import LossError, Objective, ParameterError, SettingError
from losscope.landscape.elsewhere import elsewhere
from losscope.landscape.surface import line, normalisation_layers, parameters_at, resolved_statistics, statistics_at
from noted import Noted


class Nested(nn.Module):
    """Normalisation within blocks, with and without momentum, dropout between, one layer used twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=None), nn.ReLU())
        self.shared = nn.BatchNorm1d(6, momentum=0.01)
        self.unused = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.drop(self.block(x)))
        return self.head(self.shared(x.square()))


def data(sizes: list[int], shape: tuple[int, ...] = (4,), classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(3 * torch.randn(n, *shape) + 1, torch.randint(classes, (n,))) for n in sizes]


def objective_of(model: nn.Module, batches: list[tuple[Tensor, Tensor]], mode: str = "eval") -> Objective:
    return Objective(model, batches, criterion=nn.CrossEntropyLoss(), mode=mode)


def state(model: nn.Module) -> dict[str, tuple[int, int, Tensor]]:
    """Every tensor: which object, how often written, its values."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: (id(t), t._version, t.detach().clone()) for name, t in named.items()}


def assert_untouched(model: nn.Module, before: dict[str, tuple[int, int, Tensor]]) -> None:
    after = state(model)
    assert after.keys() == before.keys()
    for name, (address, version, values) in before.items():
        assert after[name][:2] == (address, version), name
        assert torch.equal(after[name][2], values), name


def averaged(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean of means and of unbiased variances of (n, C) parts, weighted by n; in float64, by hand."""
    total = sum(len(p) for p in parts)
    mean = sum(len(p) * p.double().mean(0) for p in parts) / total
    variance = sum(len(p) * p.double().var(0) for p in parts) / total
    return mean, variance  # type: ignore[return-value]


def test_uneven_batches_nested_shared_and_unused_layers_as_by_hand() -> None:
    model = Nested()
    batches = data([8, 8, 3])
    objective, point = objective_of(model, batches), None
    point = parameters_at(objective, None) + torch.randn(objective.space.size)
    values = objective.space.unflatten(point)
    weight, bias, gain, shift, *_ = values
    shared = dict(zip(objective.parameters, values, strict=True))

    def normal(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        return gain * (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() + shift

    first = [x @ weight.T + bias for x, _ in batches]
    hidden = [F.relu(normal(x, gain, shift)) for x in first]
    second = [normal(x, shared["shared.weight"], shared["shared.bias"]).square() for x in hidden]
    unused = model.unused.running_mean.clone()
    with elsewhere(objective, values), statistics_at(objective, "recomputed") as note:
        for layer, parts in (
            (model.block[1], first),
            (model.shared, [t for ab in zip(hidden, second, strict=True) for t in ab]),
        ):
            mean, variance = averaged(parts)
            torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-5, atol=1e-6)
        assert torch.equal(model.unused.running_mean, unused)
        assert note == "1 of 3 layers keep their statistics, since they are not called: unused"


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d, (2, 9)),
        (nn.BatchNorm2d, (2, 3, 3)),
        (nn.BatchNorm3d, (2, 3, 3, 2)),
        (nn.SyncBatchNorm, (2, 3, 3)),
        (lambda c: nn.InstanceNorm1d(c, track_running_stats=True), (2, 9)),
        (lambda c: nn.InstanceNorm2d(c, track_running_stats=True), (2, 3, 3)),
        (lambda c: nn.InstanceNorm3d(c, track_running_stats=True), (2, 3, 3, 2)),
    ],
)
def test_every_layer_with_running_statistics(layer: Callable[[int], nn.Module], shape: tuple[int, ...]) -> None:
    model = nn.Sequential(layer(2), nn.Flatten(), nn.LazyLinear(3))
    batches = data([6, 6, 1], shape)
    model.eval()(batches[0][0])
    objective = objective_of(model, batches)
    with statistics_at(objective, "recomputed"):
        mean, variance = model[0].running_mean.clone(), model[0].running_var.clone()
    wanted_mean, wanted_variance = [], []
    for x, _ in batches:
        values = x.flatten(2)
        if isinstance(model[0], nn.modules.instancenorm._InstanceNorm):
            wanted_mean += list(values.mean(2))
            wanted_variance += list(values.var(2))
        else:
            columns = values.transpose(1, 2).flatten(0, 1)
            wanted_mean += [columns.mean(0)] * len(x)
            wanted_variance += [columns.var(0)] * len(x)
    torch.testing.assert_close(mean, torch.stack(wanted_mean).mean(0))
    torch.testing.assert_close(variance, torch.stack(wanted_variance).mean(0))


def test_even_batches_as_torch_updates_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 3)
    )
    batches = data([16, 16, 16], (1, 8, 8))
    theirs = copy.deepcopy(model)
    update_bn([x for x, _ in batches], theirs)
    with statistics_at(objective_of(model, batches), "recomputed"):
        for ours, layer in ((model[1], theirs[1]), (model[4], theirs[4])):
            torch.testing.assert_close(ours.running_mean, layer.running_mean)
            torch.testing.assert_close(ours.running_var, layer.running_var)


@pytest.mark.parametrize("error", [None, RuntimeError("inside"), KeyboardInterrupt()])
@pytest.mark.parametrize("how", ["kept", "recomputed", "frozen"])
@pytest.mark.parametrize("mode", ["eval", "train", "train_frozen"])
def test_everything_is_put_back(how: str, mode: str, error: BaseException | None) -> None:
    model = Nested().train()
    model.unused.eval()
    batches = data([8, 5])
    model(batches[0][0])
    before, flags = state(model), [m.training for m in model.modules()]
    momenta = [(m.momentum, m.track_running_stats) for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    stream = torch.get_rng_state()

    def enter() -> None:
        objective = objective_of(model, batches, mode)
        with statistics_at(objective, how):
            objective.value()
            if error is not None:
                raise error

    if error is None:
        enter()
    else:
        with pytest.raises(type(error)):
            enter()
    assert_untouched(model, before)
    assert [m.training for m in model.modules()] == flags
    assert [(m.momentum, m.track_running_stats) for m in model.modules() if isinstance(m, nn.BatchNorm1d)] == momenta
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_put_back_when_the_pass_itself_is_interrupted(error: type[BaseException]) -> None:
    model = Nested()
    batches = data([8, 8, 8])
    calls = Noted()

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return F.cross_entropy(outputs, targets)

    objective = Objective(model, batches, criterion=criterion, weight=lambda batch: len(batch[1]))
    before = state(model)
    with pytest.raises(error), statistics_at(objective, "recomputed"):
        pytest.fail("the second batch was to fail")
    assert_untouched(model, before)


def test_the_objective_is_evaluated_with_them() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3))
    ((x, y),) = batches = data([20])
    objective = objective_of(model, batches)
    by_hand = F.cross_entropy(model[1]((x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()), y)
    kept = objective.value()
    with statistics_at(objective, "recomputed"):
        assert objective.value() == pytest.approx(float(by_hand.detach()), rel=1e-6)
    assert objective.value() == kept != pytest.approx(float(by_hand.detach()), rel=1e-3)


def test_frozen_uses_running_statistics_in_mode_train() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    batches = data([20])
    train, evaluated = objective_of(model, batches, "train"), objective_of(model, batches)
    with statistics_at(train, "frozen"):
        assert train.value() == evaluated.value()
    with statistics_at(train, "kept"):
        assert train.value() != pytest.approx(evaluated.value(), rel=1e-3)
        assert torch.equal(model[0].running_mean, torch.zeros(4))


def test_statistics_of_other_data() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    training, test = objective_of(model, data([30, 7])), objective_of(model, data([9]))
    mean = averaged([x for x, _ in training.data])[0].float()
    before = state(model)
    with test.isolated(), statistics_at(test, "recomputed", source=training):
        torch.testing.assert_close(model[0].running_mean, mean)
        x, y = test.data[0]
        by_hand = F.cross_entropy(model(x), y)
        assert test.value() == pytest.approx(float(by_hand.detach()), rel=1e-6)
    assert_untouched(model, before)


def test_dropout_is_off_while_they_are_gathered() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3)).train()
    batches = data([50])
    model[1].eval()  # a frozen layer in a model that is trained: its running statistics are used
    with statistics_at(objective_of(model, batches, "train"), "recomputed"):
        torch.testing.assert_close(model[1].running_mean, batches[0][0].mean(0))
        assert model[0].training and not model[1].training


def test_a_batch_of_one_sample_is_left_out_and_said() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    batches = data([6, 1, 4])
    mean, _ = averaged([batches[0][0], batches[2][0]])
    with statistics_at(objective_of(model, batches), "recomputed") as note:
        torch.testing.assert_close(model[0].running_mean.double(), mean)
    assert note == "1 of 3 batches hold one sample, which has no variance"
    with (
        pytest.raises(LossError, match="larger batches"),
        statistics_at(objective_of(model, data([1, 1])), "recomputed"),
    ):
        pass


def test_half_precision_statistics_do_not_stall() -> None:
    """A running average in half precision takes no more notice of the 2000th batch."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)).bfloat16()
    batches = [(torch.randn(2, 1).bfloat16() + i / 100, torch.zeros(2, 1).bfloat16()) for i in range(400)]
    mean = torch.cat([x for x, _ in batches]).double().mean()
    with statistics_at(Objective(model, batches, criterion=nn.MSELoss()), "recomputed"):
        assert float(model[0].running_mean) == pytest.approx(float(mean), rel=0.01)


def test_models_without_such_layers_say_so() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)
    )
    objective = objective_of(model, data([5]))
    assert normalisation_layers(objective) == {}
    for how in ("recomputed", "frozen"):
        resolved, note = resolved_statistics(objective, how)
        assert resolved == "kept" and "no layer" in note
        with statistics_at(objective, how) as said:
            assert said == note
    assert resolved_statistics(objective, "kept") == ("kept", "")


def test_mode_train_uses_no_running_statistics() -> None:
    resolved, note = resolved_statistics(objective_of(Nested(), data([5]), "train"), "recomputed")
    assert resolved == "kept" and "mode 'train'" in note


def test_bad_input_is_refused() -> None:
    objective = objective_of(Nested(), data([5]))
    with (
        pytest.raises(SettingError, match="'kept', 'recomputed', 'frozen'; got 'fresh'"),
        statistics_at(objective, "fresh"),
    ):
        pass
    lazy = nn.Sequential(nn.Linear(4, 3), nn.LazyBatchNorm1d(affine=False))
    with pytest.raises(ParameterError, match="layer 1 is not initialised"):
        normalisation_layers(Objective(lazy, data([5]), criterion=nn.CrossEntropyLoss(), params="0.*"))
    scripted = nn.Sequential(nn.Linear(4, 3), torch.jit.script(nn.BatchNorm1d(3)))
    with pytest.raises(SettingError, match="scripted layer 1"):
        resolved_statistics(objective_of(scripted, data([5])), "recomputed")


def trained(seed: int, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    torch.manual_seed(seed)
    blocks = [(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(2)]
    model = nn.Sequential(*(layer for block in blocks for layer in block), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(8):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def test_between_two_batchnorm_networks_recomputing_matters() -> None:
    """Jordan et al. 2022: statistics that are interpolated too, or those of an end, belong to other activations."""
    images, labels = digits(1000)
    batches = list(zip(images.float().split(100), labels.split(100), strict=True))
    for seed in range(3):
        first, second = trained(2 * seed, batches), trained(2 * seed + 1, batches)
        objective = objective_of(first, batches)
        middle = (parameters_at(objective, first) + parameters_at(objective, second)) / 2
        losses = {}
        with elsewhere(objective, objective.space.unflatten(middle)):
            for how in ("kept", "recomputed"):
                with statistics_at(objective, how):
                    losses[how] = objective.value()
        assert objective.value() < 0.1
        assert losses["recomputed"] < 0.7 * losses["kept"], losses


def test_a_line_with_each() -> None:
    """At every point the loss is that of a copy of the model there, with statistics by torch's own update."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    batches = data([10, 10])
    update_bn([x for x, _ in batches], model)
    model.train()
    test = objective_of(model, data([9, 4]))
    direction = torch.randn(parameters_at(test, None).shape)
    lines = {
        (how, mode): line(
            objective_of(model, batches, mode), direction, points=5, statistics=how, metrics={"test": test}
        )
        for how in ("kept", "recomputed", "frozen")
        for mode in ("eval", "train")
    }
    for i, x in enumerate(lines["kept", "eval"].x.tolist()):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            nn.utils.vector_to_parameters(parameters_at(test, None) + x * direction, moved.parameters())
        wanted = {"train": objective_of(moved, batches, "train").value()}
        for how in ("kept", "recomputed"):
            if how == "recomputed":
                update_bn([inputs for inputs, _ in batches], moved)
            wanted[how] = objective_of(moved, batches).value()
            wanted[f"{how}, test"] = objective_of(moved, test.data).value()
        for (how, mode), found in lines.items():
            name = "train" if mode == "train" and how != "frozen" else {"frozen": "kept"}.get(how, how)
            assert float(found.loss[i]) == pytest.approx(wanted[name], rel=1e-4), (how, mode, x)
            if mode == "eval":
                assert float(found.values["test"][i]) == pytest.approx(wanted[f"{name}, test"], rel=1e-4), (how, x)
    assert not torch.allclose(lines["kept", "eval"].loss[0], lines["recomputed", "eval"].loss[0], rtol=1e-2)


def test_a_line_says_what_is_to_be_known_of_its_statistics() -> None:
    found = line(objective_of(Nested(), data([6, 1, 5])), points=3, statistics="recomputed", model=False)
    assert found.statistics == "recomputed"
    assert "1 of 3 batches hold one sample" in found.note and "not called: unused" in found.note


@pytest.mark.parametrize(("how", "mode"), [("recomputed", "eval"), ("frozen", "train")])
def test_the_centre_of_a_line_is_the_objective_with_those_statistics_to_the_bit(how: str, mode: str) -> None:
    objective = objective_of(Nested(), data([6, 5]), mode)
    with statistics_at(objective, how):
        value = objective.value()
    found = line(objective, points=3, statistics=how, model=False)
    assert found.center == float(found.loss[1]) == value != objective.value()
