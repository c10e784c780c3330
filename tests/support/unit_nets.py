"""Networks of many kinds with generic weights, for what concerns hidden units."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import Objective
from residual import resnet20

NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {}


def net(build: Callable[[], tuple[nn.Module, Tensor]]) -> Callable[[], tuple[nn.Module, Tensor]]:
    NETS[build.__name__] = build
    return build


def generic(name: str) -> tuple[nn.Module, Tensor]:
    """A network in eval mode in which no two entries are equal and none is zero, and inputs for it."""
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        model, x = NETS[name]()
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.is_floating_point():
                    tensor.mul_(1 + 0.3 * torch.rand_like(tensor)).add_(0.1 * torch.rand_like(tensor))
    return model.eval(), x


def objective_of(model: nn.Module, x: Tensor) -> Objective:
    with torch.no_grad():
        y = torch.randn_like(model(x))
    return Objective(model, (x, y), criterion=nn.MSELoss())


@net
def mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12, bias=False), nn.Tanh(), nn.Linear(12, 3)]
    return nn.Sequential(*layers), torch.randn(20, 5)


@net
def conv() -> tuple[nn.Module, Tensor]:
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(54, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 2)), torch.randn(
        9, 2, 8, 8
    )


@net
def residual() -> tuple[nn.Module, Tensor]:
    return resnet20(4), torch.randn(6, 1, 16, 16)


class Bottleneck(nn.Module):
    """Depthwise and group normalised, gated, beside a shortcut: what ConvNeXt and MobileNet are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.depthwise, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.GroupNorm(2, 6)
        self.up, self.down = nn.Conv2d(6, 16, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.glu(self.up(self.norm(self.depthwise(x))), dim=1))
        return self.head(x.mean(dim=(2, 3)))


@net
def bottleneck() -> tuple[nn.Module, Tensor]:
    return Bottleneck(), torch.randn(7, 1, 6, 6)


class Dense(nn.Module):
    """Layers that read what all before them wrote, one beside the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(11, 7)
        self.head = nn.Linear(18, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        both = torch.cat([a, self.b(a).tanh()], dim=1)
        return self.head(torch.cat([both, self.c(both).relu()], dim=1))


@net
def dense() -> tuple[nn.Module, Tensor]:
    return Dense(), torch.randn(11, 4)


class Transformer(nn.Module):
    """Tokens, positions, an encoder before and one after its normalisation, the embedding for a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(13, 8), nn.Parameter(torch.randn(9, 8))
        layers = [nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=first) for first in (True, False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layers(self.words(tokens) + self.positions[: tokens.shape[1]])
        return F.linear(x, self.words.weight)


@net
def transformer() -> tuple[nn.Module, Tensor]:
    return Transformer(), torch.randint(13, (5, 6))


class Recurrent(nn.Module):
    """Two recurrent layers of two kinds, whose last state is read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(3, 5, num_layers=2, batch_first=True), nn.GRU(5, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)[0])[0][:, -1])


@net
def recurrent() -> tuple[nn.Module, Tensor]:
    return Recurrent(), torch.randn(8, 4, 3)


class Normed(nn.Module):
    """Weights that are computed: of a norm and a direction, and of two factors of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
        self.left, self.right = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(3, 6))
        self.slope, self.c = nn.PReLU(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.a(x))
        return self.c(F.hardswish(x + x @ self.left @ self.right))


@net
def computed() -> tuple[nn.Module, Tensor]:
    return Normed(), torch.randn(8, 4)


class Grouped(nn.Module):
    """A convolution in twelve groups of three channels between others, beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 7, 3, padding=1)
        self.narrow, self.grouped, self.wide = nn.Conv2d(7, 36, 1), nn.Conv2d(36, 36, 3, groups=12), nn.Conv2d(36, 7, 1)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x[:, :, 1:-1, 1:-1] + self.wide(self.grouped(self.narrow(x).relu()).relu())
        return self.head(x.mean(dim=(2, 3)))


@net
def grouped() -> tuple[nn.Module, Tensor]:
    return Grouped(), torch.randn(7, 1, 6, 6)
