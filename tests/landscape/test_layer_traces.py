"""Every layer's trace from products with the whole matrix: against dense blocks, and how often the intervals cover."""

import pytest
import torch
from torch import Tensor, nn

from landscape_cases import build, labelled, mlp, reference
from losscope.landscape import BlockDiagonal, Hessian, NonFiniteError, Objective, SettingError, layer_traces
from losscope.landscape.layer_traces import TrackedLayerTraces

CASES = ["batchnorm_eval", "uneven_batches", "tied_weights", "scaled_dot_product_attention"]


def dense_traces(B: BlockDiagonal, H: Tensor) -> dict[str, float]:
    found = {
        name or "(model)": float(sum(H.diagonal()[rows].sum() for rows in block._rows))
        for name, block in B.blocks.items()
    }
    return found | {"": float(H.trace())}


@pytest.mark.parametrize("name", CASES)
def test_exact_where_there_are_no_more_columns_than_products(name: str) -> None:
    B = BlockDiagonal(Hessian(build(name).objective()))
    H = reference(name)[2]
    found = layer_traces(B, vectors=len(H), seed=0)
    for layer, expected in dense_traces(B, H).items():
        assert found[layer].value == pytest.approx(expected, rel=1e-6, abs=1e-6 * float(H.norm()))
        assert found[layer].low <= expected <= found[layer].high
        assert found[layer].method == "exact" and found[layer].matvecs == len(H)


@pytest.mark.parametrize(("name", "rank"), [("batchnorm_eval", 4), ("tied_weights", 0)])
def test_intervals_cover(name: str, rank: int) -> None:
    """Nominal 95 %: of 120 seeds and three or four layers, whose errors go together, no less than 90 %."""
    B = BlockDiagonal(Hessian(build(name).objective()))
    exact = dense_traces(B, reference(name)[2])
    hits = dict.fromkeys(exact, 0)
    for seed in range(120):
        for layer, estimate in layer_traces(B, vectors=12, rank=rank, seed=seed).items():
            hits[layer] += estimate.low <= exact[layer] <= estimate.high
    assert min(hits.values()) >= 0.9 * 120, hits


def test_the_mean_over_seeds_is_the_trace() -> None:
    B = BlockDiagonal(Hessian(build("scaled_dot_product_attention").objective()))
    exact = dense_traces(B, reference("scaled_dot_product_attention")[2])
    runs = [layer_traces(B, vectors=8, rank=4, seed=seed) for seed in range(25)]
    for layer, expected in exact.items():
        values = torch.tensor([each[layer].value for each in runs], dtype=torch.float64)
        assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / 25**0.5


def test_layers_add_up_and_the_number_of_products_is_known() -> None:
    B = BlockDiagonal(Hessian(Objective(mlp(8, 9, 9, 3), labelled([30], 8), criterion=nn.CrossEntropyLoss())))
    tracked = TrackedLayerTraces(rank=4, vectors=6)
    for matvecs in (14, 10, 10):
        found = tracked.measure(B, seed=1)
        whole = found.pop("")
        assert whole.matvecs == matvecs
        assert sum(each.value for each in found.values()) == pytest.approx(whole.value, rel=1e-5)
    assert tracked.basis is not None
    torch.testing.assert_close(tracked.basis.T @ tracked.basis, torch.eye(4).to(tracked.basis), atol=1e-5, rtol=0)


def test_directions_taken_out_narrow_the_intervals() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(40, 1), (torch.cat((20 * torch.ones(64, 1), torch.randn(64, 39)), 1), torch.zeros(64, 1))
    B = BlockDiagonal(Hessian(Objective(model, data, criterion=nn.MSELoss())), {"weight": "weight", "bias": "bias"})
    wide, narrow = (layer_traces(B, vectors=8, rank=rank, seed=0)["weight"] for rank in (0, 2))
    assert narrow.high - narrow.low < 0.2 * (wide.high - wide.low)


def test_groups_of_ones_own_and_the_model_itself() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(1)), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.inner(x)

    hessian = Hessian(Objective(Scaled(), (torch.eye(2), torch.zeros(2, 1)), criterion=nn.MSELoss()))
    assert list(layer_traces(BlockDiagonal(hessian))) == ["(model)", "inner", ""]
    assert list(layer_traces(BlockDiagonal(hessian, {"w": "inner.weight"}))) == ["w", ""]


def test_bad_input() -> None:
    hessian = Hessian(Objective(nn.Linear(2, 1), (torch.eye(2), torch.zeros(2, 1)), criterion=nn.MSELoss()))
    with pytest.raises(SettingError, match="BlockDiagonal"):
        layer_traces(hessian)  # type: ignore[arg-type]
    for options in ({"vectors": 2}, {"rank": -1}, {"vectors": 4.0}, {"confidence": 1.0}):
        with pytest.raises(SettingError, match=next(iter(options))):
            layer_traces(BlockDiagonal(hessian), **options)
    data = (torch.full((2, 2), float("nan")), torch.zeros(2, 1))
    broken = Hessian(Objective(nn.Linear(2, 1), data, criterion=nn.MSELoss()))
    with pytest.raises(NonFiniteError):
        layer_traces(BlockDiagonal(broken), seed=0)
