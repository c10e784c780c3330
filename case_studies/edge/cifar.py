"""CIFAR-10 from a local folder, as Cohen et al. train on it: nothing is downloaded.

The folder is one of those that https://www.cs.toronto.edu/~kriz/cifar.html offers, unpacked: ``cifar-10-batches-py``
with ``data_batch_1`` to ``data_batch_5``, or ``cifar-10-batches-bin`` with ``data_batch_1.bin`` and so on. Following
github.com/locuslab/edge-of-stability: the first 5000 training images, over 255, each pixel centred and scaled by its
mean and standard deviation over all training images; targets one-hot; half the squared error, averaged over images;
a tanh network 3072-200-200-10 with torch's default initialisation.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD

from digits_training import ratios
from edge.sweep import Trained
from losscope.landscape import DataError
from losscope.probes import Stability, watch
from losscope.viz.demo import half_squared_error

__all__ = ["cifar", "fc_tanh", "trained_on_cifar"]

PIXELS = 3072


def cifar(folder: Path, samples: int = 5000) -> tuple[Tensor, Tensor]:
    """The first training images and their one-hot targets.

    Args:
        folder: with the five batches, as pickles or binary, or one that holds that folder.
        samples: how many.

    Returns:
        Inputs (samples, 3072), standardised over all images that are there, and targets (samples, 10), float32.

    Raises:
        DataError: if there are no batches, or they hold something else or too few images.
    """
    files = sorted(folder.rglob("data_batch_[1-5]")) or sorted(folder.rglob("data_batch_[1-5].bin"))
    if not files:
        raise DataError(f"{folder} has no data_batch_1 ... data_batch_5(.bin): unpack cifar-10-python.tar.gz there")
    images, labels = zip(*map(_read, files), strict=True)
    pixels, classes = np.concatenate(images), np.concatenate(labels)
    if samples > len(pixels):
        raise DataError(f"{folder} holds {len(pixels)} images, fewer than the {samples} asked for")
    total = sum(batch.sum(axis=0, dtype=np.float64) for batch in images) / len(pixels)
    squares = sum(np.square(batch, dtype=np.float64).sum(axis=0) for batch in images) / len(pixels)
    spread = np.sqrt(np.maximum(squares - total**2, 0.0))
    x = (pixels[:samples] - total) / np.where(spread > 0, spread, 1.0)  # the factor 1/255 cancels
    y = nn.functional.one_hot(torch.from_numpy(classes[:samples].astype(np.int64)), 10).float()
    return torch.from_numpy(x.astype(np.float32)), y


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One batch: images (n, 3072) and labels (n,), both bytes."""
    if path.suffix == ".bin":
        rows = np.fromfile(path, dtype=np.uint8)
        if len(rows) == 0 or len(rows) % (PIXELS + 1):
            raise DataError(f"{path} has {len(rows)} bytes, no multiple of {PIXELS + 1}: not a batch of CIFAR-10")
        table = rows.reshape(-1, PIXELS + 1)
        images, labels = table[:, 1:], table[:, 0]
    else:
        try:
            content = _Arrays(io.BytesIO(path.read_bytes()), encoding="bytes").load()
            images, labels = np.asarray(content[b"data"], np.uint8), np.asarray(content[b"labels"], np.uint8)
        except (pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError) as error:
            raise DataError(f"{path} is not a batch of CIFAR-10: {error}") from error
    if images.ndim != 2 or images.shape[1] != PIXELS or len(labels) != len(images) or labels.max(initial=0) > 9:
        raise DataError(f"{path} holds images {images.shape} and labels {labels.shape}; they must be (n, 3072), (n,)")
    return images, labels


class _Arrays(pickle.Unpickler):
    """Reads arrays and plain containers; a pickle that names anything else is refused, since it could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(("numpy", "_codecs")) and name in ("_reconstruct", "ndarray", "dtype", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def fc_tanh(seed: int) -> nn.Sequential:
    """The published network: 3072-200-200-10 with tanh."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(PIXELS, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 10)
        )  # fmt: skip


def trained_on_cifar(job: tuple[Path, int, float, int, int, Path | None]) -> Trained:
    """Gradient descent at the rate whose threshold is ``edge``: folder, samples, edge, seed, steps, run folder."""
    folder, samples, edge, seed, steps, out = job
    x, y = cifar(folder, samples)
    model = fc_tanh(seed)
    optimizer = SGD(model.parameters(), lr=2 / edge)
    with watch(
        model, optimizer, data=(x, y), criterion=half_squared_error, probes=[Stability(level="sharpness")],
        every=max(steps // 200, 1), batch_size=len(x), seed=seed, out=out,
    ) as live:  # fmt: skip
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = half_squared_error(model(x), y)
            loss.backward()
            optimizer.step()
            live.log(loss=loss)
            losses.append(loss.item())
    run = live.run
    return Trained(f"CIFAR-10, GD 2/{edge:g}", seed, ratios(run), losses, run.audit()["sharpness"].verdict)
