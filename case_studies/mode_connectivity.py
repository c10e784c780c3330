"""Minima that a barrier divides on the straight line are connected: by numbering units alike, or by a bend.

ReLU networks 64-w-w-10, trained on 1000 digits by SGD with momentum. Two that start from the same weights and see the
data in another order have no barrier between them (Frankle et al. 2020, arXiv 1912.05671), two that start from their
own weights have a high one. Most of it is the numbering of their hidden units: with those of the second permuted to
match the first (Ainsworth et al. 2023, arXiv 2209.04836) at most a quarter is left. And a Bezier curve with a single
trained control point stays as low as its ends all the way (Garipov et al. 2018, arXiv 1802.10026; Draxler et al. 2018,
arXiv 1803.00885).

    python case_studies/mode_connectivity.py
    python case_studies/mode_connectivity.py --seeds 1 --out runs/connected
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from digits_training import minibatches
from losscope.landscape import Objective, align, bezier_path, linear_path
from losscope.landscape.surface import LossPath
from losscope.viz import plot_path
from losscope.viz.demo import digits

WIDTHS, SAMPLES, BATCH, RATE, EPOCHS = (64, 256), 1000, 64, 0.05, 30
CURVE_EPOCHS = 250
FORKED, APART, ALIGNED, BENT = 0.02, 0.1, 0.25, 0.02
"""At most between forks, at least between independent runs, the share left by alignment, above the worse end."""
HEADER = f"{'width':>5} seed {'same start':>15} {'independent':>15} {'aligned':>15} {'Bezier':>15} above worse end"


def data(seed: int) -> tuple[Tensor, Tensor]:
    """The first digits in an order that the seed gives, and class indices."""
    x, one_hot = digits(seed, SAMPLES)
    return x, one_hot.argmax(dim=1)


def network(width: int, seed: int) -> nn.Sequential:
    """Two hidden layers with ReLU."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )  # fmt: skip


def trained(width: int, x: Tensor, y: Tensor, *, start: int, order: int) -> nn.Sequential:
    """A network from the weights of one seed, on mini-batches in the order of another."""
    model = network(width, start)
    optimizer = SGD(model.parameters(), lr=RATE, momentum=0.9)
    batches = minibatches(x, y, BATCH, order)
    for _ in range(EPOCHS * -(-SAMPLES // BATCH)):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model


def connected(width: int, seed: int, curve_epochs: int = CURVE_EPOCHS) -> dict[str, LossPath]:
    """The four paths: to a fork, to an independent run, to that run aligned, and to it as it is, but bent."""
    x, y = data(seed)
    first = trained(width, x, y, start=seed, order=seed)
    fork = trained(width, x, y, start=seed, order=1000 + seed)
    other = trained(width, x, y, start=2000 + seed, order=2000 + seed)
    objective = Objective(first, (x, y), criterion=nn.CrossEntropyLoss())
    aligned = align(objective, first, other, seed=seed)
    return {
        "same start": linear_path(objective, first, fork, metrics="accuracy"),
        "independent": linear_path(objective, first, other, metrics="accuracy"),
        "aligned": linear_path(objective, first, aligned.vector, metrics="accuracy"),
        "Bezier": bezier_path(objective, first, other, epochs=curve_epochs, metrics="accuracy", seed=seed),
    }


def check(paths: Mapping[str, LossPath]) -> None:
    """Whether the barriers are as said above.

    Raises:
        AssertionError: if not; it shows the path.
    """
    same, independent, aligned, bent = (paths[name] for name in ("same start", "independent", "aligned", "Bezier"))
    assert same.barrier < FORKED, same
    assert independent.barrier > APART, independent
    assert aligned.barrier <= ALIGNED * independent.barrier, (aligned, independent)
    assert bent.above_worse_end < BENT, bent


def row(width: int, seed: int, paths: Mapping[str, LossPath]) -> str:
    """One line of the table, under `HEADER`."""
    barriers = " ".join(f"{path.barrier:8.4f} ({100 * path.barriers['accuracy']:4.1f})" for path in paths.values())
    return f"{width:5} {seed:4} {barriers} {paths['Bezier'].above_worse_end:16.4f}"


def draw(paths: Mapping[str, LossPath], file: Path) -> None:
    """The losses and accuracies along all of them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ends = {name: dataclasses.replace(path, ends=("one network", "the other")) for name, path in paths.items()}
    plot_path(ends)[0].get_figure(root=True).savefig(file, dpi=150, bbox_inches="tight")


def main() -> None:
    """Train, connect, print the table, check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--out", type=Path, help="folder for figures; by default none are drawn")
    options = parser.parse_args()
    print("barrier of the training loss (in points of training accuracy)")
    print(HEADER)
    for width in WIDTHS:
        for seed in range(options.seeds):
            paths = connected(width, seed)
            print(row(width, seed, paths), flush=True)
            if options.out is not None:
                draw(paths, options.out / f"width-{width}-seed-{seed}.png")
            check(paths)


if __name__ == "__main__":
    main()
