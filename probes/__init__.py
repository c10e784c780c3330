"""Watching training over time: hooks, schedules, measurements, the run folder and its verdicts."""

from .audit import Assumption, Audit, Criterion
from .records import SCHEMA_VERSION, Record
from .run import Run

__all__ = ["SCHEMA_VERSION", "Assumption", "Audit", "Criterion", "Record", "Run"]
