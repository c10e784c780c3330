"""The demo: one small network trained twice under watch, by gradient descent and by mini-batch SGD.

The network is 64-50-50-10 with tanh, the data the first 1000 digits of scikit-learn in a seeded order,
scaled to [-1, 1], the loss the mean over samples of half the summed squared error. At learning rate 2/20
full-batch gradient descent sharpens until the top Hessian eigenvalue reaches 2/lr = 20 and hovers there
(Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of stability");
mini-batch SGD at the same rate stays flatter.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from torch import Tensor, nn
from tqdm import tqdm

from losscope.landscape import LosscopeError, RunError
from losscope.probes import Run, Sharpness, Spectrum, Stability, Trace, Watch, watch
from losscope.probes.folder import check_folder
from losscope.probes.phases import phases

from .audit_table import print_audit
from .figure import figure
from .report import report
from .words import times

__all__ = [
    "MissingData", "digits", "fresh_folder", "half_squared_error", "network", "reading", "run_demo", "train_full_batch",
    "train_minibatch", "write_figures",
]  # fmt: skip

RATE = 2 / 20
SAMPLES = 1000
STEPS = 3000
BATCH = 32


class MissingData(LosscopeError):
    """The demo's data needs a package that is not installed."""


def digits(seed: int = 0, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Handwritten digits with one-hot targets.

    Args:
        seed: seeds the order they are taken in.
        samples: how many, at most 1797.

    Returns:
        Inputs (samples, 64) in [-1, 1] and targets (samples, 10), float32.

    Raises:
        MissingData: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingData('the demo trains on scikit-learn\'s digits: pip install "losscope[demo]"') from error
    data = load_digits()
    chosen = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))[:samples]
    x = torch.tensor(data.data, dtype=torch.float32)[chosen] / 8 - 1
    return x, nn.functional.one_hot(torch.tensor(data.target)[chosen], 10).float()


def network(seed: int = 0) -> nn.Sequential:
    """The tanh network 64-50-50-10 with torch's default initialisation under a seed.

    Example:
        >>> from losscope.viz.demo import network
        >>> sum(p.numel() for p in network().parameters())
        6310
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10))


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of half the squared error summed over outputs.

    Example:
        >>> import torch
        >>> from losscope.viz.demo import half_squared_error
        >>> half_squared_error(torch.zeros(4, 2), torch.ones(4, 2))
        tensor(1.)
    """
    return (outputs - targets).square().sum(dim=1).mean() / 2


def train_full_batch(seed: int = 0, steps: int = STEPS, out: str | Path | None = None, *, rate: float = RATE) -> Run:
    """Gradient descent on all samples at once, under watch.

    Args:
        seed: seeds data order and initialisation.
        steps: updates to make.
        out: the run folder; None keeps the run in memory.
        rate: the learning rate.

    Raises:
        MissingData: if scikit-learn is not installed.
        RunError: if ``out`` holds something already.
    """
    x, y = digits(seed)
    return _train(seed, out, rate, x, y, len(x), ((x, y) for _ in range(steps)), _Progress("full batch", steps))


def train_minibatch(
    seed: int = 0, steps: int = STEPS, out: str | Path | None = None, *, rate: float = RATE, batch_size: int = BATCH
) -> Run:
    """Mini-batch SGD in epochs over seeded permutations, under watch.

    Args:
        seed: seeds data order, initialisation and the mini-batches.
        steps: updates to make.
        out: the run folder; None keeps the run in memory.
        rate: the learning rate.
        batch_size: samples in a mini-batch.

    Raises:
        MissingData: if scikit-learn is not installed.
        RunError: if ``out`` holds something already.
    """
    x, y = digits(seed)
    batches = _minibatches(x, y, batch_size, steps, seed)
    return _train(seed, out, rate, x, y, batch_size, batches, _Progress(f"batch {batch_size}", steps))


def _minibatches(x: Tensor, y: Tensor, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole mini-batches only: what is left at the end of an epoch would be one of another size."""
    generator = torch.Generator().manual_seed(seed)
    made = 0
    while True:
        for chosen in torch.randperm(len(x), generator=generator).split(size):
            if made == steps:
                return
            if len(chosen) == size:
                made += 1
                yield x[chosen], y[chosen]


def _train(
    seed: int, out: str | Path | None, rate: float, x: Tensor, y: Tensor, batch_size: int,
    batches: Iterator[tuple[Tensor, Tensor]], progress: _Progress,
) -> Run:  # fmt: skip
    """The training loop, with the lines that watching adds to it."""
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    run: Watch
    with (
        progress,
        watch(
            model, optimizer, data=(x, y), criterion=half_squared_error, out=out, batch_size=batch_size, seed=seed,
            probes=[Sharpness(every=10), Trace(every=100), Stability(every=50), Spectrum(every=250)],
        ) as run,
    ):  # fmt: skip
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = half_squared_error(model(inputs), targets)
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
            progress.step(loss)
    return run.run


class _Progress:
    """A bar on a terminal; elsewhere a line at every tenth, so that a log shows life."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps, self.done = name, steps, 0
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=steps, desc=name, unit="step", disable=not terminal, leave=True)
        self._each = 0 if terminal else max(steps // 10, 1)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def step(self, loss: Tensor) -> None:
        self.done += 1
        if self._each:
            if self.done % self._each == 0:
                print(f"{self.name}: step {self.done} of {self.steps}, loss {loss.item():.4g}", file=sys.stderr)
        elif self.done % 50 == 0 or self.done == self.steps:
            self._bar.set_postfix_str(f"loss {loss.item():.3g}", refresh=False)
            self._bar.update(self.done - self._bar.n)


def fresh_folder(out: Path) -> Path:
    """``out`` if nothing is there, else ``out-2``, ``out-3`` ...

    Example:
        >>> import pathlib, tempfile
        >>> from losscope.viz.demo import fresh_folder
        >>> with tempfile.TemporaryDirectory() as there:
        ...     (pathlib.Path(there) / "demo").mkdir()
        ...     fresh_folder(pathlib.Path(there) / "demo").name
        'demo-2'
    """
    candidate, count = out, 1
    while candidate.exists():
        count += 1
        candidate = out.with_name(f"{out.name}-{count}")
    return candidate


def reading(full: Run, mini: Run) -> str:
    """Two sentences on what the two runs show, from their own numbers."""
    ratios = [(r.step, r.value / t) for r in full.select("sharpness") if r.value and (t := r.values.get("threshold"))]
    mini_ratios = [r.value / t for r in mini.select("sharpness") if r.value and (t := r.values.get("threshold"))]
    if not ratios or not mini_ratios:
        return "The sharpness was measured in one of the runs at most; see the errors recorded in the run folders."
    half = statistics.median([v for _, v in ratios[len(ratios) // 2 :]])
    crossed = next((step for step, v in ratios if v >= 1), None)
    first = f"Full-batch gradient descent started at {ratios[0][1]:.2f} of the threshold 2/lr"
    if crossed is not None:
        first += (
            f", reached it at step {crossed}, and over the last half of the run its sharpness was {half:.3f} of it."
        )
    else:
        first += f" and did not reach it in these steps; over the last half its sharpness was {half:.3f} of it."
    late = statistics.median(mini_ratios[len(mini_ratios) // 2 :])
    second = f"Mini-batch SGD at the same rate had {late:.2f} of 2/lr there"
    if late < half - 0.02:
        second += ": it stays flatter, as small batches do"
    index = mini.audit()["s_mu"].ratio
    if index is not None:
        second += f"; its own criterion, the mini-batch index S_mu, is at {times(index)} of 2/lr"
    return f"{first} {second}."


def run_demo(out: Path | None = None, steps: int = STEPS, seed: int = 0) -> tuple[Run, Run]:
    """Both trainings, their figures, pages and audits; what ``losscope demo`` does.

    Args:
        out: folder for the two run folders; None takes a fresh one under ``runs/``.
        steps: updates of each training.
        seed: seeds data order, initialisation and mini-batches.

    Returns:
        The full-batch and the mini-batch run.

    Raises:
        MissingData: if scikit-learn is not installed.
        RunError: if ``out`` holds something already.
    """
    digits(seed)  # say at once what is missing
    home = fresh_folder(Path("runs") / "demo") if out is None else out
    console = Console(highlight=False)
    trainings = (("full-batch", train_full_batch), ("mini-batch", train_minibatch))
    for name, _ in trainings:
        check_folder(home / name, {}, resume=False)
    runs = [train(seed, steps, home / name) for name, train in trainings]
    for run in runs:
        print_audit(run.audit(), console, title=f"Audit of {home / run.name}", phases=phases(run))
    console.print("", reading(*runs), "", "Written:", sep="\n")
    for run in runs:
        for path in write_figures(run):
            console.print(f"  {path}", soft_wrap=True)
        console.print(f"  {report(run)}", soft_wrap=True)
    return runs[0], runs[1]


def write_figures(run: Run) -> list[Path]:
    """The sharpness figure as PNG and PDF in the run's folder.

    Raises:
        RunError: if the run is in memory.
    """
    if run.path is None:
        raise RunError("this run is in memory: figure(run, 'sharpness').savefig(...) writes where you like")
    drawn = figure(run, "sharpness")
    paths = [run.path / "sharpness.png", run.path / "sharpness.pdf"]
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # fonts as fonts, as journals ask for
        for path in paths:
            drawn.savefig(path, dpi=200)
    return paths
