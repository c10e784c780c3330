"""What watching costs, in seconds and in gradients, beside PyHessian on the same problem.

    python benchmarks/watching.py [--repeats 7]

One gradient is one forward and backward pass over the same data. Timings are medians of interleaved
repeats in one process. PyHessian is optional (``pip install --no-deps pyhessian``); a peer that is missing
is shown as such. Writes ``benchmarks/results/watching.md``.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from losscope.landscape import Hessian, Objective, top_eigenpairs, trace
from losscope.probes import Sharpness, Stability, Trace, watch
from losscope.viz.demo import digits, half_squared_error, network

RESULTS = Path(__file__).parent / "results"


def trained(steps: int = 500) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """The demo's network after some full-batch steps, and its data."""
    x, y = digits(seed=0)
    model = network(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        half_squared_error(model(x), y).backward()
        optimizer.step()
    return model, x, y


def tasks(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], float | None]]:
    """What is timed; each returns the number it computed, if any."""
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    near = top_eigenpairs(Hessian(Objective(model, (x, y), criterion=half_squared_error)), seed=0).vectors

    def hessian() -> Hessian:
        return Hessian(Objective(model, (x, y), criterion=half_squared_error))

    def gradient() -> None:
        torch.autograd.grad(half_squared_error(model(x), y), parameters)

    def measurement(probes: list) -> Callable[[], float | None]:
        def run() -> float | None:
            with watch(
                model, optimizer, data=(x, y), criterion=half_squared_error, probes=probes, every=[0], batch_size=32
            ) as live:
                started = time.perf_counter()
                record = live.measure_now()[0]
                run.seconds = time.perf_counter() - started
            return record.value

        return run

    made: dict[str, Callable[[], float | None]] = {
        "one gradient": gradient,
        "sharpness, cold": lambda: float(top_eigenpairs(hessian(), seed=1).values[0]),
        "sharpness, warm": lambda: float(top_eigenpairs(hessian(), start=near, seed=1).values[0]),
        "trace to 10 %": lambda: trace(hessian(), rtol=0.1, seed=1).value,
        "watch: Sharpness()": measurement([Sharpness()]),
        "watch: default probes": measurement([Sharpness(), Trace(), Stability()]),
    }
    try:
        import pyhessian
    except ImportError:
        print("PyHessian is not installed: its rows are missing")
        return made

    def peer() -> pyhessian.hessian:
        model.zero_grad()  # it accumulates into .grad otherwise, and doubles its answer
        return pyhessian.hessian(model, half_squared_error, data=(x, y), cuda=False)

    made["PyHessian eigenvalues()"] = lambda: peer().eigenvalues()[0][0]
    made["PyHessian trace()"] = lambda: statistics.mean(peer().trace())
    return made


def main() -> None:
    """Time everything, interleaved, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    timed = tasks(*trained())
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    values: dict[str, float | None] = {}
    for _ in range(repeats + 1):
        for name, task in timed.items():
            started = time.perf_counter()
            values[name] = task()
            taken = time.perf_counter() - started
            seconds[name].append(getattr(task, "seconds", taken))  # a watch is timed from inside
    unit = statistics.median(seconds["one gradient"][1:])
    lines = ["| task | milliseconds | gradients | result |", "|---|---|---|---|"]
    for name, taken in seconds.items():
        median = statistics.median(taken[1:])
        shown = "" if values[name] is None else f"{values[name]:.4g}"
        lines.append(f"| {name} | {1e3 * median:.2f} | {median / unit:.1f} | {shown} |")
    where = (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    text = f"Tanh network 64-50-50-10, 1000 digits, after 500 steps at lr 0.1. {where}; medians of {repeats}.\n\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "watching.md").write_text(text + "\n".join(lines) + "\n")
    print(text + "\n".join(lines))


if __name__ == "__main__":
    main()
