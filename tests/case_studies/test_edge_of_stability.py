"""The edge of stability in short: the flows against closed forms, CIFAR-10's files, the script."""

import json
import math
import pickle
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian
from torch.nn.utils import parameters_to_vector

from edge.beside import beside
from edge.cifar import cifar, fc_tanh
from edge.flows import Surface, central_flow, gradient_flow
from edge.sweep import Trained
from edge_of_stability import LONGER, in_order, main
from losscope.landscape import DataError
from losscope.viz.demo import half_squared_error


def small_surface(seed: int = 0) -> tuple[Surface, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    surface = Surface(model, x, y, half_squared_error)
    return surface, parameters_to_vector(surface.parameters).detach().clone()


def test_third_order_products_are_those_of_the_dense_hessian() -> None:
    surface, w = small_surface()
    names = [name for name, _ in surface.model.named_parameters()]
    shapes = [p.shape for p in surface.parameters]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return half_squared_error(functional_call(surface.model, weights, (surface.x,)), surface.y)

    values, vectors = torch.linalg.eigh(hessian(loss)(w))
    pairs = surface.eigenpairs(w, 2, tol=1e-9)
    torch.testing.assert_close(pairs.values.double(), values.flip(0)[:2], rtol=1e-8, atol=0)
    found = surface.sharpness_gradient(w, vectors[:, -1])
    assert found.loss == pytest.approx(float(loss(w))) and found.sharpness == pytest.approx(float(values[-1]))
    torch.testing.assert_close(found.gradient, grad(loss)(w))
    torch.testing.assert_close(found.third, grad(lambda at: torch.linalg.eigvalsh(hessian(loss)(at))[-1])(w))


def test_gradient_flow_of_least_squares_is_exponential() -> None:
    model = nn.Linear(3, 1, bias=False).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    surface = Surface(model, x, torch.zeros(10, 1).double(), half_squared_error)
    w = torch.ones(3).double()
    values, vectors = torch.linalg.eigh(x.T @ x / 10)
    for i, (at, sharpness) in enumerate(gradient_flow(surface, w, time=2.0, every=0.5, alpha=0.2)):
        exact = vectors @ ((-0.5 * i * values).exp() * (vectors.T @ w))
        torch.testing.assert_close(at, exact, rtol=1e-4, atol=1e-5)
        assert sharpness == pytest.approx(float(values[-1]), rel=1e-2)
    assert i == 4


class Valley(nn.Module):
    """Two parameters (x, y), whatever the inputs."""

    def __init__(self, x: float, y: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([x, y], dtype=torch.float64))

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.w


def test_the_central_flow_of_a_valley_that_narrows() -> None:
    """L = (2 + y) x^2 / 2 - y / 10 + y^2 / 4: S = 2 + y is held at 2 / rate = 2 by sigma^2 = 2 (1 / 10 - y / 2)."""

    def loss(w: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        x, y = w
        return (2 + y) * x**2 / 2 - y / 10 + y**2 / 4

    surface = Surface(Valley(0.0, -0.08), torch.zeros(1), torch.zeros(1), loss)
    points = list(central_flow(surface, torch.tensor([0.0, -0.08], dtype=torch.float64), rate=1.0, updates=60))
    assert points[0].variance == 0 and points[0].sharpness == pytest.approx(1.92)
    assert all(before.sharpness <= after.sharpness + 1e-9 for before, after in pairwise(points))
    last = points[-1]
    assert last.sharpness == pytest.approx(2, abs=1e-3) and last.second == pytest.approx(0.5)
    assert last.variance == pytest.approx(0.2, rel=1e-2)
    assert last.average == pytest.approx(last.loss + last.sharpness * last.variance / 2)

    w, squares, heights = torch.tensor([1e-3, -0.08], dtype=torch.float64), [], []
    for _ in range(4000):
        surface.model.w.data.copy_(w)
        (gradient,) = torch.autograd.grad(loss(surface.model.w, w), [surface.model.w])
        w = w - gradient
        squares.append(float(w[0]) ** 2)
        heights.append(float(w[1]))
    assert fmean(squares[1000:]) == pytest.approx(0.2, rel=0.1) and abs(fmean(heights[1000:])) < 0.02


def test_crossings() -> None:
    above = Trained("a", 0, {0: 2.0, 10: 0.5, 20: 0.99, 30: 1.0, 40: 1.1}, [3.0, 1.0, 2.0, 1.0], "AT_EDGE")
    never = Trained("b", 0, {0: 0.1, 10: 0.2}, [1.0, 0.9], "BELOW_EDGE")
    assert (above.crossing, never.crossing) == (30, math.inf)
    assert math.isnan(never.hover) and above.hover == 1.1
    assert [in_order(pair) for pair in ([above, never], [above, above], [never, above])] == [1, 0, 0]
    assert math.isnan(in_order([never, never]))


def test_a_run_that_does_not_cross_is_said_and_left_out(capsys) -> None:
    assert beside(0, rate=1e-3, updates=5, most=10, samples=50) is None
    assert "stays below 2/lr = 2000" in capsys.readouterr().out


def fake_cifar(folder: Path, images: int = 4, *, binary: bool = False) -> np.ndarray:
    """Five batches of random bytes; returns all images."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    pixels = random.integers(0, 256, (5 * images, 3072), dtype=np.uint8)
    labels = random.integers(0, 10, 5 * images)
    for i in range(5):
        some = slice(i * images, (i + 1) * images)
        if binary:
            rows = np.column_stack([labels[some].astype(np.uint8), pixels[some]])
            (folder / f"data_batch_{i + 1}.bin").write_bytes(rows.tobytes())
        else:
            batch = {b"data": pixels[some], b"labels": labels[some].tolist(), b"batch_label": b"batch"}
            (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch, protocol=2))
    return pixels


@pytest.mark.parametrize("binary", [False, True])
def test_cifar_is_standardised_over_all_images(binary: bool, tmp_path: Path) -> None:
    pixels = fake_cifar(tmp_path / "data" / "batches", binary=binary) / 255
    x, y = cifar(tmp_path / "data", samples=6)
    expected = (pixels[:6] - pixels.mean(axis=0)) / pixels.std(axis=0)
    torch.testing.assert_close(x, torch.tensor(expected).float(), rtol=1e-4, atol=1e-5)
    assert y.shape == (6, 10) and (y.sum(dim=1) == 1).all()
    assert sum(p.numel() for p in fc_tanh(0).parameters()) == 656_810  # as published


def test_folders_that_are_not_cifar(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data_batch_1"):
        cifar(tmp_path)
    fake_cifar(tmp_path / "few")
    with pytest.raises(DataError, match="20 images, fewer than the 5000"):
        cifar(tmp_path / "few")
    (tmp_path / "few" / "data_batch_2").write_bytes(pickle.dumps(Path))  # a pickle that could run code
    with pytest.raises(DataError, match=r"asks for pathlib"):
        cifar(tmp_path / "few")
    (tmp_path / "few" / "data_batch_1").write_bytes(b"nothing")
    with pytest.raises(DataError, match="data_batch_1 is not a batch"):
        cifar(tmp_path / "few")
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "data_batch_1.bin").write_bytes(b"abc")
    with pytest.raises(DataError, match="3 bytes"):
        cifar(tmp_path / "short")


def test_the_script_takes_a_folder_of_cifar(tmp_path: Path) -> None:
    fake_cifar(tmp_path / "data")
    given = ["--cifar", str(tmp_path / "data"), "--samples", "10", "--steps", "4", "--seeds", "1"]
    claims = main([*given, "--out", str(tmp_path / "new")])
    assert [claim.name for claim in claims] == ["CIFAR-10_hovers", "cifar_later"]
    assert len(list((tmp_path / "new" / "runs").iterdir())) == 3 and (tmp_path / "new" / "cifar.png").exists()


def test_without_the_folder_of_cifar_the_script_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no data_batch_1"):
        main(["--cifar", str(tmp_path / "nothing"), "--out", str(tmp_path / "new")])


def test_quick(tmp_path: Path) -> None:
    claims = main(["--quick", "--out", str(tmp_path / "new")])
    assert len(claims) > len(LONGER)
    written = json.loads((tmp_path / "new" / "claims.json").read_text())
    assert written["quick"] and [each["name"] for each in written["claims"]] == [claim.name for claim in claims]
    assert len(list((tmp_path / "new").glob("*.png"))) == 5
