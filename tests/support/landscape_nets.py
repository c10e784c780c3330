"""The networks of `landscape_cases` and of tests of their own."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Scaled(nn.Module):
    """With a plain number that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.scale = mlp(4, 6, 3), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layers(x)


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.never = nn.Linear(2, 2)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())


class LanguageModel(nn.Module):
    """Embedding, a recurrent or plain mixing layer, and a head that shares the embedding's weight."""

    def __init__(self, words: int = 7, width: int = 4, recurrent: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.mix = nn.LSTM(width, width, batch_first=True) if recurrent else nn.Linear(width, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.mix(self.embed(tokens))
        return self.head(hidden[0] if isinstance(hidden, tuple) else hidden.tanh())


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 3)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.norm(self.conv(x))).mean(dim=(2, 3)))


class Attention(nn.Module):
    """One causal attention layer on ``scaled_dot_product_attention``; `by_hand` is the same from the softmax."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def _heads(self, x: Tensor) -> list[Tensor]:
        return [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1)]

    def _out(self, x: Tensor, mixed: Tensor) -> Tensor:
        return self.head(self.norm(x + mixed.transpose(1, 2).flatten(2)).mean(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        return self._out(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def by_hand(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        allowed = torch.ones_like(scores).tril() > 0
        return self._out(x, scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1) @ v)


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(dim=1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            4, 2, dim_feedforward=4, dropout=0.1, activation="gelu", batch_first=True
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(dim=1))


class Checkpointed(nn.Module):
    """A body that is recomputed in the backward pass."""

    def __init__(self, use_reentrant: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.body = mlp(4, 5, 5)
        self.head = nn.Linear(5, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, self.first(x), use_reentrant=self.use_reentrant))


class Spectral(nn.Module):
    """A Fourier layer with complex weights and biases between linear ones, of samples with 8 points.

    Args:
        pairs: hold each complex number as a pair of real ones.
        classes: outputs.
    """

    def __init__(self, pairs: bool = False, classes: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, 3), nn.Linear(3, classes)
        parts = torch.randn(3, 3, 4, 2) / 3, torch.randn(4, 2) / 3
        self.weight, self.bias = (nn.Parameter(t if pairs else torch.view_as_complex(t)) for t in parts)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (t if t.is_complex() else torch.view_as_complex(t) for t in (self.weight, self.bias))
        hidden = self.first(x[..., None]).tanh()
        modes = torch.einsum("bki,iok->bko", torch.fft.rfft(hidden, dim=1)[:, :4], weight) + bias[:, None]
        return self.last((torch.fft.irfft(modes, n=8, dim=1) + hidden).tanh().mean(dim=1))
