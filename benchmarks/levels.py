"""What the levels of the stability probe cost in a run that is under way, in gradients of all the data.

    python benchmarks/levels.py [--steps 1000] [--repeats 3] [--only convolutions]

Everything that the run says it spent on measuring is counted: copies of the weights, isolation, records, the midpoint
two steps later. Beside the median over the measurements that renew no upper bound, the mean over all of them.
"""

import argparse
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from losscope.probes import Stability, watch
from losscope.viz.demo import digits, half_squared_error, network

RESULTS = Path(__file__).parent / "results"
EVERY, WARM_UP = 25, 800

RUNS: dict[str, tuple[Callable[[Iterable[nn.Parameter]], Optimizer], int | None]] = {
    "full-batch GD, lr 0.1": (lambda p: SGD(p, lr=0.1), None),
    "SGD, batch 8, lr 0.02": (lambda p: SGD(p, lr=0.02), 8),
    "full-batch Adam, lr 0.001": (lambda p: Adam(p, lr=1e-3), None),
}


def convolutional(seed: int) -> nn.Module:
    """A network whose gradient takes long beside the Python of a measurement: 6,090 parameters."""
    torch.manual_seed(seed)
    first = nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)
    second = nn.Conv2d(16, 32, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *first, *second, nn.Flatten(), nn.Linear(128, 10))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"tanh 64-50-50-10": network, "convolutions": convolutional}


def train(model: nn.Module, optimizer: Optimizer, batch: int | None, steps: int) -> None:
    """By mini-batches drawn with replacement, or full batches."""
    x, y = digits(seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        some = torch.randint(len(x), (batch,), generator=generator) if batch else slice(None)
        optimizer.zero_grad()
        half_squared_error(model(x[some]), y[some]).backward()
        optimizer.step()


def measured(build: Callable[[int], nn.Module], level: str, name: str, steps: int) -> tuple[float, float, float]:
    """Seconds of a warm measurement, those of all on average, and products on average."""
    make, batch = RUNS[name]
    model = build(0)
    optimizer = make(model.parameters())
    train(model, optimizer, batch, WARM_UP)
    x, y = digits(seed=0)
    with watch(
        model, optimizer, data=(x, y), criterion=half_squared_error, probes=[Stability(level=level)], every=EVERY,
        batch_size=batch or len(x),
    ) as live:  # fmt: skip
        train(model, optimizer, batch, steps)
    records = live.run.select("stability")
    later = {r.step - 1: r.seconds for r in live.run.select("midpoint")}
    taken = {r.step: r.seconds + later.get(r.step, 0.0) for r in records}
    whole = live.run.meta["cost"]["seconds_measuring"]
    around = (whole - sum(taken.values())) / len(taken)  # copies, isolation, writing
    warm = statistics.median(taken[r.step] for r in records if r.high is None)
    return warm + around, whole / len(taken), statistics.mean(r.matvecs for r in records)


def gradient(build: Callable[[int], nn.Module]) -> float:
    """Seconds of one gradient of all the data."""
    model, (x, y) = build(0), digits(seed=0)
    parameters, taken = list(model.parameters()), []
    for _ in range(300):
        started = time.perf_counter()
        torch.autograd.grad(half_squared_error(model(x), y), parameters)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def in_gradients(build: Callable[[int], nn.Module], level: str, name: str, steps: int) -> tuple[float, ...]:
    """Seconds of a gradient, before and after, since machines change their pace; the rest in these; the products."""
    before = gradient(build)
    warm, mean, products = measured(build, level, name, steps)
    unit = (before + gradient(build)) / 2
    return unit, warm / unit, mean / unit, products


def main() -> None:
    """Train, watch, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3, help="of each row, of which medians are shown")
    parser.add_argument("--only", default="", help="networks whose name holds this text")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    lines = [
        "| network | a gradient | run | level | gradients, warm | gradients, mean of all | products, mean |",
        "|---|---:|---|---|---:|---:|---:|",
    ]
    for kind, build in NETWORKS.items():
        for name, level in itertools.product(RUNS, ("sharpness", "full")) if arguments.only in kind else ():
            found = [in_gradients(build, level, name, arguments.steps) for _ in range(arguments.repeats)]
            unit, warm, mean, products = map(statistics.median, zip(*found, strict=True))
            lines.append(
                f"| {kind} | {1e3 * unit:.2g} ms | {name} | {level} | {warm:.1f} | {mean:.1f} | {products:.1f} |"
            )
    where = (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    text = f"1000 digits, every {EVERY} steps. {where}.\n\n" + "\n".join(lines) + "\n"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "levels.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
