"""The audit for machines: plain dictionaries with stable keys, ready for strict JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .audit import Audit, Criterion
from .catalogue import CATALOGUE
from .phases import phases

if TYPE_CHECKING:
    from .run import Run

__all__ = ["AUDIT_VERSION", "audit_as_dict", "run_audit_as_dict", "strict"]

AUDIT_VERSION = 1
"""Version of the keys below; it changes where one is renamed or goes, not where one is added."""


def run_audit_as_dict(run: Run, players: Iterable[str] | None = None) -> dict[str, Any]:
    """The audits of a run's players as one object.

    Args:
        run: the run.
        players: whose; default: all.

    Returns:
        ``v``, ``run``, ``status``, ``reason`` and ``players``: by name, each as `audit_as_dict` gives it, with
        the ``phases`` of the run. No number is rounded; NaN and infinities are None.

    Raises:
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Run
        >>> from losscope.probes.audit_json import run_audit_as_dict
        >>> found = run_audit_as_dict(Run.from_records({"players": {"model": {}}}, []))
        >>> found["players"]["model"]["criteria"]["sharpness"]["verdict"]
        'NOT_APPLICABLE'
    """
    names = run.players if players is None else list(players)
    audits = {name: audit_as_dict(run.audit(name)) for name in names}
    for name, content in audits.items():
        content["phases"] = [dataclasses.asdict(phase) for phase in phases(run, name)]
    reason = run.meta.get("reason")
    return {"v": AUDIT_VERSION, "run": run.name, "status": run.status, "reason": reason, "players": audits}


def audit_as_dict(audit: Audit) -> dict[str, Any]:
    """Everything an audit says.

    Returns:
        Its fields by name, and ``above_edge``. ``criteria`` is a dictionary by name, in the order of the audit; each
        has the fields of `Criterion`, and ``says``, ``derived`` and ``source`` of the catalogue.
    """
    criteria = {line.name: _criterion(line) for line in audit.criteria}
    return dict(strict({**dataclasses.asdict(audit), "criteria": criteria, "above_edge": audit.above_edge}))


def _criterion(line: Criterion) -> dict[str, Any]:
    entry = CATALOGUE.get(line.name)
    known = {key: getattr(entry, key) if entry else None for key in ("says", "derived", "source")}
    return {**dataclasses.asdict(line), **known}


def strict(value: Any) -> Any:
    """The same value as strict JSON can hold it: non-finite numbers as None, tuples as lists.

    Example:
        >>> from losscope.probes.audit_json import strict
        >>> strict({"ratio": float("nan"), "steps": (0, 90)})
        {'ratio': None, 'steps': [0, 90]}
    """
    if isinstance(value, dict):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
