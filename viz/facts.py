"""The facts of a run, as pairs of a name and words."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np

from losscope.probes import Run

from . import series
from .words import number, seconds

__all__ = ["player_facts", "run_facts"]

STATUS = {
    "finished": "finished",
    "running": "still running, or killed",
    "failed": "failed",
}


def run_facts(run: Run) -> list[tuple[str, str]]:
    """What concerns the whole run; what it does not say is left out."""
    meta = run.meta
    steps = [r.step for r in run.records]
    facts: list[tuple[str, str]] = [("status", _status(run))]
    facts.append(("created", _time(meta.get("created"))))
    facts.append(("finished", _time(meta.get("finished"))))
    if steps:
        facts.append(("recorded steps", f"{min(steps):,} to {max(steps):,}"))
    measurements = sum(r.probe not in ("log", "oscillation") for r in run.records)
    facts.append(("measurements", f"{measurements:,} ({', '.join(run.probes) or 'no probes'})"))
    if products := sum(r.matvecs for r in run.records):
        facts.append(("curvature products", f"{products:,}"))
    facts.append(("cost of watching", _cost(meta.get("cost"))))
    if run.malformed:
        facts.append(("unreadable lines", f"{run.malformed:,} in records.jsonl, skipped"))
    versions = meta.get("versions")
    if isinstance(versions, dict):
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)))
    facts.append(("git", _git(meta.get("git"))))
    return [(name, text) for name, text in facts if text]


def player_facts(run: Run, player: str | None) -> list[tuple[str, str]]:
    """What concerns one player; what the run does not say is left out."""
    said = series.facts(run, player)
    facts: list[tuple[str, str]] = []
    if said.get("model"):
        parameters = said.get("parameters")
        facts.append(("model", f"{said['model']}" + (f", {parameters:,} parameters" if parameters else "")))
    if said.get("optimizer"):
        momentum = said.get("momentum")
        facts.append(("optimizer", f"{said['optimizer']}" + (f", momentum {momentum:g}" if momentum else "")))
    facts.append(("learning rate", _rates(run, player)))
    if said.get("threshold_formula"):
        facts.append(("stability threshold", str(said["threshold_formula"])))
    elif said.get("threshold_reason"):
        facts.append(("stability threshold", f"none: {said['threshold_reason']}"))
    samples, batch = said.get("samples"), said.get("batch_size")
    if samples is not None:
        batches = said.get("batches")
        many = f" in {batches} batches" if isinstance(batches, int) and batches > 1 else ""
        facts.append(("measured on", f"{samples:,} samples{many}"))
    full = isinstance(batch, int) and isinstance(samples, int) and batch >= samples
    facts.append(("batch size", "not given" if batch is None else f"{batch:,}" + (" (full batch)" if full else "")))
    if said.get("outputs") is not None:
        facts.append(("outputs per sample", f"{said['outputs']:,}"))
    if said.get("loss_family"):
        facts.append(("loss", str(said["loss_family"])))
    if said.get("mode"):
        facts.append(("measured in mode", str(said["mode"])))
    place = ", ".join(str(said[key]) for key in ("dtype", "device") if said.get(key))
    facts.append(("computed in", place))
    return [(name, text) for name, text in facts if text]


def _status(run: Run) -> str:
    text = STATUS.get(run.status, run.status)
    reason = run.meta.get("reason")
    return f"{text}: {reason}" if reason else text


def _time(value: Any) -> str:
    try:
        moment = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return str(value) if value else ""
    return f"{moment:%Y-%m-%d %H:%M:%S} {moment.tzname() or ''}".strip()


def _cost(cost: Any) -> str:
    if not isinstance(cost, dict) or cost.get("seconds_measuring") is None:
        return ""
    spent, total = cost["seconds_measuring"], cost.get("seconds_total")
    if not total:
        return seconds(spent)
    return f"{seconds(spent)} of {seconds(total)} ({spent / total:.0%})"


def _git(git: Any) -> str:
    if not isinstance(git, dict) or not git.get("commit"):
        return ""
    return f"{str(git['commit'])[:12]}" + (", with uncommitted changes" if git.get("dirty") else "")


def _rates(run: Run, player: str | None) -> str:
    name = player if player is not None else next(iter(run.players), None)
    rates = np.array(
        [r.lr for r in run.records if r.lr is not None and (name is None or r.player == name)], dtype=float
    )
    rates = rates[np.isfinite(rates)]
    if not len(rates):
        return ""
    if rates.min() == rates.max():
        return number(float(rates[0]))
    return f"{number(float(rates.min()))} to {number(float(rates.max()))}, last {number(float(rates[-1]))}"
