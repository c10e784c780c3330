"""What of torch can be measured on this machine, and by which kernel: small models are tried."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from losscope.landscape import Hessian, Objective
from losscope.landscape.isolation import preserved_rng

__all__ = ["Capability", "capabilities"]


@dataclass(frozen=True)
class Capability:
    """Whether curvature products of something work.

    Attributes:
        name: of what was tried.
        kernel: what computed them; empty where nothing does.
        reason: why that one, or why not.
    """

    name: str
    kernel: str
    reason: str


class _Attention(nn.Module):
    """One layer of causal attention by torch's fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part[:, None] for part in self.qkv(x.view(-1, 2, 4)).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).flatten(1)


class _MultiHead(nn.Module):
    """`torch.nn.MultiheadAttention`."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 2, 4)
        return self.attention(x, x, x, need_weights=False)[0].flatten(1)


class _Recurrent(nn.Module):
    """An LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(x.view(-1, 2, 4))[0][:, -1]


class _Checkpointed(nn.Module):
    """A layer that is computed again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = nn.Sequential(nn.Linear(8, 4), nn.Tanh()), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)


class _Autocast(nn.Module):
    """A network in bfloat16 autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _mlp()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.inner(x).float()


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))


def _convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())


def _compiled() -> nn.Module:
    model = _mlp()
    model.compile(backend="aot_eager")
    return model


CASES: dict[str, Callable[[], nn.Module]] = {
    "linear layers": _mlp,
    "convolution, batch norm": _convolution,
    "LSTM": _Recurrent,
    "scaled_dot_product_attention": _Attention,
    "nn.MultiheadAttention": _MultiHead,
    "checkpoint(use_reentrant=False)": lambda: _Checkpointed(reentrant=False),
    "checkpoint(use_reentrant=True)": lambda: _Checkpointed(reentrant=True),
    "bfloat16 autocast": _Autocast,
    "model.compile()": _compiled,
}
"""What is tried, by name."""


def capabilities(device: torch.device | str | None = None) -> list[Capability]:
    """Try products of each case.

    Args:
        device: where; default: the first GPU, or the CPU.

    Example:
        >>> from losscope.probes.capabilities import capabilities
        >>> capabilities("cpu")[0]
        Capability(name='linear layers', kernel='retained', reason='double backward works')
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with preserved_rng():
        torch.manual_seed(0)
        return [_tried(name, build, device) for name, build in CASES.items()]


def _tried(name: str, build: Callable[[], nn.Module], device: torch.device) -> Capability:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = build().to(device)
            x = torch.randn(6, 8, device=device)
            objective = Objective(model, (x, torch.zeros(6, device=device)), criterion=_square)
            hessian = Hessian(objective)
            product = hessian @ torch.ones(objective.space.size, device=device)
    except Exception as error:
        return Capability(name, "", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    if not bool(torch.isfinite(product).all()):
        return Capability(name, "", "the product is not finite")
    return Capability(name, hessian.kernel, hessian.note or "double backward works")


def _square(output: Tensor, _: Tensor) -> Tensor:
    return (output**2).mean()
