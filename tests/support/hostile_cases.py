"""Runs and results that are empty, broken, huge or long, to draw every figure of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

import drawn_results as made
from drawn_everything import PROBES, everything
from drawn_planes import axes, bowl, plane_of, steep
from drawn_spectra import atom, scaled, spiked
from losscope.landscape import spectral_density
from losscope.landscape.surface import weight_trajectory
from losscope.probes import Record, Run

__all__ = ["RESULTS", "RUNS", "long_run"]

NAN, INF = math.nan, math.inf
STEPS = range(0, 400, 10)
SOME = ("ordinary", "empty", "all failed", "diverging", "one value beyond")
"""Of the runs, for figures that are made of others."""


def _diverging(index: int, number: float) -> float:
    return number * 10.0 ** max(index - 10, 0) if index < 30 else (NAN, INF, -INF)[index % 3]


def _one_beyond(index: int, number: float) -> float:
    return 1e300 if index == 20 else number


def _settings(number: float | None) -> Run:
    """An ordinary run whose thresholds are not."""
    run = everything(STEPS)
    records = []
    for record in run.records:
        odd = {name: number for name in record.values if "threshold" in name or "over_lr" in name}
        records.append(dataclasses.replace(record, values=record.values | odd))
    return Run.from_records(run.meta, records, run._arrays)


RUNS: dict[str, Callable[[], Run]] = {
    "ordinary": lambda: everything(STEPS),
    "empty": lambda: Run.from_records({"players": {}}, []),
    "one late record": lambda: everything([10**7]),
    "one of many left": lambda: everything(STEPS, failed=range(1, 20), broken=range(20, 40)),
    "all failed": lambda: everything(STEPS, failed=range(40)),
    "nothing finite": lambda: everything(STEPS, lambda index, number: (NAN, INF, -INF)[index % 3]),
    "diverging": lambda: everything(STEPS, _diverging),
    "one value beyond": lambda: everything(STEPS, _one_beyond),
    "huge": lambda: everything(STEPS, lambda index, number: 1e300 * number),
    "tiny": lambda: everything(STEPS, lambda index, number: 1e-300 * number),
    "negative": lambda: everything(STEPS, lambda index, number: -number),
    "all equal": lambda: everything(STEPS, lambda index, number: 3.0),
    "every other one": lambda: everything(STEPS, lambda index, number: number if index % 2 else NAN),
    "no thresholds": lambda: _settings(None),
    "huge thresholds": lambda: _settings(1e300),
    "hostile name": lambda: everything(STEPS, player=r"$\frac{<script>} " + "שלום 🙂 " * 30),
}
"""By what is odd about them."""

NEEDS = {
    "sharpness": ("sharpness", "log"),
    "stability": ("stability", "oscillation"),
    "spectrum": ("spectrum",),
    "spectrum_over_time": ("spectrum",),
    "outliers": ("spectrum",),
    "collapse": ("neural_collapse",),
    "tangent_kernel": ("tangent_kernel",),
    "gradient_noise": ("gradient_noise",),
    "trajectory": ("trajectory",),
    "layers": ("layer_traces",),
}
"""The probes that a figure draws, for a run that is long; of others all."""


def long_run(name: str, count: int = 100_000) -> Run:
    """So many records in all, of the probes that a figure draws, noisy and with a peak in the middle."""
    return _long_run(NEEDS.get(name, PROBES), count)


@lru_cache(maxsize=1)
def _long_run(wanted: tuple[str, ...], count: int) -> Run:
    base = everything(range(0, 2000, 10))
    rng, records = np.random.default_rng(0), []
    count //= len(wanted)
    for probe in wanted:
        some = base.select(probe)
        noise = np.exp(0.3 * rng.standard_normal(count))
        noise[count // 2] = 50.0
        for step in range(count):
            record = some[step * len(some) // count]
            value = None if record.value is None else record.value * noise[step]
            values = record.values | ({"since": step - 1.0} if probe == "trajectory" and step else {})
            if probe in ("log", "neural_collapse"):
                values = {key: None if v is None else v * noise[step] for key, v in values.items()}
            low = None if record.low is None or value is None else 0.97 * value
            high = None if record.high is None or value is None else 1.05 * value
            records.append(
                Record(step, "model", probe, lr=0.1, value=value, low=low, high=high, values=values,
                       arrays=record.arrays)
            )  # fmt: skip
    return Run.from_records(base.meta, records, base._arrays)


def _constant(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.full_like(x, value)


def _odd_values(zero: float = 0.2) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    return {
        "NaN": _constant(NAN), "infinite": _constant(INF), "zero": _constant(0.0), "all equal": _constant(3.0),
        "huge": lambda x: 1e300 * (1 + x**2), "tiny": lambda x: 1e-300 * (1 + x**2), "negative": lambda x: -1 - x**2,
        "wide": lambda x: torch.exp(300 * (x.abs() - 0.5)), "one value beyond": lambda x: 1 + 1e300 * (x == x.max()),
        "one finite": lambda x: torch.where(x == x.min(), 1.0, NAN).double(),
        "holes": lambda x: torch.where((5 * x).floor() % 2 == 0, x**2, NAN).double(),
    }  # fmt: skip


def _neighbourhoods() -> dict[str, Callable[[], Any]]:
    radii = [1e-4, 1e-3, 1e-2, 1e-1]
    return {
        "one": lambda: made.rising([0.01]),
        "average": lambda: made.rising(radii).average,
        "NaN": lambda: made.neighbourhood_of(radii, [NAN] * 4, [NAN] * 4, NAN),
        "diverging": lambda: made.neighbourhood_of(radii, [1e-3, 1.0, 1e300, NAN], [1e-2, 1e10, INF, NAN]),
        "huge": lambda: made.neighbourhood_of(radii, [1e300] * 4, [1e300] * 4, 1e300),
        "tiny": lambda: made.neighbourhood_of(radii, [1e-300] * 4, [1e-300] * 4, 1e-300),
        "negative": lambda: made.neighbourhood_of(radii, [-1.0] * 4, [-1.0] * 4, -3.0),
        "zero": lambda: made.neighbourhood_of(radii, [0.0] * 4, [0.0] * 4, 0.0),
        "all equal": lambda: made.neighbourhood_of(radii, [0.5] * 4, [0.5] * 4, 1.0),
        "long": lambda: made.rising(np.geomspace(1e-5, 1, 100_000).tolist()),
    }


def _layers(change: Callable[[float], float]) -> Callable[[], Any]:
    def make() -> Any:
        found = {}
        for name, each in made.layers().items():
            numbers = {k: change(v) for k, v in vars(each).items() if isinstance(v, float)}
            found[name] = dataclasses.replace(each, **numbers)
        return found

    return make


def _walks() -> dict[str, Callable[[], Any]]:
    def of(points: torch.Tensor) -> Callable[[], Any]:
        return lambda: weight_trajectory(points.double(), steps=range(len(points)))

    line = torch.linspace(0, 1, 20)[:, None] * torch.ones(1, 5)
    return {
        "one point": of(torch.ones(1, 5)), "two points": of(torch.eye(2, 5)), "all equal": of(torch.ones(20, 5)),
        "one direction": of(line), "huge": of(1e100 * line.double()), "tiny": of(1e-100 * line.double()),
        "one parameter": of(torch.linspace(0, 1, 20)[:, None]), "sketched": lambda: made.walk(dimension=40),
    }  # fmt: skip


RESULTS: dict[str, dict[str, Callable[[], Any]]] = {
    "plot_overlay": {
        **{odd: RUNS[odd] for odd in SOME},
        "several": lambda: [make() for make in RUNS.values()],
        "long": lambda: [long_run("sharpness", 30_000) for _ in range(3)],
    },
    "plot_multiples": {
        **{odd: RUNS[odd] for odd in SOME},
        "several": lambda: [RUNS[odd]() for odd in SOME],
    },
    "plot_line": {
        **{name: lambda loss=loss: made.line_of(loss) for name, loss in _odd_values().items()},
        "one point": lambda: made.line_of(made.valley, torch.zeros(1, dtype=torch.float64)),
        "two points": lambda: made.line_of(made.valley, torch.tensor([0.0, 1.0], dtype=torch.float64)),
        "several": lambda: [made.line_of(loss, name=name) for name, loss in _odd_values().items()],
        "model of zero radius": lambda: made.line_of(made.valley, model=made.valley_model(0.0)),
        "hostile name": lambda: {r"$\frac{<script>} " + "x" * 200: made.line_of(made.valley, name="$x_{" * 50)},
        "long": lambda: made.line_of(made.valley, made.even(-1, 1, 100_000), model=made.valley_model()),
    },
    "plot_path": {
        **{name: lambda loss=loss: made.path_of(loss) for name, loss in _odd_values().items()},
        "two points": lambda: made.path_of(made.valley, torch.tensor([0.0, 1.0], dtype=torch.float64)),
        "several": lambda: [made.path_of(loss) for loss in _odd_values().values()],
        "long": lambda: made.path_of(made.valley, made.even(0, 1, 100_000)),
    },
    "plot_surface": {
        **{
            name: lambda loss=loss: plane_of(lambda c: loss(c[0] + c[1] ** 2), radius=0.3)
            for name, loss in _odd_values().items()
        },
        "steep": lambda: plane_of(steep, radius=0.5),
        "four points": lambda: plane_of(bowl, made.even(0, 1, 2), made.even(0, 1, 2)),
        "refined": lambda: plane_of(bowl, refined=2000),
        "skewed": lambda: plane_of(bowl, along=axes(1.0, 300.0, 0.9), radius=0.3),
        "no length": lambda: plane_of(bowl, along=axes(0.0, 0.0)),
        "trajectory of NaN": lambda: plane_of(bowl, trajectory=torch.full((5, 2), NAN).double()),
        "long": lambda: plane_of(
            bowl, made.even(-1, 1, 317), made.even(-1, 1, 317),
            trajectory=torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0)).double().cumsum(0) / 300,
        ),
    },
    "plot_spectrum": {
        "one eigenvalue": lambda: spectral_density(torch.eye(1, dtype=torch.float64), seed=0),
        "all equal": lambda: spectral_density(torch.eye(50, dtype=torch.float64), seed=0),
        "zero": lambda: spectral_density(torch.zeros(50, 50, dtype=torch.float64), seed=0),
        "huge": lambda: scaled(spiked([3.0]), 1e300), "tiny": lambda: scaled(spiked([3.0]), 1e-300),
        "negative": lambda: scaled(spiked([3.0]), -1.0), "wide": lambda: atom(at=1e12),
        "long": lambda: spectral_density(torch.linspace(0, 1, 1000).double().diag(), vectors=20, steps=300, seed=0),
    },
    "plot_collapse": {
        "ordinary": made.layers, "one": lambda: dict(list(made.layers().items())[:1]), "none": dict,
        "NaN": _layers(lambda v: NAN), "infinite": _layers(lambda v: INF), "zero": _layers(lambda v: 0.0),
        "huge": _layers(lambda v: 1e300 * v), "negative": _layers(lambda v: -v), "tiny": _layers(lambda v: 1e-300 * v),
        "many": lambda: {f"layer {i} " + "x" * 40: each for i, each in enumerate([*made.layers().values()] * 20)},
    },
    "plot_trajectory": _walks(),
    "plot_neighbourhood": _neighbourhoods(),
    "plot_class_structure": {
        "two classes": lambda: made.classes_of(2), "many": lambda: made.classes_of(60),
        "huge": lambda: made.classes_of(5, 1e150), "tiny": lambda: made.classes_of(5, 1e-150),
        "zero": lambda: made.classes_of(5, 0.0), "NaN": lambda: made.classes_of(5, NAN),
    },
}  # fmt: skip
"""Results by the function that draws them."""
