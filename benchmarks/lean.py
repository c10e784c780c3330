"""Peak memory of a spectral density of 20 million parameters, where Lanczos vectors are not kept.

    python benchmarks/lean.py [--width 4096] [--steps 20] [--kernel retained]

Resident memory above that of the process after its imports, model and data included, in vectors of the size of all
parameters. Run each time in a fresh process; writes nothing.
"""

import argparse
import time

import torch
from measuring import MIB, resident
from torch import nn

from losscope.landscape import Hessian, Objective, spectral_density

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4096, help="of the two hidden layers")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--vectors", type=int, default=2)
    parser.add_argument("--kernel", default="retained", help='"auto" also checks double backward, in float64')
    options = parser.parse_args()

    before, started = resident("VmRSS"), time.perf_counter()
    torch.manual_seed(0)
    w = options.width
    model = nn.Sequential(nn.Linear(784, w), nn.Tanh(), nn.Linear(w, w), nn.Tanh(), nn.Linear(w, 10))
    data = torch.randn(BATCH, 784), torch.randint(10, (BATCH,))
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss())
    found = spectral_density(
        Hessian(objective, kernel=options.kernel), vectors=options.vectors, steps=options.steps, memory=0, seed=0
    )
    peak, vector = resident("VmHWM") - before, 4 * objective.space.size
    print(
        f"{objective.space.size} parameters, batch {BATCH}, {options.vectors} x {options.steps}, {found.kernel}: peak "
        f"{peak / MIB:.0f} MiB, {peak / vector:.2f} vectors of {vector / MIB:.0f} MiB, "
        f"{time.perf_counter() - started:.0f} s\n{found}"
    )


if __name__ == "__main__":
    main()
