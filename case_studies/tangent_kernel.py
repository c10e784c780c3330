"""The tangent kernel moves early in training, and less the wider the network.

A ReLU network 64-w-w-10 on digits whose inputs are centred, cross-entropy, SGD with batches of 64 and rate 0.2, for 30
epochs. With S the distance 1 - cos(K_0, K_t) of the trace kernel on 128 fixed digits, more than half of the final
distance is there after 3 epochs (Fort et al. 2020, "Deep learning versus kernel learning": most of the motion falls
into the first few epochs), and the final distance falls with the width (Jacot et al. 2018: in the limit the kernel is
constant). Plain and centred distances are both printed; the centred one is larger.

    python case_studies/tangent_kernel.py
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digits_training import minibatches
from losscope.probes import Record, Run, TangentKernel, watch
from losscope.viz.demo import digits

WIDTHS, EPOCHS, EARLY = (32, 128, 512), 30, 3
SAMPLES, BATCH, RATE = 1797, 64, 0.2
STEPS = -(-SAMPLES // BATCH)
"""Updates in an epoch."""


def centred_digits(seed: int) -> tuple[Tensor, Tensor]:
    """All digits in an order that the seed gives, every pixel with mean zero, and class indices."""
    x, y = digits(seed, SAMPLES)
    return x - x.mean(dim=0), y.argmax(dim=1)


def trained(width: int, seed: int, epochs: int = EPOCHS) -> Run:
    """A training with the kernel measured before each epoch and after the last."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    x, y = centred_digits(seed)
    batches = minibatches(x, y, BATCH, seed)
    with watch(
        model, optimizer, data=(x[:128], y[:128]), criterion=F.cross_entropy, probes=[TangentKernel()], every=STEPS,
        batch_size=BATCH,
    ) as live:  # fmt: skip
        for _ in range(epochs * STEPS):
            inputs, targets = next(batches)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        live.measure_now()
    return live.run


def distances(run: Run) -> list[Record]:
    """A record for each epoch, from before the first to after the last."""
    return run.select("tangent_kernel")


def check(finals: dict[int, float], shares: dict[int, float]) -> None:
    """Whether half of the motion is early at every width, and the final distance falls with the width.

    Raises:
        AssertionError: if not; it shows the numbers.
    """
    assert all(share > 0.5 for share in shares.values()), shares
    ordered = [finals[width] for width in sorted(finals)]
    assert ordered == sorted(ordered, reverse=True), finals


def main() -> None:
    """Train, print the distances, check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    options = parser.parse_args()
    for seed in range(options.seeds):
        finals, shares = {}, {}
        for width in WIDTHS:
            records = distances(trained(width, seed))
            early, last = records[EARLY], records[-1]
            finals[width], shares[width] = last.value or 0.0, (early.value or 0.0) / (last.value or 1.0)
            centred = (early.values["centred"] or 0.0) / (last.values["centred"] or 1.0)
            print(
                f"seed {seed}, width {width:4}: S(K_0, K_{EPOCHS}) {finals[width]:.3f} "
                f"(centred {last.values['centred']:.3f}); "
                f"after {EARLY} epochs {shares[width]:.0%} of it (centred {centred:.0%}); "
                f"alignment with the labels {records[0].values['alignment']:.2f} to {last.values['alignment']:.2f}"
            )
        check(finals, shares)


if __name__ == "__main__":
    main()
