"""A ResNet-20 and the digits at 16 x 16: the network of the block tests, large enough for costs to show."""

import itertools

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.before, self.width = before, width
        self.conv1 = nn.Conv2d(before, width, 3, stride=width // before, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        step = self.width // self.before
        shortcut = F.pad(x[:, :, ::step, ::step], (0, 0, 0, 0, 0, self.width - self.before))
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + shortcut)


def resnet20(width: int = 16) -> nn.Sequential:
    """Three stages of three blocks, of one, two and four times ``width`` channels."""
    widths = [width] * 4 + [2 * width] * 3 + [4 * width] * 3
    blocks = [Residual(a, b) for a, b in itertools.pairwise(widths)]
    stem = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def digits(samples: int) -> tuple[Tensor, Tensor]:
    """The first handwritten digits, enlarged to 16 x 16, with their labels."""
    data = load_digits()
    small = torch.tensor(data.images[:samples], dtype=torch.float32)[:, None] / 16
    return F.interpolate(small, size=16, mode="bilinear"), torch.tensor(data.target[:samples])
