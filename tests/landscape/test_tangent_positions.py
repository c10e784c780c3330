"""Kernels from factors of the Jacobians: the same as from these, and only where that is less work or less memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Objective, tangent_kernel, tangent_positions
from losscope.landscape.kernels.layer_jacobians import Shape
from losscope.landscape.kernels.windows import patches, window_of
from losscope.landscape.tangent_contraction import fewest_passes
from losscope.landscape.tangent_jacobians import SampleJacobians
from losscope.landscape.tangent_positions import Factors, entries, fewer, imaged, joined, pays, remade


def bound(model: nn.Module, *parts: Tensor) -> Objective:
    batches = [(x, torch.zeros(len(x))) for x in parts]
    return Objective(model.double(), batches, criterion=lambda z, _: z.square().mean())


def dense(model: nn.Module, *parts: Tensor) -> Tensor:
    """The trace form, from one backward pass for each output of each sample."""
    rows = []
    for x in (x[i : i + 1] for part in parts for x in [part] for i in range(len(part))):
        outputs = model(x).reshape(-1)
        grads = [torch.autograd.grad(o, list(model.parameters()), retain_graph=True) for o in outputs]
        rows.append(torch.stack([torch.cat([g.reshape(-1) for g in each]) for each in grads]))
    J = torch.stack(rows)
    return torch.einsum("ikp,jkp->ij", J, J) / J.shape[1]


class Twice(nn.Module):
    """One linear layer used two times, and a mean over the length of the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.again, self.head = nn.Linear(3, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.into(x))
        return self.head(torch.tanh(self.again(torch.tanh(self.again(h)))).mean(dim=1))


def factored(objective: Objective, outputs: int, form: str = "trace") -> dict[str, bool]:
    """The weights of which factors are kept, and whether their inner products are taken at positions."""
    with objective.isolated():
        jacobians = SampleJacobians(objective, torch.eye(outputs, dtype=torch.float64))
        passes = fewest_passes(jacobians, form, 8, 1 << 30)
    kept = {i for each in passes for i in each.factored}
    return {objective.space.names[i]: pays(jacobians.shapes[i], outputs) for i in kept}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 16, 3, stride=2), nn.Tanh(), nn.Conv2d(16, 32, 2),
        nn.Flatten(), nn.Linear(128, 5),
    )  # fmt: skip


def test_a_layer_with_one_position() -> None:
    model, x = mlp(), torch.randn(7, 5, dtype=torch.float64)
    objective = bound(model, x[:4], x[4:])
    assert factored(objective, 4)["2.weight"]
    assert factored(objective, 4, "full") == {}
    torch.testing.assert_close(tangent_kernel(objective).matrix, dense(model, x), rtol=1e-12, atol=1e-12)


def test_by_how_many_positions_there_are() -> None:
    model, x = convolutions(), torch.randn(6, 2, 7, 7, dtype=torch.float64)
    objective = bound(model, x)
    found = factored(objective, 5)
    assert found["4.weight"] and not found["2.weight"] and "0.weight" not in found
    torch.testing.assert_close(tangent_kernel(objective).matrix, dense(model, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [(3, 3), (3, 2), (2, 5)])
def test_a_weight_used_twice_on_sequences_of_several_lengths(lengths: tuple[int, int]) -> None:
    torch.manual_seed(1)
    model = Twice().double()
    parts = [torch.randn(4, t, 3, dtype=torch.float64) for t in lengths]
    objective = bound(model, *parts)
    assert "again.weight" in factored(objective, 10)
    torch.testing.assert_close(tangent_kernel(objective).matrix, dense(model, *parts), rtol=1e-12, atol=1e-12)


def test_in_little_memory() -> None:
    model, x = mlp().double(), torch.randn(9, 5, dtype=torch.float64)
    reference = dense(model, x)
    for memory in (6_000, 20_000, 100_000):
        found = tangent_kernel(bound(model, x), method="contraction", memory=memory)
        torch.testing.assert_close(found.matrix, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 3, 4, stride=3, dilation=2, padding=2, padding_mode="circular"), (2, 11)),
        (nn.Conv2d(4, 6, 3, padding="same", dilation=(1, 2), groups=2), (4, 5, 6)),
        (nn.Conv2d(2, 3, 3, stride=(2, 1), padding=(1, 2), padding_mode="reflect"), (2, 5, 6)),
        (nn.Conv3d(2, 3, (1, 3, 2), stride=(1, 2, 1), padding=1, padding_mode="replicate"), (2, 3, 4, 5)),
        (nn.Conv3d(2, 4, 2, dilation=(1, 2, 1), groups=2, bias=False), (2, 3, 4, 3)),
    ],
    ids=str,
)
def test_patches_of_every_convolution(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, *shape, dtype=torch.float64)
    model = nn.Sequential(layer.double(), nn.Tanh(), nn.Flatten())
    model.append(nn.Linear(model(x).shape[1], 12)).double()
    objective = bound(model, x)
    with objective.isolated():
        assert not SampleJacobians(objective, torch.eye(12, dtype=torch.float64)).alone
    torch.testing.assert_close(tangent_kernel(objective).matrix, dense(model, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [1, 3])
def test_stripes_add_up(t: int) -> None:
    n, k, shape = 150, 3, Shape(t, 4, 5)
    room = torch.randn(n * k * entries(shape, k), dtype=torch.float64)
    factors = Factors.within(room, shape, n, k)
    J = torch.einsum("ntko,nti->nkoi", factors.b, factors.a).reshape(n, -1)
    kernel = torch.zeros(n, n, dtype=torch.float64)
    factors.add_gram(kernel)
    torch.testing.assert_close(kernel.triu(), (J @ J.T).triu())


@pytest.mark.parametrize("n", [1, 37, 150])
@pytest.mark.parametrize("bytes_at_once", [1, 60_000, 16 << 20])
@pytest.mark.parametrize("room", [0, 1 << 20])
def test_images_in_place_of_patches(monkeypatch: pytest.MonkeyPatch, n: int, bytes_at_once: int, room: int) -> None:
    """Blocks, groups of them and what is left over, in memory that is there and in new memory."""
    monkeypatch.setattr(tangent_positions, "_BYTES", bytes_at_once)
    conv, k = nn.Conv2d(24, 20, 3, padding=1).double(), 3
    shape = Shape(4, 24 * 9, 20, window_of(conv, 1, (2, 2), (2, 2)))
    assert pays(shape, k) and imaged(shape, k)
    factors = Factors.within(torch.randn(n * k * entries(shape, k), dtype=torch.float64), shape, n, k)
    a = torch.empty(n, 24 * 9, 4, dtype=torch.float64)
    patches(factors.a.transpose(1, 2).unflatten(2, (1, 2, 2)), shape.window, a)
    J = torch.einsum("ntko,nit->nkoi", factors.b, a).reshape(n, -1)
    kernel = torch.zeros(n, n, dtype=torch.float64)
    factors.add_gram(kernel, torch.full((room,), torch.nan, dtype=torch.float64))
    torch.testing.assert_close(kernel.triu(), (J @ J.T).triu())


def test_jacobians_of_images() -> None:
    conv, n, k = nn.Conv2d(2, 3, 3, stride=2, padding=1).double(), 40, 4
    shape = Shape(9, 18, 3, window_of(conv, 1, (5, 5), (3, 3)))
    assert not pays(shape, k) and imaged(shape, k)
    factors = Factors.within(torch.randn(n * k * entries(shape, k), dtype=torch.float64), shape, n, k)
    a = torch.empty(n, 18, 9, dtype=torch.float64)
    patches(factors.a.transpose(1, 2).unflatten(2, (1, 5, 5)), shape.window, a)
    J = torch.einsum("ntko,nit->nkoi", factors.b, a).reshape(n, -1)
    room = torch.full((n * remade(shape, n, k),), torch.nan, dtype=torch.float64)
    torch.testing.assert_close(torch.cat([one.clone() for one in factors.jacobians(room)], dim=1), J)


def test_a_small_image_of_many_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 24, 3, padding=1), nn.Tanh(), nn.Conv2d(24, 20, 3, padding=1), nn.Flatten())
    model.append(nn.Linear(80, 6))
    x = torch.randn(37, 2, 2, 2, dtype=torch.float64)
    objective = bound(model, x[:20], x[20:])
    assert factored(objective, 6)["2.weight"]
    torch.testing.assert_close(tangent_kernel(objective).matrix, dense(model, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("most", [1, 2 * 150 * 20, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jacobians_made_again_a_few_outputs_at_a_time(
    monkeypatch: pytest.MonkeyPatch, most: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(tangent_positions, "_REMADE", most)
    n, k, shape = 150, 3, Shape(3, 4, 5)
    assert not pays(shape, k)
    factors = Factors.within(torch.randn(n * k * entries(shape, k), dtype=dtype), shape, n, k)
    room = torch.empty(n * remade(shape, n, k), dtype=dtype)
    J = torch.einsum("ntko,nti->nkoi", factors.b, factors.a).reshape(n, -1)
    torch.testing.assert_close(torch.cat([one.clone() for one in factors.jacobians(room)], dim=1), J)


def test_what_is_less_work() -> None:
    assert pays(Shape(1, 512, 512), rows=10) and not pays(Shape(256, 144, 16), rows=10)
    assert entries(Shape(16, 576, 64), rows=10) == 16 * 64 + 922  # a tenth of 16 * 576
    assert fewer(Shape(64, 288, 32), rows=10) and not fewer(Shape(64, 288, 64), rows=1)
    one = Shape(2, 3, 4)
    assert joined([one, one]) == Shape(4, 3, 4)
    assert joined([one, None]) is None and joined([]) is None and joined([one, Shape(2, 4, 3)]) is None
