"""Any recorded number of a run over its steps, by name: what overlays and small multiples draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from losscope.probes import Record, Run
from losscope.probes.catalogue import CATALOGUE, tex_of

from . import series
from .series import Series, Unmeasured

__all__ = ["Quantity", "quantity", "recorded"]

CURVATURE = r"[loss / parameter$^2$]"
LABELS = {
    "sharpness": rf"sharpness $\lambda_{{\max}}(H)$ {CURVATURE}",
    "stability": "sharpness / threshold of the optimizer",
    "trace": rf"trace $\mathrm{{tr}}(H)$ {CURVATURE}",
    "loss": "loss",
    "nc1": "NC1, variation within classes / between",
    "tangent_kernel": "distance of the tangent kernel from the first",
    "gradient_noise": r"noise scale $\mathrm{tr}(\Sigma)/|G|^2$ [samples]",
    "gradient_norm": r"gradient norm $|g|$ [loss / parameter]",
}
UNITS = {"curvature": CURVATURE, "threshold": "[threshold]", "ratio": ""}
RATIO = "/threshold"
SEEN = r"of $P^{-1}H$"
"""The curvature as a preconditioner shows it, which probe ``stability`` measures of Adam and its like."""
OWN_THRESHOLD = {entry.name for entry in CATALOGUE.values() if entry.threshold == "threshold"}
"""Criteria that are in the unit of the optimizer's own threshold."""


@dataclass(frozen=True, eq=False)
class Quantity:
    """One number of a run over its steps.

    Attributes:
        name: by which it was asked for.
        label: for an axis, with its unit.
        data: steps, values, bounds and threshold.
        missing: where it could not be measured.
        from_below: whether a value without an upper bound is a lower bound.
        of: what it is of, where that is not what its label says.
        ratio: whether it is over its threshold already, which is 1 then.
    """

    name: str
    label: str
    data: Series
    missing: Unmeasured
    from_below: bool = False
    of: str = ""
    ratio: bool = False

    def __bool__(self) -> bool:
        """Whether there is a finite number to draw."""
        return bool(np.isfinite(self.data.value).any())


def quantity(run: Run, name: str, player: str | None = None) -> Quantity:
    """Find a number by name; empty where the run has none of that name.

    Args:
        run: the run.
        name: ``"sharpness"``, ``"loss"``; a criterion of the audit over its threshold, ``"trace/threshold"``; a probe
            for its main number, ``"trace"``; what was logged, ``"accuracy"``; a number among the values of a probe,
            ``"nc1"``, or ``"stability.trace"`` where several probes have one of that name.
        player: one player; default: the first.

    Raises:
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz.quantities import quantity
        >>> records = [Record(0, "model", "trace", value=3.0, low=2.0, high=4.0)]
        >>> run = Run.from_records({"players": {"model": {}}}, records)
        >>> found = quantity(run, "trace")
        >>> float(found.data.value[0]), float(found.data.low[0]), bool(quantity(run, "nc1"))
        (3.0, 2.0, False)
    """
    if name == "sharpness":
        probe = "sharpness" if run.select("sharpness", player, ok=False) else "stability"
        missing = series.unmeasured(run, probe, player, value=None if probe == "sharpness" else "sharpness")
        seen = probe == "stability" and bool(series.facts(run, player).get("preconditioned"))
        return Quantity(name, LABELS[name], series.sharpness(run, player), missing, True, SEEN if seen else "")
    if name == "loss":
        steps, values, what = series.loss(run, player)
        return Quantity(name, what, _curve(steps, values), _lost(steps, values))
    criterion = name.removesuffix(RATIO)
    if name.endswith(RATIO) and criterion in CATALOGUE:
        seen = bool(series.facts(run, player).get("preconditioned"))
        label = rf"{tex_of(criterion, preconditioned=seen)} / threshold"
        data = _unit_threshold(series.ratios(run, criterion, player))
        below = criterion == "sharpness"
        missing = series.unmeasured(run, "stability", player, value=criterion)
        return Quantity(name, label, data, missing, below, ratio=True)
    return _of_a_probe(run, name, player) or _of_the_log(run, name, player) or _among_values(run, name, player)


def recorded(run: Run, player: str | None = None) -> list[str]:
    """Names of the numbers that a run has finite values of, the best known first.

    Raises:
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz.quantities import recorded
        >>> records = [Record(0, "model", "sharpness", value=3.0), Record(0, "model", "log", values={"accuracy": 0.5})]
        >>> recorded(Run.from_records({"players": {"model": {}}}, records))
        ['sharpness', 'accuracy']
    """
    names = ["sharpness", *(f"{criterion}{RATIO}" for criterion in CATALOGUE), *run.probes, "loss"]
    names += dict.fromkeys(key for record in run.select("log", player) for key in record.values)
    for probe in run.probes:
        names += dict.fromkeys(key for record in run.select(probe, player) for key in record.values)
    ends = tuple(f"{name}{end}" for name in names for end in ("_low", "_high"))
    kept = [name for name in dict.fromkeys(names) if name not in ends]
    return [name for name in kept if quantity(run, name, player)]


def _of_a_probe(run: Run, name: str, player: str | None) -> Quantity | None:
    """A probe's main number; the trace also of the audit's records."""
    records = run.select(name, player, ok=False)
    if not records and name == "trace" and run.select("stability", player):
        return _number(run, "stability", "trace", name, player)
    if name == "log" or not any(r.value is not None or r.status != "ok" for r in records):
        return None
    kept = [r for r in records if r.status == "ok"]
    unit = next((r.unit for r in kept if r.unit), "")
    ratio = unit == "threshold"
    data = _series(kept, [(r.value, r.low, r.high) for r in kept], None if ratio else "threshold")
    data = _unit_threshold(data) if ratio else data
    below = unit in ("curvature", "threshold") and name != "trace"
    return Quantity(name, _label(name, unit), data, series.unmeasured(run, name, player), below, ratio=ratio)


def _of_the_log(run: Run, name: str, player: str | None) -> Quantity | None:
    steps, values = run.logged(name, player)
    if not len(steps):
        return None
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    return Quantity(name, _label(name), _curve(steps, values), _lost(steps, values))


def _among_values(run: Run, name: str, player: str | None) -> Quantity:
    """A number in the values of the first probe that has one of that name, or of the one before the dot."""
    probe, _, key = name.partition(".")
    if key and probe in run.probes:
        return _number(run, probe, key, name, player)
    for probe in run.probes:
        if any(name in r.values for r in run.select(probe, player)):
            return _number(run, probe, name, name, player)
    return Quantity(name, _label(name), _series([], [], None), Unmeasured((), ()))


def _number(run: Run, probe: str, key: str, name: str, player: str | None) -> Quantity:
    kept = [r for r in run.select(probe, player) if key in r.values]
    numbers = [tuple(r.values.get(f"{key}{end}") for end in ("", "_low", "_high")) for r in kept]
    threshold = "threshold" if key in OWN_THRESHOLD else None
    data = _series(kept, numbers, threshold)
    seen = probe == "stability" and bool(series.facts(run, player).get("preconditioned"))
    label = _label(key, seen=seen)
    return Quantity(name, label, data, series.unmeasured(run, probe, player, value=key), key == "sharpness")


def _label(name: str, unit: str = "", *, seen: bool = False) -> str:
    if name in LABELS:
        return LABELS[name]
    if name.endswith("/trace"):
        return rf"$\mathrm{{tr}}(H_{{\ell\ell}})$ {CURVATURE}"  # of a layer, by probe layer_traces
    words = tex_of(name, preconditioned=seen) if name in CATALOGUE else name.replace("_", " ").replace("$", r"\$")
    return f"{words} {UNITS.get(unit, f'[{unit}]' if unit else '')}".strip()


def _curve(steps: np.ndarray, values: np.ndarray) -> Series:
    nothing = np.full(len(steps), np.nan)
    return Series(steps, series.drawable(values), nothing, nothing, nothing, nothing)


def _lost(steps: np.ndarray, values: np.ndarray) -> Unmeasured:
    beyond = np.isfinite(values) & (np.abs(values) > series.LARGEST)
    return Unmeasured(tuple(steps[~np.isfinite(values)].tolist()), (), tuple(steps[beyond].tolist()))


def _unit_threshold(data: Series) -> Series:
    ones = np.ones(len(data))
    return Series(data.steps, data.value, data.low, data.high, ones, ones)


def _series(records: Sequence[Record], numbers: Sequence[tuple[float | None, ...]], threshold: str | None) -> Series:
    value, low, high = (series.numbers(column) for column in (zip(*numbers, strict=True) if numbers else ((),) * 3))
    limits = series.column(records, threshold) if threshold else np.full(len(records), np.nan)
    return Series(np.array([r.step for r in records], dtype=int), value, low, high, limits, limits)
