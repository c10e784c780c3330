"""The facts of a run, as pairs of a name and words."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np

from losscope.landscape import RunError
from losscope.probes import Record, Run
from losscope.probes.records import SCHEMA_VERSION

from . import series
from .words import number, seconds

__all__ = ["player_facts", "read_run", "run_facts"]

STATUS = {
    "finished": "finished",
    "running": "still running, or killed",
    "failed": "failed",
}


def read_run(path: str | Path) -> Run:
    """Read a run folder, and refuse one whose contents cannot be what a watch wrote.

    Raises:
        RunError: if there is no run, it cannot be read, or a newer losscope wrote it; the message names the folder.
    """
    if Path(path).is_file():
        raise RunError(f"{str(path)!r} is a file; a run is a folder, as written by watch(..., out=...)")
    try:
        run = Run(path)
    except RunError as error:
        raise (error if str(path) in str(error) else RunError(f"{str(path)!r} cannot be read: {error}")) from None
    version = run.meta.get("v")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RunError(
            f"{str(path)!r} was written in format {version}, this losscope reads up to {SCHEMA_VERSION}; "
            "update losscope"
        )
    players = run.meta["players"]
    if not players or not all(isinstance(said, dict) for said in players.values()):
        raise RunError(f"{str(path)!r} is not a readable run: its meta.json does not describe its players")
    for record in run.records:
        if not _plausible(record):
            raise RunError(
                f"{str(path)!r} is not a readable run: the record of {record.probe!r} at step {record.step} holds "
                "something other than numbers"
            )
    return run


def _plausible(record: Record) -> bool:
    numbers = (record.lr, record.value, record.low, record.high, record.matvecs, *record.values.values())
    return (
        all(n is None or isinstance(n, int | float) for n in numbers)
        and isinstance(record.player, str)
        and isinstance(record.probe, str)
        and isinstance(record.reason, str | None)
    )


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
        facts.append(("model", f"{said['model']}" + (f", {_count(parameters)} parameters" if parameters else "")))
    if said.get("optimizer"):
        momentum = said.get("momentum")
        facts.append(("optimizer", f"{said['optimizer']}" + (f", momentum {momentum}" if momentum else "")))
    facts.append(("learning rate", _rates(run, player)))
    if formula := said.get("seen_formula") or said.get("threshold_formula"):
        of = " (of P^-1 H)" if said.get("preconditioned") else ""
        facts.append(("stability threshold", f"{formula}{of}"))
    elif said.get("threshold_reason"):
        facts.append(("stability threshold", f"none: {said['threshold_reason']}"))
    samples, batch = said.get("samples"), said.get("batch_size")
    if samples is not None:
        batches = said.get("batches")
        many = f" in {batches} batches" if isinstance(batches, int) and batches > 1 else ""
        facts.append(("measured on", f"{_count(samples)} samples{many}"))
    full = isinstance(batch, int) and isinstance(samples, int) and batch >= samples
    facts.append(("batch size", "not given" if batch is None else _count(batch) + (" (full batch)" if full else "")))
    if said.get("outputs") is not None:
        facts.append(("outputs per sample", _count(said["outputs"])))
    if said.get("loss_family"):
        facts.append(("loss", str(said["loss_family"])))
    if said.get("mode"):
        facts.append(("measured in mode", str(said["mode"])))
    facts.append(("curvature products by", _kernels(run, player, said)))
    place = ", ".join(str(said[key]) for key in ("dtype", "device") if said.get(key))
    facts.append(("computed in", place))
    return [(name, text) for name, text in facts if text]


def _kernels(run: Run, player: str | None, said: dict[str, Any]) -> str:
    """The kernels that computed the products, and whether one was asked for."""
    name = player if player is not None else next(iter(run.players), None)
    used = dict.fromkeys(r.kernel for r in run.records if r.kernel and name in (None, r.player))
    words = ", ".join(used).replace("_", " ")
    return f"{words} (asked for)" if words and said.get("kernel") not in (None, "auto") else words


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


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
    spent, total = (
        (cost.get("seconds_measuring"), cost.get("seconds_total")) if isinstance(cost, dict) else (None, None)
    )
    if not isinstance(spent, int | float):
        return ""
    if not isinstance(total, int | float) or total <= 0:
        return seconds(spent)
    return f"{seconds(spent)} of {seconds(total)} ({100 * spent / total:.0f} %)"


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
