"""A claim of a paper put to the test: what is predicted, what each seed measured, and a verdict.

    ratios = {0: 1.003, 1: 0.998, 2: 1.01, 3: 1.0, 4: 1.0}   # by seed
    claim = judge("hover", "GD hovers at 2/lr", "Cohen et al. 2021, arXiv 2103.00065", ratios, between=(0.98, 1.05))
    write_claims(out, "edge_of_stability", [claim])          # out/claims.json
    print_claims([claim])

A study hands over one number by seed and the band that its paper predicts. The verdict follows from them alone, so that
no script words its own success:

- ``REPRODUCED``: every seed lies in the band, and so does the whole interval;
- ``NOT_REPRODUCED``: no seed lies in the band, nor any of the interval;
- ``PARTLY``: some seeds do and some do not;
- ``INCONCLUSIVE``: fewer than five seeds, or the seeds agree but their interval does not.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit

from losscope.landscape import SettingError

__all__ = [
    "CLAIMS", "Claim", "check_claims", "judge", "markdown_table", "print_claims", "read_claims", "write_claims",
]  # fmt: skip

CLAIMS = "claims.json"
ENOUGH = 5
"""Seeds that a verdict takes."""
INTERVALS = {"mean": "95 % Student interval of the mean", "range": "smallest and largest of the seeds"}


@dataclass(frozen=True)
class Claim:
    """One claim and its verdict; ``judge`` makes it.

    Attributes:
        name: short, unique within its study, e.g. ``"gd_hover"``.
        text: the claim in a sentence.
        source: the paper that makes it.
        predicted: what the paper predicts of the measured number, in words.
        measured: that number by seed; NaN or infinite where a run diverged.
        low: lower end of the interval over the finite seeds, NaN where there is none.
        high: its upper end.
        interval: what kind it is.
        seeds: the seeds, in the order of ``measured``.
        band: smallest and largest number that agree with the prediction; may be infinite.
        verdict: ``REPRODUCED``, ``PARTLY``, ``NOT_REPRODUCED`` or ``INCONCLUSIVE``.
        note: where the claim stops holding, what was special.
    """

    name: str
    text: str
    source: str
    predicted: str
    measured: tuple[float, ...]
    low: float
    high: float
    interval: str
    seeds: tuple[int, ...]
    band: tuple[float, float]
    verdict: str
    note: str = ""

    @property
    def held(self) -> int:
        """Seeds whose number lies in the band."""
        return sum(self.band[0] <= value <= self.band[1] for value in self.measured)

    @property
    def mean(self) -> float:
        """Mean of the finite numbers, NaN where there are none."""
        finite = [value for value in self.measured if math.isfinite(value)]
        return statistics.fmean(finite) if finite else math.nan

    @property
    def said(self) -> str:
        """The measured mean and its interval."""
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def judge(
    name: str, text: str, source: str, measured: Mapping[int, float], *, between: tuple[float, float],
    predicted: str = "", interval: str = "range", note: str = "",
) -> Claim:  # fmt: skip
    """Compare what the seeds measured with what is predicted.

    Args:
        name: of the claim, unique within its study.
        text: the claim in a sentence.
        source: the paper that makes it.
        measured: the number of each seed. A share of trials, or 1.0 and 0.0 for yes and no, are numbers like any other.
        between: smallest and largest number that agree with the prediction; ``math.inf`` for no bound.
        predicted: the prediction in words; the band where it is empty.
        interval: ``"range"``, the smallest and the largest of the seeds, or ``"mean"``, the 95 % Student interval of
            their mean, for a claim about the mean over initialisations.
        note: what a reader should know beside.

    Raises:
        SettingError: if there are no numbers, or no such interval or band.
    """
    if not measured:
        raise SettingError(f"claim {name!r} has no measured numbers: give one by seed, e.g. {{0: 1.02, 1: 0.99}}")
    if interval not in INTERVALS:
        raise SettingError(f"interval must be one of {', '.join(map(repr, INTERVALS))}; got {interval!r}")
    if not between[0] <= between[1]:
        raise SettingError(f"between must be (smallest, largest), got {between!r}")
    values = tuple(float(value) for value in measured.values())
    finite = [value for value in values if math.isfinite(value)]
    low, high = _ends(finite, interval)
    if lost := len(values) - len(finite):
        note = "; ".join(filter(None, [note, f"{lost} of {len(values)} seeds gave no finite number"]))
    return Claim(
        name, text, source, predicted or _words(between), values, low, high, INTERVALS[interval], tuple(measured),
        (float(between[0]), float(between[1])), _verdict(values, (low, high), between), note,
    )  # fmt: skip


def _ends(values: Sequence[float], interval: str) -> tuple[float, float]:
    if not values or (interval == "mean" and len(values) < 2):
        return math.nan, math.nan
    if interval == "range":
        return min(values), max(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def _verdict(values: Sequence[float], ends: tuple[float, float], band: tuple[float, float]) -> str:
    held = sum(band[0] <= value <= band[1] for value in values)
    if len(values) < ENOUGH:
        return "INCONCLUSIVE"
    if 0 < held < len(values):
        return "PARTLY"
    if held:
        return "REPRODUCED" if band[0] <= ends[0] and ends[1] <= band[1] else "INCONCLUSIVE"
    return "INCONCLUSIVE" if ends[0] <= band[1] and ends[1] >= band[0] else "NOT_REPRODUCED"


def _words(band: tuple[float, float]) -> str:
    low, high = band
    if math.isinf(low) or math.isinf(high):
        return f"at most {high:.4g}" if math.isinf(low) else f"at least {low:.4g}"
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def check_claims(claims: Sequence[Claim], *names: str) -> None:
    """Assert that every seed lies in the band, of the claims of these names or of all; what ``--quick`` ends with.

    Raises:
        AssertionError: if one does not; it says what was measured.
        SettingError: if there is no claim of a name.
    """
    if missing := set(names) - {claim.name for claim in claims}:
        raise SettingError(f"no claims {', '.join(map(repr, sorted(missing)))}; there are {[c.name for c in claims]}")
    failed = [
        f"{claim.name}: predicted {claim.predicted}, measured {', '.join(f'{value:.4g}' for value in claim.measured)}"
        for claim in claims
        if (not names or claim.name in names) and claim.held < len(claim.measured)
    ]
    assert not failed, "; ".join(failed) + " (asserted of the study's own model and data; with others it need not hold)"


def write_claims(out: Path, study: str, claims: Sequence[Claim], *, quick: bool = False) -> Path:
    """Write ``claims.json`` into a folder, replaced in one step: strict JSON, what is not finite as null.

    Args:
        out: the folder, made where there is none.
        study: name of the script.
        claims: of the study, each name once.
        quick: whether this was the short version.

    Returns:
        The file.

    Raises:
        SettingError: if two claims have one name.
    """
    names = [claim.name for claim in claims]
    if len(set(names)) < len(names):
        raise SettingError(f"two claims of {study} have one name: {names}")
    content = {
        "v": 1, "study": study, "quick": quick,
        "versions": {"python": platform.python_version(), "torch": torch.__version__.partition("+")[0]},
        "claims": [asdict(claim) | {"mean": claim.mean, "held": claim.held} for claim in claims],
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f"{CLAIMS}.tmp"
    temporary.write_text(json.dumps(_strict(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return temporary.replace(out / CLAIMS)


def _strict(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_claims(path: Path) -> tuple[str, list[Claim]]:
    """The study and its claims, from ``claims.json`` or the folder that holds it."""
    content = json.loads((path / CLAIMS if path.is_dir() else path).read_text())
    return content["study"], [_read(claim) for claim in content["claims"]]


def _read(found: dict[str, Any]) -> Claim:
    """Null becomes NaN again, and an open end of the band infinite."""
    numbers = tuple(math.nan if value is None else value for value in found.pop("measured"))
    ends = (math.nan if (end := found.pop(name)) is None else end for name in ("low", "high"))
    floor, ceiling = found.pop("band")
    band = (-math.inf if floor is None else floor, math.inf if ceiling is None else ceiling)
    kept = {name: found[name] for name in ("name", "text", "source", "predicted", "interval", "verdict", "note")}
    low, high = ends
    return Claim(**kept, measured=numbers, low=low, high=high, seeds=tuple(found["seeds"]), band=band)


def print_claims(claims: Sequence[Claim], title: str = "", console: Console | None = None) -> None:
    """The claims as a table on the terminal, notes below it."""
    table = Table(title=title or None, title_justify="left")
    for heading in ("claim", "predicted", "measured", "seeds in it", "verdict"):
        table.add_column(heading, overflow="fold")
    for claim in claims:
        table.add_row(
            claim.text, claim.predicted, claim.said, f"{claim.held} of {len(claim.seeds)}", claim.verdict
        )  # fmt: skip
    console = console or Console(highlight=False)
    if not console.is_terminal:  # a log has no width
        console.width = max(console.width, 140)
    console.print(table)
    for claim in claims:
        if claim.note:
            console.print(f"{claim.name}: {claim.note}", markup=False)


def markdown_table(claims: Sequence[Claim]) -> str:
    """The claims as a table in Markdown, with their sources; what kinds of intervals they have stands below."""
    lines = ["| claim | source | predicted | measured | seeds in it | verdict |", "|---|---|---|---|---|---|"]
    for claim in claims:
        text = f"{claim.text}. {claim.note}" if claim.note else claim.text
        cells = (text, claim.source, claim.predicted, claim.said, f"{claim.held} of {len(claim.seeds)}", claim.verdict)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    kinds = dict.fromkeys(claim.interval for claim in claims)
    return "\n".join([*lines, "", f"Measured: mean over seeds, in brackets the {' or the '.join(kinds)}."])
