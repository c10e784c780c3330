"""The class for scripts that come from PyHessian: a script in the shape of its example, exact oracles, the real one."""

import copy
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from landscape_cases import dense_hessian, flat, joined, labelled, mlp, selected
from losscope.landscape import DataError, SettingError
from losscope.landscape.pyhessian import hessian

CRITERION = nn.CrossEntropyLoss()


def dense(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The Hessian of the mean over all samples, in float64 and eval mode."""
    model = copy.deepcopy(model).double().eval()
    x, y = joined(batches)
    return dense_hessian(F.cross_entropy(model(x.double()), y), selected(model))


def by_magnitude(H: Tensor, k: int) -> list[float]:
    values = torch.linalg.eigvalsh(H)
    return values[values.abs().argsort(descending=True)][:k].tolist()


def trained(model: nn.Module, batches: list[tuple[Tensor, Tensor]], steps: int = 100) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = joined(batches)
    for _ in range(steps):
        optimizer.zero_grad()
        CRITERION(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


# --------------------------------------------------------------------------- a script in the shape of its example

SCRIPT = """
import argparse

import numpy as np
import torch
from torch import nn

from losscope.landscape.pyhessian import hessian

parser = argparse.ArgumentParser()
parser.add_argument("--batches", type=int, default=1)
parser.add_argument("--cuda", action="store_false")
args = parser.parse_args(["--cuda", "--batches", str(BATCHES)])


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.second(self.relu(self.norm(self.first(x))))
        out += x
        return self.relu(out)


labels = torch.randint(10, (40,))
images = torch.randn(10, 3, 32, 32)[labels] + torch.randn(40, 3, 32, 32)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=8, shuffle=True)

model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), Block(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
model = torch.nn.DataParallel(model)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for inputs, targets in loader:
    optimizer.zero_grad()
    criterion(model(inputs), targets).backward()
    optimizer.step()

data = []
for inputs, targets in loader:
    data.append((inputs, targets))
    if len(data) == args.batches:
        break
model.eval()
if args.batches == 1:
    hessian_comp = hessian(model, criterion, data=data[0], cuda=args.cuda)
else:
    hessian_comp = hessian(model, criterion, dataloader=data, cuda=args.cuda)

top_eigenvalues, top_eigenvectors = hessian_comp.eigenvalues()
trace = hessian_comp.trace()
density_eigen, density_weight = hessian_comp.density(iter=20)
print("top eigenvalue", top_eigenvalues, "trace", np.mean(trace))
"""


@pytest.mark.parametrize("batches", [1, 3])
def test_a_script_runs_with_its_import_changed(batches: int, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace("BATCHES", str(batches)), encoding="utf-8")
    found = runpy.run_path(str(path))
    H = dense(found["model"].module, found["data"])
    assert found["top_eigenvalues"] == pytest.approx(by_magnitude(H, 1), rel=1e-3)
    spread = np.std(found["trace"], ddof=1) / np.sqrt(len(found["trace"]))
    assert abs(np.mean(found["trace"]) - float(H.trace())) < 4 * spread
    nodes, weights = np.array(found["density_eigen"]), np.array(found["density_weight"])
    assert nodes.shape == weights.shape == (1, 20)
    assert float(nodes.max()) == pytest.approx(top_of(H), rel=1e-3)


def top_of(H: Tensor) -> float:
    return float(torch.linalg.eigvalsh(H)[-1])


# --------------------------------------------------------------------------- numbers and types


@pytest.mark.parametrize("sizes", [[120], [50, 50, 20]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalues_are_those_of_the_dense_hessian(sizes: list[int], dtype: torch.dtype) -> None:
    batches = labelled(sizes, features=10, classes=5)
    model = trained(mlp(10, 16, 5), batches).to(dtype)
    H = dense(model, batches)
    batches = [(x.to(dtype), y) for x, y in batches]
    data = {"data": batches[0]} if len(sizes) == 1 else {"dataloader": batches}
    for _ in range(2):  # a second construction gives the same
        made = hessian(model, CRITERION, cuda=False, **data, seed=0)
        values, vectors = made.eigenvalues(top_n=3, tol=1e-4)
        assert values == pytest.approx(by_magnitude(H, 3), rel=1e-3)
    assert type(values) is list and all(type(value) is float for value in values)
    assert len(vectors) == 3 and all(type(vector) is list for vector in vectors)
    for value, vector in zip(values, vectors, strict=True):
        assert [t.shape for t in vector] == [p.shape for p in made.params]
        v = flat(vector).double()
        assert float(v.norm()) == pytest.approx(1.0, rel=1e-5)
        assert float((H @ v - value * v).norm()) <= 2e-4 * abs(value)


def test_the_largest_in_magnitude_may_be_negative() -> None:
    model = mlp(4, 6, 3)
    batch = labelled([40])[0]
    values, _ = hessian(model, lambda out, y: -CRITERION(out, y), data=batch, cuda=False).eigenvalues()
    assert values == pytest.approx([-by_magnitude(dense(model, [batch]), 1)[0]], rel=1e-3)
    assert values[0] < 0


def test_trace_is_a_list_of_samples() -> None:
    batches = labelled([30, 30, 9], features=6, classes=4)
    model = trained(mlp(6, 8, 4), batches)
    exact = float(dense(model, batches).trace())
    made = hessian(model, CRITERION, dataloader=batches, cuda=False, seed=0)
    samples = made.trace()
    assert type(samples) is list and len(samples) == 100 and all(type(s) is float for s in samples)
    many = made.trace(maxIter=2000)
    assert np.mean(many) == pytest.approx(exact, abs=4 * np.std(many) / np.sqrt(len(many)))
    assert np.std(many) > 0.01 * exact
    few = made.trace(tol=0.5)
    assert len(few) < 100 and np.mean(few) == pytest.approx(exact, rel=0.5)
    assert len(made.trace(maxIter=1)) == 1 and len(made.trace(maxIter=7)) == 7


def test_the_trace_stops_by_its_interval_and_not_by_luck() -> None:
    """Of PyHessian's rule, the 10 % that stop soonest take 9 samples at the default tolerance."""
    batch = labelled([30])[0]
    made = hessian(mlp(4, 6, 3), CRITERION, data=batch, cuda=False, seed=0)
    assert all(len(made.trace(maxIter=60)) == 60 for _ in range(20))


def test_density_has_the_moments_of_the_hessian() -> None:
    batches = labelled([50, 50, 20], features=10, classes=5)
    model = trained(mlp(10, 16, 5), batches)
    H = dense(model, batches)
    n = len(H)
    nodes, weights = hessian(model, CRITERION, dataloader=batches, cuda=False, seed=0).density(iter=30, n_v=12)
    for runs, kind in ((nodes, np.float32), (weights, np.float32)):
        assert type(runs) is list and len(runs) == 12
        assert all(type(run) is list and len(run) == 30 and all(type(x) is kind for x in run) for run in runs)
    N, W = np.array(nodes, float), np.array(weights, float)
    assert np.allclose(W.sum(axis=1), 1.0, atol=1e-6) and (W >= 0).all()
    values = torch.linalg.eigvalsh(H).numpy()
    for power in range(1, 5):
        found = (W * N**power).sum(axis=1)
        exact, error = np.mean(values**power), found.std(ddof=1) / np.sqrt(12)
        assert abs(found.mean() - exact) < 4 * error, power
    assert N.max() == pytest.approx(values[-1], rel=1e-3)
    assert n == 261


@pytest.mark.parametrize("n_v", [1, 3])
def test_runs_have_as_many_nodes_as_steps_where_there_are_fewer_eigenvalues(n_v: int) -> None:
    """So that lists stay rectangular, as PyHessian's own plot needs them."""
    model = nn.Linear(2, 1)
    nodes, weights = hessian(model, nn.MSELoss(), data=(torch.randn(20, 2), torch.randn(20, 1))).density(10, n_v)
    N, W = np.array(nodes), np.array(weights)
    assert N.shape == W.shape == (n_v, 10)
    assert np.allclose(W.sum(axis=1), 1.0) and ((W > 0).sum(axis=1) <= 3).all()
    density, grid = smoothed(nodes, weights)
    assert np.isfinite(density).all() and density.sum() * (grid[1] - grid[0]) == pytest.approx(1.0)


def smoothed(eigenvalues: list, weights: list) -> tuple[np.ndarray, np.ndarray]:
    """A sum of Gaussians of PyHessian's width on a grid within the runs' mean extremes, as its plot makes it."""
    eigenvalues, weights = np.array(eigenvalues), np.array(weights)
    grid = np.linspace(eigenvalues.min(axis=1).mean() - 0.01, eigenvalues.max(axis=1).mean() + 0.01, 10_000)
    variance = 1e-5 * max(1.0, grid[-1] - grid[0])
    bumps = np.exp(-((grid - eigenvalues[..., None]) ** 2) / (2 * variance))
    density = (weights[..., None] * bumps).sum(axis=1).mean(axis=0)
    return density / (density.sum() * (grid[1] - grid[0])), grid


# --------------------------------------------------------------------------- what PyHessian gets wrong


def test_nothing_is_left_behind() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    batches = labelled([16, 5])
    model.train()
    kept = torch.randn(8, 4)
    model[0].weight.grad = kept
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    made = hessian(model, CRITERION, dataloader=batches, cuda=False)
    made.eigenvalues(), made.trace(maxIter=3), made.density(iter=3), made.gradsH
    assert model.training and all(module.training for module in model.modules())
    assert model[0].weight.grad is kept and model[3].weight.grad is None
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in state.items())
    assert torch.equal(torch.get_rng_state(), random)


def test_it_is_measured_in_eval_mode() -> None:
    model = trained(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), labelled([40]), 30)
    batch = labelled([40])[0]
    values, _ = hessian(model.train(), CRITERION, data=batch, cuda=False).eigenvalues()
    assert values == pytest.approx(by_magnitude(dense(model, [batch]), 1), rel=1e-3)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = mlp(4, 6, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_frozen_and_unused_parameters() -> None:
    model, batch = Unused(), labelled([30])[0]
    exact = by_magnitude(dense(model.used, [batch]), 1)
    made = hessian(model, CRITERION, data=batch, cuda=False, seed=0)
    assert made.eigenvalues()[0] == pytest.approx(exact, rel=1e-3)
    assert len(made.params) == len(made.gradsH) == 6 and not made.gradsH[4].any()
    model.used[0].requires_grad_(False)
    part = hessian(model, CRITERION, data=batch, cuda=False, seed=0)
    assert len(part.params) == 4
    assert abs(part.eigenvalues()[0][0]) < abs(exact[0])


def test_it_follows_the_parameters() -> None:
    model, batch = mlp(4, 6, 3), labelled([30])[0]
    made = hessian(model, CRITERION, data=batch, cuda=False, seed=0)
    before = made.eigenvalues()[0]
    with torch.no_grad():
        model[2].weight.mul_(3)
    after = made.eigenvalues()[0]
    assert after == pytest.approx(by_magnitude(dense(model, [batch]), 1), rel=1e-3)
    assert before != pytest.approx(after, rel=0.1)


def test_cuda_is_no_more_than_an_argument() -> None:
    """Its default is True, as PyHessian's is, also on machines without."""
    model, batch = mlp(4, 6, 3), labelled([30])[0]
    found = [hessian(model, CRITERION, batch, None, cuda, seed=0).eigenvalues()[0] for cuda in (True, False)]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["list", "tuple", "loader", "generator"])
def test_every_kind_of_data(kind: str) -> None:
    model, batches = mlp(4, 6, 3), labelled([8, 8, 3])
    x, y = joined(batches)
    data = {
        "list": lambda: {"dataloader": batches},
        "tuple": lambda: {"dataloader": tuple(batches)},
        "loader": lambda: {"dataloader": DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)},
        "generator": lambda: {"dataloader": iter(batches)},
    }[kind]()
    made = hessian(model, CRITERION, **data)
    assert made.eigenvalues()[0] == pytest.approx(by_magnitude(dense(model, batches), 1), rel=1e-3)


def test_one_batch_as_a_list() -> None:
    """As a DataLoader yields it."""
    model, batch = mlp(4, 6, 3), labelled([30])[0]
    found = hessian(model, CRITERION, data=list(batch), cuda=False).eigenvalues()[0]
    assert found == pytest.approx(by_magnitude(dense(model, [batch]), 1), rel=1e-3)


def test_seeds() -> None:
    model, batch = mlp(4, 6, 3), labelled([30])[0]
    same = [tuple(hessian(model, CRITERION, data=batch, seed=4).trace(5)) for _ in range(2)]
    fresh = [tuple(hessian(model, CRITERION, data=batch).trace(5)) for _ in range(2)]
    assert len({*same, *fresh}) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: hessian(m, CRITERION), "got neither"),
        (lambda m, b: hessian(m, CRITERION, data=b, dataloader=[b]), "got both"),
        (lambda m, b: hessian(m, CRITERION, data=b).eigenvalues(top_n=0), "top_n must be a positive integer, got 0"),
        (lambda m, b: hessian(m, CRITERION, data=b).eigenvalues(maxIter=0), "maxIter must be a positive integer"),
        (lambda m, b: hessian(m, CRITERION, data=b).trace(maxIter=2.5), "maxIter must be a positive integer, got 2.5"),
        (lambda m, b: hessian(m, CRITERION, data=b).density(n_v=0), "n_v must be a positive integer, got 0"),
        (lambda m, b: hessian(m, CRITERION, data=b).density(iter=0), "iter must be a positive integer"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call(mlp(4, 6, 3), labelled([10])[0])


def test_a_loader_without_batches() -> None:
    for empty in ([], DataLoader(TensorDataset(torch.ones(0, 10), torch.ones(0)))):
        with pytest.raises(DataError, match="dataloader has no batches"):
            hessian(mlp(10, 16, 5), CRITERION, dataloader=empty)


# --------------------------------------------------------------------------- the real one


@pytest.fixture
def real() -> object:
    reason = "PyHessian is not installed, so nothing is compared with it: pip install pyhessian==0.1"
    return pytest.importorskip("pyhessian", reason=reason)


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("sizes", [[60], [25, 25, 10]])
def test_as_pyhessian_where_it_is_right(real: object, sizes: list[int]) -> None:
    batches = labelled(sizes, features=10, classes=5)
    model = trained(mlp(10, 16, 5), batches)
    data = {"data": batches[0]} if len(sizes) == 1 else {"dataloader": batches}
    theirs = real.hessian(copy.deepcopy(model), CRITERION, cuda=False, **data)
    ours = hessian(model, CRITERION, cuda=False, **data, seed=0)
    assert [p.shape for p in ours.params] == [p.shape for p in theirs.params]
    for tol in (1e-3, 1e-6):
        (values, vectors), (right, directions) = (h.eigenvalues(500, tol, 2) for h in (ours, theirs))
        assert values == pytest.approx(right, rel=30 * tol)
    for v, u in zip(vectors, directions, strict=True):
        assert abs(float(flat(v) @ flat(u))) == pytest.approx(1.0, abs=1e-2)
    mine, their = ours.trace(maxIter=400), theirs.trace(maxIter=400, tol=0.0)
    assert type(mine) is type(their) and type(mine[0]) is type(their[0]) and len(mine) == len(their)
    error = np.hypot(*(np.std(samples) / np.sqrt(len(samples)) for samples in (mine, their)))
    assert abs(np.mean(mine) - np.mean(their)) < 4 * error
    assert np.std(mine) == pytest.approx(np.std(their), rel=0.3)  # samples of the same kind
