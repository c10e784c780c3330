"""The models and data that the kernel benchmarks run on, and a float64 reference written by hand.

Nothing here uses losscope: the reference must not share code with what it judges.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

GREY_LEVELS = 17
_CHUNK = 128


class Block(nn.Module):
    """A residual block of the CIFAR ResNets; its shortcut has no parameters (He et al. 2016, option A)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if width_in == width else 2
        self.padding = width - width_in
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(inner + shortcut)


def resnet20(channels: int = 1, classes: int = 10) -> nn.Module:
    """ResNet-20 with 16, 32 and 64 channels: 0.27 million parameters."""
    widths = [16] * 3 + [32] * 3 + [64] * 3
    blocks = [Block(before, width) for before, width in zip([16, *widths], widths, strict=False)]
    stem = [nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


class Layer(nn.Module):
    """A pre-norm transformer layer with causal attention through torch's own function."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A 2-layer GPT; returns logits (sequences x positions, vocabulary)."""

    def __init__(self, vocabulary: int = GREY_LEVELS, length: int = 32, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.layers = nn.Sequential(*(Layer(width, heads=4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.layers(x))).flatten(0, 1)


def mlp() -> nn.Module:
    """64-64-32-10, tanh: 6,570 parameters."""
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


@dataclass(frozen=True)
class Family:
    """A model with all its data.

    Attributes:
        name: for tables.
        build: makes the untrained model.
        data: (inputs, targets); all samples.
        rows: targets per sample (positions of a sequence).
        attention: whether it calls ``scaled_dot_product_attention``.
    """

    name: str
    build: Callable[[], nn.Module]
    data: tuple[Tensor, Tensor]
    rows: int = 1
    attention: bool = False


@dataclass(frozen=True)
class Problem:
    """A trained model with the batches it is differentiated on.

    Attributes:
        key: short name, e.g. ``"mlp-128"``.
        title: for tables and figures.
        family: where model and data come from.
        model: the model; take a copy before anything that writes on it.
        batches: the (inputs, targets) batches.
    """

    key: str
    title: str
    family: Family
    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]

    @property
    def samples(self) -> int:
        return sum(len(x) for x, _ in self.batches)

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def fresh(self) -> nn.Module:
        return copy.deepcopy(self.model)


CRITERION = nn.CrossEntropyLoss()


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(bunch.images, dtype=torch.float32)[order], torch.tensor(bunch.target)[order]


def _families() -> dict[str, Family]:
    images, labels = _digits()
    flat = images.flatten(1) / 16.0
    large = F.interpolate(images[:512, None] / 16.0, size=16, mode="bilinear", align_corners=False)
    tokens = images[:192].flatten(1)[:, :33].long()
    return {
        "mlp": Family("MLP", mlp, (flat, labels)),
        "resnet": Family("ResNet-20", resnet20, (large, labels[:512])),
        "gpt": Family("GPT", GPT, (tokens[:, :-1], tokens[:, 1:]), rows=32, attention=True),
    }


# samples, batch size (None: one batch), title
_BATCHINGS: dict[str, tuple[tuple[int, int | None, str], ...]] = {
    "mlp": ((128, None, "MLP, 128"), (1797, None, "MLP, all 1797"), (1797, 128, "MLP, 1797 in batches of 128")),
    "resnet": (
        (128, None, "ResNet-20, 128"),
        (512, None, "ResNet-20, all 512"),
        (512, 96, "ResNet-20, 512 in batches of 96"),
    ),
    "gpt": ((128, None, "GPT, 128"), (192, None, "GPT, all 192"), (192, 80, "GPT, 192 in batches of 80")),
}


def _trained(family: Family, device: torch.device, steps: int) -> nn.Module:
    """The model after a few steps of Adam, in eval mode, with BatchNorm's statistics those of the data."""
    torch.manual_seed(0)
    model = family.build().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = family.data
    for step in range(steps):
        index = torch.arange(64) + 64 * (step % (len(x) // 64))
        optimizer.zero_grad()
        CRITERION(model(x[index].to(device)), y[index].flatten().to(device)).backward()
        optimizer.step()
    optimizer.zero_grad()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # an average over all batches seen
    with torch.no_grad():
        for part in x.split(64):
            model(part.to(device))
    return model.eval()


def problems(device: torch.device, only: tuple[str, ...] = (), steps: int = 30) -> list[Problem]:
    """All problems, or those whose key contains one of ``only``."""
    made = []
    for name, family in _families().items():
        keys = [f"{name}-{n}" + ("" if size is None else f"-by-{size}") for n, size, _ in _BATCHINGS[name]]
        chosen = [
            item
            for item in zip(keys, _BATCHINGS[name], strict=True)
            if not only or any(word in item[0] for word in only)
        ]
        if not chosen:
            continue
        model = _trained(family, device, steps)
        for key, (n, size, title) in chosen:
            x, y = (t[:n].to(device) for t in family.data)
            pairs = zip(x.split(size or n), y.split(size or n), strict=True)
            made.append(Problem(key, title, family, model, [(a, b.flatten()) for a, b in pairs]))
    return made


# --------------------------------------------------------------------------- references in float64


def _double(problem: Problem) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], float]:
    model = problem.fresh().double()
    x, y = (torch.cat(column) for column in zip(*problem.batches, strict=True))
    x = x.double() if x.is_floating_point() else x
    rows = y.view(len(x), -1)
    return model, [(a, b.flatten()) for a, b in zip(x.split(_CHUNK), rows.split(_CHUNK), strict=True)], y.numel()


def hessian_reference(problem: Problem, V: Tensor) -> Tensor:
    """H V in float64, (n, k): the gradient of <gradient, v>, data taken as one, one vector at a time."""
    model, chunks, total = _double(problem)
    parameters = list(model.parameters())
    out = torch.zeros(V.shape, dtype=torch.float64, device=V.device)
    with sdpa_kernel(SDPBackend.MATH):
        for x, y in chunks:
            loss = -F.log_softmax(model(x), dim=-1).gather(1, y[:, None]).sum() / total
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
            for j in range(V.shape[1]):
                pieces = torch.autograd.grad(gradient @ V[:, j].double(), parameters, retain_graph=True)
                out[:, j] += torch.cat([piece.flatten() for piece in pieces])
    return out


def gauss_newton_reference(problem: Problem, V: Tensor) -> Tensor:
    """J' H_out J V in float64, (n, k), with the softmax's own H_out = diag(p) - p p' per target."""
    model, chunks, total = _double(problem)
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
    values = {name: p.detach() for name, p in model.named_parameters()}
    out = torch.zeros(V.shape, dtype=torch.float64, device=V.device)
    with sdpa_kernel(SDPBackend.MATH):
        for x, _ in chunks:
            for j in range(V.shape[1]):
                pieces = V[:, j].double().split([shape.numel() for shape in shapes])
                tangent = {n: t.view(s) for n, t, s in zip(names, pieces, shapes, strict=True)}
                outputs = functools.partial(_call, model, x)
                logits, moved = torch.func.jvp(outputs, (values,), (tangent,))
                p = logits.softmax(dim=-1)
                pulled = (p * moved - p * (p * moved).sum(dim=-1, keepdim=True)) / total
                back = torch.func.vjp(outputs, values)[1](pulled)[0]
                out[:, j] += torch.cat([back[name].flatten() for name in names])
    return out


def _call(model: nn.Module, x: Tensor, values: dict[str, Tensor]) -> Tensor:
    return torch.func.functional_call(model, values, (x,))
