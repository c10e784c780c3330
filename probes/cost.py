"""What each probe of a run cost: seconds, products, gradients, memory; how it was computed, and what was put off."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from losscope.landscape.html_table import html_table

if TYPE_CHECKING:
    from .records import Record
    from .run import Run

__all__ = ["Cost", "ProbeCost", "cost", "spent_by"]

NO_PROBES = ("log", "oscillation")
"""Records that nothing was measured for by itself."""


@dataclass(frozen=True)
class ProbeCost:
    """The cost of one probe.

    Attributes:
        player: of which player.
        probe: its name.
        measurements: how many it made.
        seconds: of wall-clock time that its records paid for; what probes share is paid by the first that needs it.
        first: of these, the first measurement, with its graphs, trials and cold starts.
        each: median of the others; of all where there are no others.
        products: curvature-vector products.
        gradients: the seconds in times of one value and gradient of the objective on the same data; None where that
            time is not known.
        share: of the wall-clock time of the run; None where that is not known.
        memory: most bytes by which one measurement raised the peak of the accelerator's memory; None on the CPU, and
            where it stayed below a peak that the training had had.
        kernels: what computed the products.
        postponed: measurements that the budget made later than they were due.
        left_out: measurements that were due while one before them was still waiting, and not made.
        failures: what else became of measurements: how often, and why.
        attempts: measurements, failed ones too.
    """

    player: str
    probe: str
    measurements: int
    seconds: float
    first: float
    each: float
    products: int
    gradients: float | None
    share: float | None
    memory: int | None
    kernels: tuple[str, ...]
    postponed: int
    left_out: int
    failures: tuple[str, ...]
    attempts: int


@dataclass(frozen=True)
class Cost:
    """The cost of a run's measuring.

    Attributes:
        probes: of each probe, those that took longest first.
        seconds: of measuring in all, with what no single probe is charged with: copies, isolation, writing.
        total: seconds of the run; None where they are not known.
        budget: the share that was allowed; None for no bound.
        gradient_seconds: time of one value and gradient of the objective, by player.
        reasons: why which kernel was chosen, by player; none where it was asked for.
    """

    probes: tuple[ProbeCost, ...]
    seconds: float
    total: float | None
    budget: float | None
    gradient_seconds: Mapping[str, float]
    reasons: Mapping[str, Mapping[str, str]]

    @property
    def share(self) -> float | None:
        """Of measuring in the wall-clock time; None where that is not known."""
        return self.seconds / self.total if self.total else None

    def __getitem__(self, probe: str) -> ProbeCost:
        """The cost of the probe of that name, of the first player that has it."""
        for each in self.probes:
            if each.probe == probe:
                return each
        raise KeyError(f"no probe {probe!r} has left records; there are {', '.join(c.probe for c in self.probes)}")

    def table(self) -> list[tuple[str, ...]]:
        """A header and a row for each probe, in words; columns without a number are left out."""
        several = len({each.player for each in self.probes}) > 1
        rows: list[tuple[str, ...]] = [
            ("probe", "measured", "seconds", "share", "each", "products", "gradients", "memory", "left out")
        ]
        for each in self.probes:
            count, gradient = max(each.attempts, 1), self.gradient_seconds.get(each.player)
            rows.append((
                f"{each.player}.{each.probe}" if several else each.probe, f"{each.measurements:,}",
                f"{each.seconds:.3g}", _percent(each.share), _seconds(each.each), f"{each.products / count:.3g}",
                f"{each.each / gradient:.0f}" if gradient and each.each >= 0 else "-", _size(each.memory),
                f"{each.left_out} of {each.left_out + each.attempts}" if each.left_out else "-",
            ))  # fmt: skip
        columns = [column for column in zip(*rows, strict=True) if len(rows) == 1 or set(column[1:]) != {"-"}]
        return list(zip(*columns, strict=True))

    def notes(self) -> list[str]:
        """The whole in a sentence, why the kernels were chosen, and what failed."""
        whole = f"measuring took {self.seconds:.3g} s"
        if self.total:
            whole += f" of {self.total:.3g} s, {_percent(self.share)}"
        said = [whole + (f"; the budget is {_percent(self.budget)}" if self.budget else "")]
        said += [
            f"one value and gradient of {player!r} on this data: {seconds:.2g} s"
            for player, seconds in self.gradient_seconds.items()
        ]
        for player, reasons in self.reasons.items():
            said += [f"products of {player!r} by {kernel}: {why or 'chosen'}" for kernel, why in reasons.items()]
        late = ", ".join(f"{each.probe} {each.postponed}" for each in self.probes if each.postponed)
        said += [f"measured later than they were due, by the budget: {late}"] if late else []
        said += [f"{each.probe} of {each.player!r}: {failure}" for each in self.probes for failure in each.failures]
        return said

    def _repr_html_(self) -> str:
        """What a notebook shows: the table, and the notes below."""
        header, *rows = self.table()
        return html_table("Cost", header, rows, "; ".join(self.notes()))

    def __repr__(self) -> str:
        """A table; products and gradients are those of one measurement."""
        rows = self.table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.notes()])


def cost(run: Run, account: Mapping[str, Any] | None = None) -> Cost:
    """The cost of a run, from its records.

    Args:
        run: the run, also one that is going on, or was killed.
        account: of the measuring so far; default: what the run's description says, if it was closed.

    Example:
        >>> from losscope.probes import Record, Run
        >>> records = [Record(i, "model", "trace", seconds=0.5, matvecs=9, time=10.0 + i) for i in range(4)]
        >>> Run.from_records({"players": {"model": {}}}, records).cost()
        probe  measured  seconds  share  each   products
        trace  4         2        57 %   0.5 s  9
        measuring took 2 s of 3.5 s, 57 %
    """
    kept = run.meta.get("cost")
    said: Mapping[str, Any] = account or (kept if isinstance(kept, dict) else {})
    players = {name: facts for name, facts in (said.get("players") or {}).items() if isinstance(facts, dict)}
    seconds, total = spent_by(run, account)
    gradients = {
        name: float(time) for name, facts in players.items() if isinstance(time := facts.get("gradient_seconds"), float)
    }
    found: dict[tuple[str, str], list[Record]] = {}
    for record in run.records:
        if record.probe not in NO_PROBES:
            found.setdefault((record.player, record.probe), []).append(record)
    probes = [
        _of(records, total, gradients.get(player), _counts(players.get(player, {}), probe))
        for (player, probe), records in found.items()
    ]
    reasons = {name: dict(facts.get("kernels") or {}) for name, facts in players.items() if facts.get("kernels")}
    ordered = tuple(sorted(probes, key=lambda each: -each.seconds))
    return Cost(ordered, seconds, total or None, said.get("budget"), gradients, reasons)


def spent_by(run: Run, account: Mapping[str, Any] | None = None) -> tuple[float, float]:
    """Seconds of measuring and seconds in all; of a run that was not closed, those that its records show."""
    closed = run.meta.get("cost") if run.status in ("finished", "failed") else None
    known = account or (closed if isinstance(closed, dict) else {})
    if isinstance(known.get("seconds_measuring"), float) and isinstance(known.get("seconds_total"), float):
        return known["seconds_measuring"], known["seconds_total"]
    timed = [r for r in run.records if r.time > 0 and math.isfinite(r.time)]
    begun = min((r.time - r.seconds for r in timed), default=0.0)
    return sum(r.seconds for r in run.records), max((r.time for r in timed), default=0.0) - begun


def _of(
    records: list[Record], total: float, gradient: float | None, counts: tuple[int | None, int | None]
) -> ProbeCost:
    records = sorted(records, key=lambda record: record.step)
    times = [record.seconds for record in records]
    failed = Counter(f"{r.status}: {r.reason or 'no reason given'}" for r in records if r.status != "ok")
    memory = [record.memory for record in records if record.memory is not None]
    postponed, left_out = counts
    return ProbeCost(
        player=records[0].player, probe=records[0].probe,
        measurements=sum(r.status == "ok" for r in records), seconds=sum(times), first=times[0],
        each=statistics.median(times[1:] or times), products=sum(r.matvecs for r in records),
        gradients=sum(times) / gradient if gradient else None, share=sum(times) / total if total else None,
        memory=max(memory, default=None), kernels=tuple(dict.fromkeys(r.kernel for r in records if r.kernel)),
        postponed=sum(r.due is not None for r in records) if postponed is None else postponed, left_out=left_out or 0,
        failures=tuple(f"{many} times {what}" if many > 1 else what for what, many in failed.items()),
        attempts=len(records),
    )  # fmt: skip


def _counts(facts: Mapping[str, Any], probe: str) -> tuple[int | None, int | None]:
    """Postponed and left out, as the account has them; None where it has none."""
    if "postponed" not in facts:
        return None, None
    return (facts["postponed"] or {}).get(probe, 0), (facts.get("left_out") or {}).get(probe, 0)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2g} %"


def _seconds(duration: float) -> str:
    return f"{duration:.2g} s" if duration >= 0 else "-"


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 2**20:.3g} MiB" if count < 2**30 else f"{count / 2**30:.3g} GiB"
