"""Eigenvalues, traces and shares of the parts that classes make, and the map of the class-pair means."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from class_cases import CASES, Case, absent_class, by_definition, in_a_lambda, matrix, tokens, uneven
from digits_nets import digits
from landscape_cases import mlp
from losscope.landscape import (
    ClassStructure,
    GaussNewton,
    Hessian,
    LossError,
    NonFiniteError,
    Objective,
    SettingError,
    class_parts,
    class_structure,
    top_eigenpairs,
)
from losscope.landscape.class_means import ClassMeans
from losscope.landscape.kernels.jacobian import OutputGraph
from trained_classifier import trained_classifier

F64 = torch.float64


def close(found: Tensor, exact: Tensor, scale: float) -> None:
    """Eigenvalues in falling order; those that one side does not list are zero."""
    most = max(len(found), len(exact))
    padded = [torch.cat([v, v.new_zeros(most - len(v))]) for v in (found, exact)]
    torch.testing.assert_close(*padded, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("memory", [None, 5000], ids=["all means", "blocks"])
@pytest.mark.parametrize("make", CASES)
def test_eigenvalues_and_traces_match_dense_parts(make: Callable[[], Case], memory: int | None) -> None:
    case = make()
    exact, found = by_definition(case), class_structure(case.objective(), memory=memory, seed=0)
    torch.testing.assert_close(found.masses, exact.pi, rtol=1e-12, atol=0)
    scale = float(exact.G.trace())
    for values, part in (
        (found.pair_values, exact.pairs),
        (found.class_values, exact.of_class),
        (found.cross_values, exact.cross),
    ):
        close(values, torch.linalg.eigvalsh(part).flip(0), scale)
    assert found.traces["class"].value == pytest.approx(float(exact.of_class.trace()), rel=1e-11)
    assert found.traces["cross"].value == pytest.approx(float(exact.cross.trace()), rel=1e-11)
    for estimate, value in (
        (found.traces["within"], float((exact.G - exact.pairs).trace())),
        (found.trace, scale),
        (found.shares["class"], float(exact.of_class.trace()) / scale),
        (found.shares["cross"], float(exact.cross.trace()) / scale),
        (found.shares["within"], float((exact.G - exact.pairs).trace()) / scale),
    ):
        slack = 1e-11 * value
        assert estimate.low - slack <= value <= estimate.high + slack
        assert estimate.low <= estimate.value <= estimate.high
    assert math.fsum(share.value for share in found.shares.values()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("make", [uneven, absent_class, tokens, in_a_lambda])
def test_the_map_is_the_means_along_the_first_eigenvectors(make: Callable[[], Case]) -> None:
    case = make()
    exact, found = by_definition(case), class_structure(case.objective(), seed=0)
    d = found.pair_means.shape[2]
    vectors = torch.linalg.eigh(exact.pairs)[1].flip(1)[:, :d]
    signs = None
    for (c, other), mean in exact.means.items():
        along = vectors.T @ mean
        signs = (along * found.pair_means[c, other]).sign() if signs is None else signs
        torch.testing.assert_close(found.pair_means[c, other], signs * along, rtol=1e-7, atol=1e-9)
    for c, mean in exact.class_means.items():
        assert signs is not None
        torch.testing.assert_close(found.class_means[c], signs * (vectors.T @ mean), rtol=1e-7, atol=1e-9)
    seen = torch.zeros(len(found.masses), dtype=torch.bool)
    seen[sorted(exact.class_means)] = True
    assert found.class_means.isnan().all(dim=1).tolist() == (~seen).tolist()
    assert found.pair_means[~seen].isnan().all() and not found.pair_means[seen].isnan().any()


def test_the_intervals_of_shares_cover() -> None:
    """Few products and wide intervals, many seeds."""
    torch.manual_seed(0)
    objective = Objective(mlp(64, 8, 10).double(), digits(60), criterion=nn.CrossEntropyLoss())
    exact = float(matrix(GaussNewton(objective)).trace())
    held: dict[str, list[bool]] = {"class": [], "within": [], "trace": []}
    for seed in range(60):
        found = class_structure(objective, rtol=0.5, max_matvecs=12, seed=seed)
        of_class, cross, shares = found.traces["class"].value, found.traces["cross"].value, found.shares
        held["class"].append(shares["class"].low <= of_class / exact <= shares["class"].high)
        held["within"].append(shares["within"].low <= 1 - (of_class + cross) / exact <= shares["within"].high)
        held["trace"].append(found.trace.low <= exact <= found.trace.high)
        assert found.trace.stderr > 0 and shares["within"].stderr > 0
    assert all(np.mean(h) >= 0.9 for h in held.values()), {name: np.mean(h) for name, h in held.items()}


def test_the_loss_times_c_has_everything_times_c() -> None:
    case = uneven()
    once = class_structure(case.objective(), seed=0)
    criterion = nn.CrossEntropyLoss()
    case.options["criterion"] = lambda z, y: 7 * criterion(z, y)
    found = class_structure(case.objective(), seed=0)
    torch.testing.assert_close(found.pair_values, 7 * once.pair_values, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.masses, 7 * once.masses)
    torch.testing.assert_close(found.class_means.abs(), once.class_means.abs(), rtol=1e-8, atol=1e-10)
    assert found.shares["cross"].value == pytest.approx(once.shares["cross"].value)


# --------------------------------------------------------------------------- a trained network


@pytest.mark.parametrize("seed", [0, 1])
def test_class_pairs_make_the_outliers_of_a_fitted_network(seed: int) -> None:
    """Of ten seeds the worst ratio of the first five is 0.904, and the worst difference of the matrices 0.6 %."""
    model, data = trained_classifier(seed)
    with torch.no_grad():
        assert torch.equal(model(data[0]).argmax(1), data[1])
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss())
    found = class_structure(objective, seed=0)
    G = top_eigenpairs(GaussNewton(objective), k=10, tol=1e-3, seed=0).values
    H = top_eigenpairs(Hessian(objective), k=10, tol=1e-3, seed=0).values
    assert float((G / H - 1).abs().max()) <= 0.02
    top = found.pair_values[:5] / G[:5]
    assert float(top.min()) >= 0.9 and float(top.max()) <= 1
    of_classes = found.class_values[:5] / G[:5]
    assert float(of_classes.min()) >= 0.2 and float(of_classes.max()) <= 0.8
    shares = found.shares
    assert 0.25 <= shares["class"].value <= 0.45 and 0.25 <= shares["cross"].value <= 0.5
    assert 0.15 <= shares["within"].low < shares["within"].high <= 0.4
    total = top_eigenpairs(found.pair_part, k=5, tol=1e-4, seed=0)
    torch.testing.assert_close(total.values, found.pair_values[:5], rtol=1e-6, atol=0)


def test_single_precision_on_a_fitted_network() -> None:
    model, (images, labels) = trained_classifier(0)
    data = (images[:500], labels[:500])
    double = class_structure(Objective(model, data, criterion=nn.CrossEntropyLoss()), seed=0)
    model = copy.deepcopy(model).float()
    single = class_structure(Objective(model, (data[0].float(), data[1]), criterion=nn.CrossEntropyLoss()), seed=0)
    for name in ("pair_values", "class_values", "cross_values"):
        a, b = getattr(single, name), getattr(double, name)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b[0]))
    assert single.shares["class"].value == pytest.approx(double.shares["class"].value, rel=0.05)


def test_batches_sorted_by_class_take_fewer_products(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (images, labels) = trained_classifier(0, 2)
    order = labels[:200].argsort(stable=True)
    pulls = []
    pull = OutputGraph.pull
    monkeypatch.setattr(OutputGraph, "pull", lambda self, w: pulls.append(1) or pull(self, w))

    def found(order: Tensor) -> tuple[Tensor, int]:
        data = [(images[i], labels[i]) for i in order.split(20)]
        means = ClassMeans(Objective(model, data, criterion=nn.CrossEntropyLoss()))
        pulls.clear()
        made = means.combine(1 - torch.eye(10, dtype=F64).expand(3, 10, 10)), len(pulls)
        picked = torch.zeros(90, 10, 10, dtype=F64)
        picked[torch.arange(90), *(~torch.eye(10, dtype=torch.bool)).nonzero(as_tuple=True)] = 1.0
        pulls.clear()
        return torch.cat([made[0], means.combine(picked)]), len(pulls)

    (mixed, many), (ordered, few) = found(torch.arange(200)), found(order)
    torch.testing.assert_close(mixed, ordered, rtol=1e-9, atol=1e-12)
    assert few < many / 4


# --------------------------------------------------------------------------- the result


def test_it_says_what_it_is_and_is_the_same_for_a_seed() -> None:
    objective = uneven().objective()
    first, second = (class_structure(objective, seed=3) for _ in range(2))
    assert first.traces["within"].value == second.traces["within"].value
    assert torch.equal(first.pair_values, second.pair_values)
    assert repr(first).startswith("ClassStructure(3 classes: class ")
    assert first.traces["class"].method == "exact" and first.traces["class"].stderr == 0


def test_a_fit_without_error_has_no_curvature() -> None:
    """Probabilities that are exactly 0 and 1: all masses of wrong classes vanish, and nothing is divided by them."""
    x, y = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    onehot = torch.nn.functional.one_hot(y, 3).double()
    objective = Objective(model, (x, y), criterion=lambda z, y: nn.functional.cross_entropy(z + 1e4 * onehot, y))
    found = class_structure(objective, seed=0)
    assert torch.equal(found.masses, torch.eye(3, dtype=F64) / 3)
    assert found.trace.value == 0 and len(found.pair_values) == 0 and math.isnan(found.shares["class"].value)
    assert "ClassStructure(3 classes" in repr(found)


def test_bad_input_is_refused() -> None:
    case = uneven()
    with pytest.raises(SettingError, match=r"rtol must be > 0"):
        class_structure(case.objective(), rtol=0.0)
    with pytest.raises(LossError, match="loss_fn"):
        class_structure(Objective(case.model, case.data, loss_fn=lambda m, b: m(b[0]).sum()))
    with pytest.raises(SettingError, match="softmax cross-entropy"):
        class_structure(
            Objective(case.model, (torch.ones(2, 4).double(), torch.ones(2, 3).double()), criterion=nn.MSELoss())
        )
    many = Objective(
        nn.Linear(4, 300).double(),
        (torch.randn(400, 4).double(), torch.arange(400) % 300),
        criterion=nn.CrossEntropyLoss(),
    )
    with pytest.raises(SettingError, match=r"300 classes have 89700 pairs, .*class_parts"):
        class_structure(many)
    assert class_parts(many).class_part.shape == (1500, 1500)
    with torch.no_grad():
        case.model[0].weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        class_structure(case.objective(), seed=0)


def test_structure_is_also_its_parts() -> None:
    found = class_structure(tokens().objective(), seed=0)
    assert isinstance(found, ClassStructure)
    exact = by_definition(tokens())
    assert float((matrix(found.within_part) - (exact.G - exact.pairs)).norm()) <= 1e-12 * float(exact.G.norm())
