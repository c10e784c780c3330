"""Estimators beside each other at equal error: each at the cheapest of its settings that reaches it, timed in turns."""

import contextlib
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from contenders import OURS, failure_in
from measuring import Slot, interleave, timed
from problems import Problem
from products import seconds_of_gradient
from solvers import Meter, TooLong
from torch.nn.attention import SDPBackend, sdpa_kernel

PATIENCE = 2.5
"""A run that takes so many times as long as losscope's is given up; a search may take as long twice for every seed."""


@dataclass(frozen=True)
class Way:
    """One library's way to an answer.

    Attributes:
        package: whose.
        name: for tables, with the setting as ``{:g}``.
        ladder: its settings, cheapest first.
        solve: (setting, seed, meter) -> the answer; everything it needs but model and data is made in it.
    """

    package: str
    name: str
    ladder: tuple[float, ...]
    solve: Callable[[Any, int, Meter], Any]


@dataclass(frozen=True)
class Rules:
    """How much is spent.

    Attributes:
        repeats: rounds.
        least: seconds that a turn lasts at least.
        budget: seconds for all turns of a row; a run that takes longer alone is not repeated.
        tries: seeds that a setting is judged by.
        patience: seconds that are never too long.
    """

    repeats: int
    least: float
    budget: float
    tries: int
    patience: float


@dataclass
class Row:
    """One library on one problem; ``seconds`` per run, one per repeat, the other lists one entry per run judged."""

    package: str
    name: str
    seconds: list[float] = field(default_factory=list)
    products: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    reached: bool = False
    note: str = ""
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Comparison:
    """A task on a problem; ``gradient`` in seconds, ``limit`` on the error, ``remark`` on what it was judged by."""

    task: str
    key: str
    title: str
    batches: int
    gradient: float
    limit: float
    remark: str
    rows: list[Row]


@dataclass
class Run:
    """One run, with its error once it is judged."""

    answer: Any
    seconds: float
    products: int
    error: float = math.nan


@dataclass
class Entry:
    """A way in the course of a contest: its setting, and its runs at it."""

    way: Way
    row: Row
    setting: float = math.nan
    runs: list[Run] = field(default_factory=list)
    slot: Slot | None = None

    @property
    def answers(self) -> list[Any]:
        return [run.answer for run in self.runs]


class Contest:
    """A task on one problem, for several ways.

    Args:
        problem: the problem.
        judge: an answer's error.
        limit: the error to reach.
        rules: how much is spent.
        demand: of a setting's errors over seeds, the one that must reach the limit.
        slack: how much more the median over repeats may be, where it is known that badly.
    """

    def __init__(
        self, problem: Problem, judge: Callable[[Any], float], limit: float, rules: Rules,
        demand: Callable[[list[float]], float] = max, slack: float = 1.0,
    ) -> None:  # fmt: skip
        self.problem, self.judge, self.limit, self.rules = problem, judge, limit, rules
        self.demand, self.slack = demand, slack
        self.patience = math.inf  # seconds
        self.gradient = math.nan

    def hold(self, ways: list[Way]) -> list[Entry]:
        """Find everyone's setting, ours first, then time those who reached the error."""
        entries = []
        first = Entry(ways[0], Row("", ""), ways[0].ladder[0])
        with failure_in(first.row):
            self._once(first, seed=0)  # what a process does once is nobody's
        ours: list[float] = []
        for way in ways:
            entry = Entry(way, Row(way.package, way.name))
            entries.append(entry)
            with failure_in(entry.row):
                self._climb(entry)
            if way.package == OURS and entry.runs:
                ours.append(entry.runs[-1].seconds)
                self.patience = max(self.rules.patience, PATIENCE * max(ours))
        self._repeat(entries)
        for entry in entries:
            self._fill(entry)
        return entries

    def _climb(self, entry: Entry) -> None:
        """Take stricter settings until one reaches the error, or it takes too long."""
        started = time.perf_counter()
        for setting in entry.way.ladder:
            entry.setting, entry.runs = setting, []
            entry.row.name = entry.way.name.format(setting)
            for seed in range(self.rules.tries if len(entry.way.ladder) > 1 else 1):
                self._once(entry, seed, self.patience)
                if entry.row.failure:
                    return
            if len(entry.way.ladder) == 1:
                return
            if self.demand([self._error(run) for run in entry.runs]) <= self.limit:
                entry.row.reached = True
                return
            if time.perf_counter() - started > 2 * self.rules.tries * self.patience:
                return

    def _once(self, entry: Entry, seed: int, patience: float = math.inf) -> None:
        """One run, kept with its cost; where it was given up the row says so."""
        started, answer = time.perf_counter(), []
        meter = Meter(started + patience)
        peer = entry.way.package != OURS
        unfused = peer and self.problem.family.attention  # else second derivatives fail: see the table of products
        with sdpa_kernel(SDPBackend.MATH) if unfused else contextlib.nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                solve = entry.way.solve
                seconds = timed(lambda: answer.append(solve(entry.setting, seed, meter)), self.problem.device)
            except TooLong:
                spent = time.perf_counter() - started
                entry.row.failure = f"given up after {spent:.1f} s and {meter.products} products"
                return
        entry.runs.append(Run(answer[0], seconds, meter.products))

    def _error(self, run: Run) -> float:
        if math.isnan(run.error):
            run.error = self.judge(run.answer)
        return run.error

    def _repeat(self, entries: list[Entry]) -> None:
        gradient = Slot(seconds_of_gradient(self.problem))
        gradient.run(2)
        slots = [gradient]
        for entry in entries:
            settled = entry.row.reached or len(entry.way.ladder) == 1
            if settled and entry.runs and entry.runs[-1].seconds <= self.rules.budget:
                entry.slot = Slot(self._turn(entry), first=entry.runs[-1].seconds)
                slots.append(entry.slot)
        device = self.problem.device
        interleave(slots, self.rules.repeats, device, least=self.rules.least, budget=self.rules.budget)
        self.gradient = gradient.median

    def _turn(self, entry: Entry) -> Callable[[int], None]:
        def run(calls: int) -> None:
            for _ in range(calls):
                if not entry.row.failure:
                    with failure_in(entry.row):
                        self._once(entry, seed=len(entry.runs))

        return run

    def _fill(self, entry: Entry) -> None:
        """The row of an entry, with its last runs judged."""
        row = entry.row
        if entry.slot is not None:
            row.seconds = entry.slot.seconds
            entry.runs = entry.runs[-self.rules.repeats :]
        else:
            row.seconds = [run.seconds for run in entry.runs]
        row.products = [run.products for run in entry.runs]
        row.errors = [self._error(run) for run in entry.runs]
        if row.errors:
            row.reached = not row.failure and statistics.median(row.errors) <= self.slack * self.limit

    def result(self, task: str, entries: list[Entry], remark: str) -> Comparison:
        """What is written."""
        problem = self.problem
        rows = [entry.row for entry in entries]
        return Comparison(
            task, problem.key, problem.title, len(problem.batches), self.gradient, self.limit, remark, rows
        )


# --------------------------------------------------------------------------- the table


def table(found: Comparison, error: str, note: str) -> str:
    """One comparison in Markdown; ``error`` and ``note`` head their columns."""
    lines = [
        f"**{found.title}**, {found.task}: {found.remark}; one gradient {1e3 * found.gradient:.2f} ms\n",
        f"| run | ms | gradients | products | {error}: median | worst | {note} | repeats |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for row in found.rows:
        if row.failure or not row.seconds:
            lines.append(f"| {row.name} | **{row.failure}** | | | | | | |")
            continue
        middle, worst = statistics.median(row.errors), max(row.errors)
        shown = f"{middle:.1e}" if row.reached else f"**{middle:.1e}**"
        lines.append(
            f"| {row.name} | {1e3 * row.median:.3g} | {row.median / found.gradient:.1f} "
            f"| {statistics.median(row.products):g} | {shown} | {worst:.1e} | {row.note} | {len(row.seconds)} |"
        )
    return "\n".join(lines) + "\n"


def as_json(comparisons: list[Comparison]) -> list[dict]:
    return [asdict(comparison) for comparison in comparisons]


def from_json(items: list[dict]) -> list[Comparison]:
    """The comparisons that `as_json` made the items of."""
    return [Comparison(**{**item, "rows": [Row(**row) for row in item["rows"]]}) for item in items]
