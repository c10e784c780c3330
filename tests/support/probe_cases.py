"""Small models and the loops that train them, for tests of what watching does to a training: nothing.

A loop draws from every global random stream (order of the data, dropout, noise), so that a measurement which draws
from one and does not put it back shows in the losses. `fingerprint` turns what is compared into plain bytes.
"""

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from losscope.probes import Sharpness, Snapshot, Spectrum, Stability, Trace, Watch

CLASSES = 3


# --------------------------------------------------------------------------- models


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))


class _OnceSine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return ctx.saved_tensors[0].cos() * grad


class OnceSine(nn.Module):
    """A sine that torch cannot differentiate twice."""

    def forward(self, x: Tensor) -> Tensor:
        return _OnceSine.apply(x)


def once() -> nn.Module:
    """A network without double backward, which finite differences measure."""
    return nn.Sequential(nn.Linear(6, 8), OnceSine(), nn.Linear(8, CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(3 * 16, CLASSES)
    )


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Transformer(nn.Module):
    """One block with causal attention through torch's fused kernel, which has no double backward."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(4, width)
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        n, t, d = h.shape
        q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm(h)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.dropout(self.out(attended.transpose(1, 2).reshape(n, t, d)))
        return self.head(h.mean(1))


class Fused(Transformer):
    """The same, with the fused kernel forced, whatever a measurement would rather have."""

    def forward(self, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return super().forward(x)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "cnn": (cnn, (1, 6, 6)),
    "lstm": (LSTM, (4, 4)),
    "transformer": (Transformer, (4, 4)),
    "once": (once, (6,)),
    "fused": (Fused, (4, 4)),
}
"""Name -> (builder, shape of one sample)."""

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global stream is what a loop may draw from
    torch.manual_seed(seed)


# --------------------------------------------------------------------------- comparing to the bit


def fingerprint(value: Any) -> Any:
    """A nested value as plain Python, tensors and arrays as their bytes; equal means the same bits."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().view(-1).view(torch.uint8)  # numpy has no bfloat16
        return str(value.dtype), tuple(value.shape), content.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: fingerprint(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fingerprint(item) for item in value]
    return value.hex() if isinstance(value, float) else repr(value)


def streams() -> dict[str, Any]:
    """The states of all global random streams."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
    return fingerprint(states)


@dataclass(frozen=True)
class Outcome:
    """Everything a training leaves behind."""

    weights: Any
    buffers: Any
    optimizers: Any
    losses: Any
    streams: Any

    def differences(self, other: "Outcome") -> list[str]:
        """What is not the same to the bit, by name."""
        names = [f.name for f in dataclasses.fields(self)]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def outcome(models: list[nn.Module], optimizers: list[torch.optim.Optimizer], losses: list[Any]) -> Outcome:
    return Outcome(
        fingerprint([dict(m.named_parameters()) for m in models]),
        fingerprint([dict(m.named_buffers()) for m in models]),
        fingerprint([o.state_dict() for o in optimizers]),
        fingerprint(losses),
        streams(),
    )


def everything(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Any:
    """A model and its optimizer by identity *and* content: values, versions, ``.grad``, flags, hooks, streams."""

    def known(t: Tensor | None) -> Any:
        return None if t is None else (id(t), t.data_ptr(), t._version, t.requires_grad, fingerprint(t))

    def hooks(module: nn.Module) -> Any:
        tables = [(name, table) for name, table in vars(module).items() if name.endswith("_hooks")]
        return [(name, id(table), list(table.items()) if table is not None else None) for name, table in tables]

    return (
        [(n, known(p), known(p.grad), id(p._backward_hooks)) for n, p in model.named_parameters()],
        [(n, known(b)) for n, b in model.named_buffers()],
        [(id(m), m.training, sorted(vars(m)), hooks(m)) for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        None if optimizer is None else fingerprint(optimizer.state_dict()),
        streams(),
    )


# --------------------------------------------------------------------------- loops


def loader(name: str, batches: int = 3, size: int = 8) -> DataLoader:
    """A shuffling loader whose order comes from the global stream, over samples that are always the same."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batches * size, *MODELS[name][1], generator=generator)
    y = torch.randint(CLASSES, (batches * size,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True)


Watching = Callable[[nn.Module, torch.optim.Optimizer, DataLoader], AbstractContextManager[Any]]


def train(name: str, optimizer: str, watching: Watching | None = None, epochs: int = 3) -> Outcome:
    """Train from the same start in the same order, watched or not; three steps an epoch."""
    seed_everything(3)
    model = MODELS[name][0]().train()
    moved = OPTIMIZERS[optimizer](model.parameters())
    data = loader(name)
    losses = []
    with watching(model, moved, data) if watching else contextlib.nullcontext() as run:
        for _ in range(epochs):
            for x, y in data:
                noise = 0.01 * random.random() + 0.01 * np.random.rand()  # noqa: NPY002
                moved.zero_grad()
                loss = F.cross_entropy(model(x + noise), y)
                loss.backward()
                moved.step()
                losses.append(loss.item())
                if isinstance(run, Watch):
                    run.log(loss=loss)
    return outcome([model], [moved], losses)


# --------------------------------------------------------------------------- probes


def largest_weight(snapshot: Snapshot) -> dict[str, Any]:
    """A user's probe that does what users do: evaluates, draws, switches modes and clears gradients."""
    with torch.no_grad():
        values = [p.abs().max() for p in snapshot.model.parameters()]
    snapshot.model.eval()
    snapshot.model.zero_grad()
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    return {"value": max(values), "loss": snapshot.loss, "gradient": snapshot.gradient}


def meddling_probes() -> list[Any]:
    return [Sharpness(), Spectrum(2, 4), Trace(rtol=0.5), Stability(rtol=5.0), largest_weight]


# --------------------------------------------------------------------------- a loop to count steps of


def checksum(snapshot: Snapshot) -> dict[str, float]:
    """A user's probe: a number that tells apart any two sets of weights."""
    return {"value": checksum_of(snapshot.model)}


def checksum_of(model: nn.Module) -> float:
    flat = torch.cat([p.detach().reshape(-1).double() for p in model.parameters()])
    return float(flat @ torch.arange(1, len(flat) + 1, dtype=torch.float64).sqrt())


class Line:
    """Linear regression: a model, one batch, the loss, and what its own loop knew of each update.

    Call `note` just before an update, and compare `noted` with `records` afterwards.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        self.x, self.y = torch.randn(8, 3, generator=generator), torch.randn(8, 1, generator=generator)
        self.data = (self.x, self.y)
        self.noted: list[tuple[int, float | None, float]] = []

    def loss(self) -> Tensor:
        return F.mse_loss(self.model(self.x), self.y)

    def note(self, rate: float | None) -> None:
        self.noted.append((len(self.noted), rate, checksum_of(self.model)))

    def options(self, **changes: Any) -> dict[str, Any]:
        return {"data": self.data, "criterion": F.mse_loss, "probes": [checksum], "every": 1} | changes


def records(run: Watch, player: str | None = None) -> list[tuple[int, float | None, float | None]]:
    return [(r.step, r.lr, r.value) for r in run.run.select("checksum", player)]


@contextlib.contextmanager
def counted_products() -> Iterator[list[int]]:
    """The number of vectors in each block that the engine of the products is given."""
    from losscope.landscape.kernels.retained import Retained

    blocks: list[int] = []
    engine = Retained.__call__

    def counting(self: Retained, V: Tensor) -> Tensor:
        blocks.append(V.shape[1])
        return engine(self, V)

    Retained.__call__ = counting  # type: ignore[method-assign]
    try:
        yield blocks
    finally:
        Retained.__call__ = engine  # type: ignore[method-assign]
