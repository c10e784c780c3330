"""Barriers where they are known: quadratics, a linear network and its permuted copy; ends, statistics, bad input."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import LossError, Objective, ParameterError, SettingError
from losscope.landscape.surface.paths import barrier, barrier_matrix, linear_path


class Point(nn.Module):
    """A model that is its parameters; the loss is a function of them."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def landscape(loss, *values: float) -> Objective:  # type: ignore[no-untyped-def]
    return Objective(Point(*values), [torch.zeros(1)], loss_fn=lambda model, _: loss(model.w), weight=lambda _: 1)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def classifier(*, normalised: bool = False) -> tuple[nn.Module, nn.Module, Objective]:
    """Two networks, and the loss on some samples in two uneven batches."""
    layers = [nn.Linear(5, 8), *([nn.BatchNorm1d(8)] if normalised else []), nn.ReLU(), nn.Linear(8, 3)]
    one = nn.Sequential(*layers).eval()
    other = copy.deepcopy(one)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p))
    x, y = torch.randn(30, 5), torch.randint(3, (30,))
    return one, other, Objective(one, [(x[:20], y[:20]), (x[20:], y[20:])], criterion=nn.CrossEntropyLoss())


# --------------------------------------------------------------------------- closed forms


def test_barrier_of_a_double_well() -> None:
    """(1 - x^2)^2 from -1 to 1 is 0 at both ends and 1 at 0."""
    path = linear_path(landscape(lambda w: (1 - w**2).square().sum(), 0.0), vector(-1), vector(1), points=11)
    assert (path.barrier, path.position, path.above_worse_end, path.length) == pytest.approx((1, 0.5, 1, 2))
    x = 2 * path.t - 1
    torch.testing.assert_close(path.loss, (1 - x**2) ** 2)
    assert path.t[[0, -1]].tolist() == [0, 1]


def test_barrier_above_the_line_and_above_the_worse_end_differ() -> None:
    """From a loss of 2 down to 0 over a parabola: L(t) = 2 (1 - t) + 4 c t (1 - t), c = 1/4."""
    objective = landscape(lambda t: (2 * (1 - t) + t * (1 - t)).sum(), 0.0)
    path = linear_path(objective, vector(0), vector(1), points=101)
    assert path.barrier == pytest.approx(0.25)
    assert path.position == pytest.approx(0.5)
    assert path.above_worse_end == pytest.approx(float(path.loss[1] - 2)) and path.above_worse_end < 0


@pytest.mark.parametrize("sign", [1, -1])
def test_quadratics(sign: int) -> None:
    """Along d the loss is L0 + (L1 - L0) t - h t (1 - t) / 2, h = d'Ad: a barrier where concave only, of -h / 8."""
    A = sign * torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    a, b = vector(1, -1, 0.5), vector(-2, 0.5, 1)
    path = linear_path(landscape(lambda w: w @ A @ w / 2, 0.0, 0.0, 0.0), a, b, points=21)
    h = float((b - a) @ A @ (b - a))
    assert path.barrier == pytest.approx(max(0.0, -h / 8), abs=1e-12)


def test_a_linear_network_and_its_permuted_copy() -> None:
    """W2 W1 of the halfway point of a network and its copy with hidden units swapped is known in closed form."""
    torch.manual_seed(3)
    x = torch.randn(40, 4, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)).double()
    W1, W2 = (p.detach().clone() for p in model.parameters())
    y = x @ W1.T @ W2.T  # the loss is 0 at both ends
    swapped = {"0.weight": W1.flip(0), "1.weight": W2.flip(1)}
    path = linear_path(Objective(model, (x, y), criterion=nn.MSELoss()), None, swapped, points=[0.25, 0.5])
    assert path.t.tolist() == [0, 0.25, 0.5, 1]

    def loss(t: float) -> float:
        product = ((1 - t) * W2 + t * W2.flip(1)) @ ((1 - t) * W1 + t * W1.flip(0))
        return float((x @ (product - W2 @ W1).T).square().mean())

    assert path.loss.tolist() == pytest.approx([0, loss(0.25), loss(0.5), 0], abs=1e-12)
    # (w + w') / 2 (v + v') / 2 of two units with v, w less v w + v' w' is -(v - v') (w - w') / 2.
    gap = -torch.outer(W2[:, 0] - W2[:, 1], W1[0] - W1[1]) / 2
    assert path.barrier == pytest.approx(float((x @ gap.T).square().mean()))


def test_a_barrier_between_the_points_is_noted_and_found_by_refinement() -> None:
    """A narrow hill, whose top lies between two points of the grid."""
    objective = landscape(lambda w: torch.exp(-200 * (w - 0.53).square()).sum(), 0.0)
    coarse = linear_path(objective, vector(0), vector(1), points=11)
    assert coarse.barrier == pytest.approx(float(torch.tensor(-200 * 0.03**2).exp()), rel=1e-6)
    assert "may be 0.2 higher" in coarse.note
    fine = linear_path(objective, vector(0), vector(1), points=11, refine=20)
    assert 11 < len(fine.t) <= 31 and bool((fine.t.diff() > 0).all())
    assert fine.barrier == pytest.approx(1, rel=0.02) and fine.position == pytest.approx(0.53, abs=0.02)
    assert fine.note == ""
    smooth = landscape(lambda w: (1 - w**2).square().sum(), 0.0)
    assert (
        linear_path(smooth, vector(-1), vector(1), points=12).note == ""
    )  # a top in the middle of two, but a flat one


# --------------------------------------------------------------------------- ends


@pytest.mark.parametrize("form", ["modules", "states", "vectors", "live"])
def test_ends_are_the_plain_losses_to_the_bit(form: str) -> None:
    one, other, objective = classifier()
    plain = [Objective(m, objective.data, criterion=nn.CrossEntropyLoss()).value() for m in (one, other)]
    before = copy.deepcopy(one.state_dict())
    if form == "modules":
        ends = (one, other)
    elif form == "states":
        ends = (one.state_dict(), other.state_dict())
    elif form == "vectors":
        ends = tuple(nn.utils.parameters_to_vector(m.parameters()) for m in (one, other))  # type: ignore[assignment]
    else:
        ends = (None, other)  # type: ignore[assignment]
    path = linear_path(objective, *ends, points=5)
    assert path.loss[[0, -1]].tolist() == plain
    assert path.t.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert all(torch.equal(one.state_dict()[name], value) for name, value in before.items())


def test_a_path_to_itself_is_flat() -> None:
    one, _, objective = classifier()
    path = linear_path(objective, None, one)
    assert path.length == 0 and path.barrier < 1e-7


def test_reversed_the_barrier_is_the_same() -> None:
    one, other, objective = classifier()
    there, back = linear_path(objective, one, other), linear_path(objective, other, one)
    torch.testing.assert_close(there.loss, back.loss.flip(0))
    assert there.barrier == pytest.approx(back.barrier)


# --------------------------------------------------------------------------- metrics


def test_the_barrier_of_an_accuracy_is_that_of_the_error() -> None:
    one, other, objective = classifier()

    def error(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) != targets).double().mean()

    path = linear_path(objective, one, other, metrics={"accuracy": "accuracy", "error": error})
    assert list(path.values) == list(path.barriers) == ["loss", "accuracy", "error"]
    torch.testing.assert_close(path.values["accuracy"], 1 - path.values["error"], atol=1e-6, rtol=0)
    assert path.barriers["accuracy"] == pytest.approx(path.barriers["error"], abs=1e-6)
    assert path.barriers["loss"] == path.barrier
    both = linear_path(objective, one, other, metrics={"hits": "accuracy"}, larger_is_better=("hits",))
    assert both.barriers["hits"] == path.barriers["accuracy"]


# --------------------------------------------------------------------------- statistics of layers


def gathered(model: nn.Module, objective: Objective) -> nn.Module:
    """With running statistics from some batches, as training leaves them."""
    model.train()
    with torch.no_grad():
        for x, _ in objective.data:
            model(x)
    return model.eval()


def test_kept_statistics_are_those_that_the_ends_bring_and_between_them_interpolated() -> None:
    one, other, objective = classifier(normalised=True)
    gathered(one, objective), gathered(other, objective)
    before = copy.deepcopy(one.state_dict())
    path = linear_path(objective, one, other, statistics="kept", points=3)
    middle = copy.deepcopy(one)
    states = [m.state_dict() for m in (one, other)]
    halfway = {k: (states[0][k] + states[1][k]) / 2 if v.is_floating_point() else v for k, v in states[0].items()}
    middle.load_state_dict(halfway)
    plain = [Objective(m, objective.data, criterion=nn.CrossEntropyLoss()).value() for m in (one, middle, other)]
    assert path.loss[[0, -1]].tolist() == [plain[0], plain[2]]
    assert float(path.loss[1]) == pytest.approx(plain[1], rel=1e-6)
    assert path.statistics == "kept"
    assert all(torch.equal(one.state_dict()[name], value) for name, value in before.items())


def test_recomputed_statistics_are_those_of_the_data_at_each_point() -> None:
    one, other, objective = classifier(normalised=True)
    x, y = (torch.cat(parts) for parts in zip(*objective.data, strict=True))
    whole = Objective(one, (x, y), criterion=nn.CrossEntropyLoss())
    path = linear_path(whole, one, other, points=3)
    middle = copy.deepcopy(one)
    with torch.no_grad():
        for p, q in zip(middle.parameters(), other.parameters(), strict=True):
            p.lerp_(q, 0.5)
    middle[1].momentum = 1.0
    middle.train()(x)
    expected = F.cross_entropy(middle.eval()(x), y).item()
    assert path.statistics == "recomputed"
    assert float(path.loss[1]) == pytest.approx(expected, rel=1e-5)


def test_statistics_that_no_layer_has_are_kept() -> None:
    one, other, objective = classifier()
    assert linear_path(objective, one, other, points=3).statistics == "kept"


# --------------------------------------------------------------------------- losses that are not finite


def test_nan_in_the_middle_is_no_barrier_of_nothing() -> None:
    """The square root of (w - 1/2)^2 - 0.01 is not a number about the middle."""
    objective = landscape(lambda w: ((w - 0.5).square() - 0.01).sqrt().sum(), 0.0)
    path = linear_path(objective, vector(0), vector(1), points=11)
    assert path.loss.isnan().any() and path.loss[[0, -1]].isfinite().all()
    assert path.barrier != path.barrier and path.above_worse_end != path.above_worse_end
    assert path.loss[path.t == path.position].isnan().all()


def test_infinity_in_the_middle_is_an_infinite_barrier() -> None:
    objective = landscape(lambda w: 1 / (w - 0.5).abs().sum(), 0.0)
    path = linear_path(objective, vector(0), vector(1), points=5)
    assert (path.barrier, path.position) == (float("inf"), 0.5)


def test_an_infinite_end_makes_the_barrier_unknown() -> None:
    path = linear_path(landscape(lambda w: 1 / w.sum(), 1.0), vector(0), vector(1), points=5)
    assert path.barrier != path.barrier


# --------------------------------------------------------------------------- barrier()


def test_barrier_by_hand() -> None:
    t = torch.tensor([0.0, 0.5, 1.0])
    assert barrier(t, torch.tensor([1.0, 3.0, 2.0])) == 1.5
    assert barrier(t, torch.tensor([1.0, 1.0, 2.0])) == 0
    assert barrier(t, torch.tensor([1.0, 0.5, 0.8]), larger_is_better=True) == pytest.approx(0.4)
    assert barrier(t, 0.1 + torch.zeros(3)) == 0  # and not rounding


@pytest.mark.parametrize("t", [[0.0, 0.5], [0.1, 0.5, 1.0], [0.0]])
def test_barrier_of_what_is_no_path(t: list[float]) -> None:
    with pytest.raises(SettingError, match="from 0 to 1"):
        barrier(torch.tensor(t), torch.tensor([1.0, 2.0, 1.0][: len(t)]))


def test_barrier_matrix() -> None:
    objective = landscape(lambda w: (1 - w**2).square().sum(), 0.0, 0.0)
    found = barrier_matrix(objective, [vector(-1, -1), vector(1, -1), vector(1, 1), None])
    side, diagonal = 1.0, 2.0
    assert torch.equal(found, found.T) and not found.diagonal().any()
    torch.testing.assert_close(found[0, :3], vector(0, side, diagonal))
    t = torch.linspace(0, 1, 25, dtype=torch.float64)  # up to the hill's top: 2 (2t - t^2)^2 over the line 2t
    assert float(found[0, 3]) == pytest.approx(float((2 * (2 * t - t**2) ** 2 - 2 * t).max()))


# --------------------------------------------------------------------------- bad input


def test_another_architecture_is_named() -> None:
    one, _, objective = classifier()
    wider = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))
    with pytest.raises(ParameterError, match=r"the wide one .* 0\.weight has shape \(9, 5\), the model's is \(8, 5\)"):
        linear_path(objective, one, wider, names=("this", "the wide one"))


@pytest.mark.parametrize("points", [0, 1, 2, True, [0.0, 1.0], [0.5, 1.5], [-0.1, 0.5], [float("nan"), 0.5]])
def test_grids_that_are_none(points: object) -> None:
    one, other, objective = classifier()
    with pytest.raises(SettingError, match="points"):
        linear_path(objective, one, other, points=points)  # type: ignore[arg-type]


def test_a_metric_that_is_no_scalar() -> None:
    one, other, objective = classifier()
    with pytest.raises(LossError, match="scalar"):
        linear_path(objective, one, other, metrics={"outputs": lambda outputs, _: outputs})


def test_ctrl_c_leaves_the_model_as_it_was() -> None:
    one, other, objective = classifier(normalised=True)
    before, calls = copy.deepcopy(one.state_dict()), []

    def interrupt(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(outputs)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return outputs.sum()

    with pytest.raises(KeyboardInterrupt):
        linear_path(objective, one, other, metrics=interrupt)
    assert all(torch.equal(one.state_dict()[name], value) for name, value in before.items())
    assert not one.training
