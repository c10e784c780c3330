"""How convolutions see images: patches and inner products of what is seen, against the convolution itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape.kernels.windows import Reach, image, patches, seen_products, window_of

LAYERS = [
    (nn.Conv1d(2, 3, 4, stride=3, dilation=2, padding=2, padding_mode="circular"), (11,)),
    (nn.Conv1d(2, 3, 3, padding=4), (2,)),
    (nn.Conv1d(3, 2, 2, stride=4, padding=1), (9,)),
    (nn.Conv2d(2, 3, 3, padding=1), (4, 5)),
    (nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 2)), (5, 6)),
    (nn.Conv2d(2, 3, 3, stride=(2, 3), padding=(1, 2), padding_mode="reflect"), (5, 6)),
    (nn.Conv2d(2, 3, 1), (3, 4)),
    (nn.Conv2d(2, 3, 2, stride=2), (5, 4)),
    (nn.Conv3d(2, 3, (1, 3, 2), stride=(1, 2, 1), padding=1, padding_mode="replicate"), (2, 3, 4)),
    (nn.Conv3d(2, 3, 2, dilation=(1, 2, 1), padding=(0, 1, 0)), (2, 3, 4)),
]


def seen(layer: nn.Module, size: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor, tuple[Reach, ...], Tensor]:
    """The inputs' images, patches (n, entering, t), window, and outputs (n, out, t), of 2 samples."""
    layer = layer.double()
    x = torch.randn(2, rows, 2 if layer.in_channels == 2 else 3, *size, dtype=torch.float64)
    with torch.no_grad():
        out = layer(x.flatten(0, 1)).unflatten(0, (2, rows))
    window = window_of(layer, rows, size, out.shape[3:])
    images = image(layer, x)
    found = torch.empty(2, layer.weight[0].numel(), rows * out[0, 0, 0].numel(), dtype=torch.float64)
    patches(images, window, found)
    return images, found, window, out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("layer", "size"), LAYERS, ids=str)
def test_patches_times_weights_are_the_convolution(layer: nn.Module, size: tuple[int, ...], rows: int) -> None:
    _, found, _, out = seen(layer, size, rows)
    made = torch.einsum("oi,nit->not", layer.weight.detach().flatten(1), found) + layer.bias.detach()[:, None]
    torch.testing.assert_close(made, out, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("layer", "size"), LAYERS, ids=str)
def test_inner_products_of_patches_from_those_of_pixels(layer: nn.Module, size: tuple[int, ...], rows: int) -> None:
    images, found, window, _ = seen(layer, size, rows)
    grid = [reach.pixels for reach in window]
    assert list(images.shape[2:]) == grid
    pixels = torch.einsum("ncp,mcq->pnqm", images.flatten(2), images.flatten(2)).view(*grid, 2, *grid, 2)
    of_patches = torch.einsum("nit,mis->tnsm", found, found)
    torch.testing.assert_close(seen_products(pixels, window, beside=1).reshape_as(of_patches), of_patches)


def test_what_is_seen_by_each_step() -> None:
    reach = Reach(pixels=5, positions=3, kernel=3, stride=2, dilation=2, before=3)
    for d in range(3):
        positions, pixels = reach.seen(d)
        expected = [(y, y * 2 + d * 2 - 3) for y in range(3) if 0 <= y * 2 + d * 2 - 3 < 5]
        assert list(zip(range(3)[positions], range(5)[pixels], strict=True)) == expected
    assert not reach.plain and Reach(4, 4).plain
