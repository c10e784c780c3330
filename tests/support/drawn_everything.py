"""Made-up runs in which every probe has left records, ordinary ones and ones that go wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from drawn_runs import meta
from drawn_spectra import recorded, scaled, spiked
from losscope.landscape import SpectralDensity
from losscope.probes import Record, Run

PROBES = (
    "sharpness", "stability", "oscillation", "spectrum", "neural_collapse", "tangent_kernel", "gradient_noise",
    "trajectory", "layer_traces", "log",
)  # fmt: skip
"""All that a figure draws, in the order in which `everything` writes them."""

SETTINGS = frozenset({
    "threshold", "threshold_largest", "threshold_small_batch", "two_over_lr", "one_over_lr", "batch_size", "draw_size",
    "conclusive", "curvature_conclusive", "size", "since", "start", "dimension", "confidence", "outliers",
    "outliers_low", "outliers_high", "flips", "pairs", "clip", "converged", "steps", "density_matvecs",
})  # fmt: skip
"""Numbers that are not measured, which a run that goes wrong still has."""

Change = Callable[[int, float], float]
"""What becomes of a measured number, by the index of its measurement."""


def everything(
    steps: Sequence[int], change: Change = lambda index, number: number, *, failed: Sequence[int] = (),
    broken: Sequence[int] = (), player: str = "model",
) -> Run:  # fmt: skip
    """A run in which every probe measured at these steps.

    Args:
        steps: when.
        change: what becomes of every measured number.
        failed: indices at which every probe raised.
        broken: indices at which nothing was finite.
        player: whose.
    """
    records: list[Record] = []
    arrays: dict[str, np.ndarray] = {}
    since: int | None = None
    wrong = {**dict.fromkeys(failed, ("error", "RuntimeError: out of memory")),
             **dict.fromkeys(broken, ("nonfinite", "the loss is nan"))}  # fmt: skip
    for index, step in enumerate(steps):
        if index in wrong:
            status, reason = wrong[index]
            records += [Record(step, player, p, status=status, reason=reason) for p in PROBES if p != "log"]
            continue
        made, some = _measured(step, index, len(steps), player, since)
        since = step
        arrays |= some
        records += [changed(record, index, change) for record in made]
    return Run.from_records(meta(**{player: {"outputs": 1, "batch_size": 16}}), records, arrays)


def changed(record: Record, index: int, change: Change) -> Record:
    """The same record with its measured numbers changed."""

    def of(number: float | None) -> float | None:
        return None if number is None else change(index, number)

    values = {name: number if name in SETTINGS else of(number) for name, number in record.values.items()}
    return replace(record, value=of(record.value), low=of(record.low), high=of(record.high), values=values)


def _measured(
    step: int, index: int, of: int, player: str, since: int | None
) -> tuple[list[Record], dict[str, np.ndarray]]:
    u = index / max(of - 1, 1)
    wobble = 0.03 * math.sin(7.3 * index) + 0.02 * math.cos(2.9 * index)
    made = [Record(step, player, probe, lr=0.1, **fields) for probe, fields in _simple(u, wobble, index, of) if fields]
    density, weights = _density(round(8 * u)), _weights(u, index)
    spectrum, arrays = recorded(8 * round(8 * u), density, player=player)  # few different ones, since they are large
    made.append(replace(spectrum, step=step))
    path = f"arrays/{player}-trajectory-{index}-weights.npy"
    arrays[path] = weights
    before = _weights((index - 1) / max(of - 1, 1), index - 1)
    start = _weights(0.0, 0)
    distance = float(np.linalg.norm(weights - start))
    length = 5.2 * u + 1.4 * (1 - math.exp(-2 * u))
    values: dict[str, float | None] = {"size": 40.0, "dimension": 40.0, "start": 0.0}
    values |= {"path_length": length, "path_length_low": 0.97 * length, "path_length_high": 1.03 * length}
    if since is not None:
        cosine = 0.6 * math.cos(5 * u) + wobble
        values |= {"since": float(since), "displacement": float(np.linalg.norm(weights - before))}
        values |= {"cosine": cosine, "cosine_low": cosine - 0.08, "cosine_high": cosine + 0.08} if index > 1 else {}
    made.append(
        Record(step, player, "trajectory", value=distance, low=0.97 * distance, high=1.03 * distance, values=values,
               arrays={"weights": path})
    )  # fmt: skip
    return made, arrays


def _simple(u: float, wobble: float, index: int, of: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Fields of the records that have no arrays."""
    climb = 1 - math.exp(-4 * u)
    sharpness = 4 + 16.2 * climb + 5 * wobble * climb
    loss = 0.45 * math.exp(-3 * u) * (1 + wobble)
    high = 1.08 * sharpness if index % 5 == 0 else None
    common = {"threshold": 20.0, "threshold_largest": 20.0, "loss": loss, "gradient_norm": 0.5}
    yield "sharpness", {"value": sharpness, "low": sharpness, "high": high, "values": dict(common)}
    criteria = {
        "sharpness": sharpness, "trace": 2.2 * sharpness, "aligned_trace": 5 + 3 * climb, "frobenius": 3 + 2 * climb,
        "s_mu": 6 + 4 * climb, "mean_square": 9 + 6 * climb, "batch_sharpness": 8 + 12 * climb + 8 * wobble,
        "batch_sharpness_ratio": 8 + 9 * climb, "interaction_aware": 3 + 8 * climb, "noise_interaction": 2 + 9 * climb,
    }  # fmt: skip
    values = common | {"two_over_lr": 20.0, "one_over_lr": 10.0, "threshold_small_batch": 12.0}
    for name, value in criteria.items():
        values |= {name: value, f"{name}_low": 0.92 * value, f"{name}_high": 1.08 * value}
    yield "stability", {"value": sharpness / 20, "low": sharpness / 20, "high": high and high / 20, "values": values}
    yield "oscillation", {"values": {"flips": 6.0, "pairs": 6.0}}
    fall = math.exp(-5 * u)
    yield "neural_collapse", {"value": 2 * fall, "values": {
        "nc1": 2 * fall * (1 + wobble), "nc1_quotient": 1.2 * fall, "cdnv": 0.5 * fall, "equinorm": 0.3 * fall + 0.02,
        "equiangularity": 0.25 * fall + 0.03, "equinorm_classifier": 0.2 * fall + 0.04,
        "equiangularity_classifier": 0.15 * fall + 0.05, "gnc2_variance": 0.4 * fall, "nc3": 0.9 * fall + 0.01,
        "nc4": 0.3 * fall, "nearest_mean_error": 0.32 * fall + 0.01, "block1/nc1": 5 * math.exp(-u) * (1 + wobble),
        "block2/nc1": 3.4 * math.exp(-2 * u),
    }}  # fmt: skip
    yield "tangent_kernel", {"value": 0.3 * climb, "values": {
        "centred": 0.55 * climb, "alignment": 0.35 + 0.3 * climb,
        "velocity": 3e-3 * math.exp(-4 * u) * (1 + wobble) if index else None,
        "velocity_centred": 7e-3 * math.exp(-3.5 * u) if index else None,
    }}  # fmt: skip
    yield "gradient_noise", _noise(u, wobble, index)
    sizes = {
        "embed": 30 * climb,
        "blocks.0.attention": 12 * fall + 1,
        "blocks.0.mlp": 5 + wobble,
        "head": 9 * climb,
    }
    yield "layer_traces", {"values": {
        f"{name}/{end}": size * factor for name, size in sizes.items()
        for end, factor in (("trace", 1.0), ("trace_low", 0.8), ("trace_high", 1.2))
    }}  # fmt: skip
    yield "log", {"values": {"loss": loss * (1 + wobble)}}


def _noise(u: float, wobble: float, index: int) -> dict[str, Any]:
    conclusive = index % 9 != 7
    scale, square = 30 * math.exp(4 * u) * (1 + 3 * wobble), 0.4 * math.exp(-4 * u)
    norms = {f"norm_{q:02d}": math.exp(-2 * u) * f for q, f in ((5, 0.3), (25, 0.7), (50, 1.0), (75, 1.6), (95, 4.0))}
    return {
        "value": scale if conclusive else None, "low": 0.6 * scale, "high": 1.9 * scale if conclusive else None,
        "values": norms | {
            "conclusive": float(conclusive), "batch_size": 64.0, "curvature_weighted": 0.5 * scale,
            "curvature_weighted_low": 0.3 * scale, "curvature_weighted_high": 1.1 * scale, "curvature_conclusive": 1.0,
            "covariance_trace": 12 * math.exp(-u), "covariance_trace_low": 9 * math.exp(-u),
            "covariance_trace_high": 15 * math.exp(-u), "gradient_square": square if conclusive else -0.01,
            "gradient_square_low": 0.5 * square if conclusive else -0.1, "gradient_square_high": 1.5 * square,
            "draw_size": 1.0, "clip": 1.5,
        },
    }  # fmt: skip


@cache
def _density(grown: int) -> SpectralDensity:
    """Three outliers that grow out of a bulk."""
    return spiked([2 + 2.2 * grown, 1.5 + 1.1 * grown, 1.2 + 0.4 * grown], width=1 / (1 + 0.1 * grown))


def _weights(u: float, index: int) -> np.ndarray:
    """A spiral that closes in, among 40 parameters."""
    place = np.zeros(40)
    place[:3] = 4 * u, math.exp(-2 * u) * math.cos(6 * u), math.exp(-2 * u) * math.sin(6 * u)
    place[3 + index % 37] = 0.02
    return place


def with_density(run: Run, factor: float) -> Run:
    """The run with its spectra those of the matrix times a number."""
    arrays = dict(run._arrays)
    for record in run.select("spectrum"):
        grown = scaled(run.spectrum(record.step), factor)
        _, some = recorded(record.step, grown)
        arrays |= dict(zip(record.arrays.values(), some.values(), strict=True))
    return Run.from_records(run.meta, run.records, arrays)
