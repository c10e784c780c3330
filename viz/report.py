"""The report: one page that needs nothing but itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from losscope.landscape import RunError
from losscope.probes import Criterion, Run
from losscope.probes.audit_json import run_audit_as_dict, strict
from losscope.probes.catalogue import CATALOGUE
from losscope.probes.phases import phases

from . import series, words
from .facts import player_facts, read_run, run_facts
from .figure import figure
from .svg import COLOURS, inline_svg

__all__ = ["report"]

MOST_LOGGED = 20_000
MOST_ERRORS = 20
WIDE = {
    "sharpness": (8.6, 5.2), "stability": (8.6, 5.0), "spectrum": (8.6, 4.4), "spectrum_over_time": (8.6, 4.8),
    "outliers": (8.6, 5.2), "collapse": (8.6, 6.0), "tangent_kernel": (8.6, 5.0),
    "gradient_noise": (8.6, 6.0), "trajectory": (8.6, 7.4),
}  # fmt: skip
NARROW = {
    "sharpness": (3.9, 4.8), "stability": (3.9, 5.4), "spectrum": (3.9, 3.9), "spectrum_over_time": (3.9, 3.9),
    "outliers": (3.9, 4.8), "collapse": (3.9, 6.0), "tangent_kernel": (3.9, 5.0),
    "gradient_noise": (3.9, 6.4), "trajectory": (3.9, 6.8),
}  # fmt: skip
CAPTIONS = {
    "sharpness": (
        "Sharpness, the largest eigenvalue of the Hessian, at the weights before each step. Dashed: the threshold "
        "above which the optimizer's linearised step grows. Below: the loss."
    ),
    "stability": (
        "Each criterion as a ratio to its threshold. At 1 the threshold is met; from 0.9 to 1.1 the audit speaks of "
        "the edge. Shaded: the phases the run went through. Grey and dotted: does not apply to this run."
    ),
    "spectrum": (
        "Spectral density of the Hessian at the last measurement: the share of its eigenvalues at each place, on a "
        "logarithmic scale. The band is the pointwise interval over the random starts. Ticks: eigenvalues that were "
        "found one by one."
    ),
    "spectrum_over_time": (
        "The spectral density at each measurement, dark where it is dense. Dots: the largest eigenvalues."
    ),
    "outliers": (
        "The largest eigenvalues, in colour where they stand apart from the bulk, and below how many do. A bar spans "
        "what the different ways of counting them say."
    ),
    "collapse": (
        "Neural collapse: the features' variation within classes against that between them (NC1), how unequal lengths "
        "and angles of the class means are (NC2) and how far the classifier is from them (NC3), and the share of "
        "samples whose nearest class mean is not the class that the classifier takes (NC4). All are 0 at collapse."
    ),
    "tangent_kernel": (
        "How far the tangent kernel on fixed samples is from the first one measured, as one minus the cosine, plain "
        "and without the constant mode (centred), and its alignment with the labels. Below: the distance between "
        "neighbouring measurements, per step. A kernel that stays is that of lazy training."
    ),
    "gradient_noise": (
        "The noise of gradients relative to the gradient, in samples: batches up to about that size make nearly "
        "proportionally larger progress per step. Hollow: the gradient may be zero, so that no upper end is known. "
        "Then the noise and the gradient's square by themselves, and how long the gradients of single draws are."
    ),
    "trajectory": (
        "Where the weights went: the first two principal components of the recorded points, to scale, with the share "
        "of the variance that each explains. A random walk in many dimensions draws a parabola too, with 61 and 15 %. "
        "Below: distance from the start and length of the polyline through the points, and the cosine between "
        "successive displacements."
    ),
}
OF_PROBE = {
    "spectrum": "spectrum", "spectrum_over_time": "spectrum", "outliers": "spectrum", "collapse": "neural_collapse",
    "tangent_kernel": "tangent_kernel", "gradient_noise": "gradient_noise", "trajectory": "trajectory",
}  # fmt: skip
"""Figures that are on the page only where a probe has left records."""
SYMBOLS = {
    "sharpness": "λ<sub>max</sub>(H)",
    "trace": "tr(H)",
    "aligned_trace": "μ tr(H)/B",
    "frobenius": "√(μ/B) ‖H‖<sub>F</sub>",
    "s_mu": "S<sub>μ</sub> = E‖g<sub>B</sub>‖²/2L",
    "mean_square": "2/η*",
    "batch_sharpness": "E[g<sub>B</sub>ᵀH<sub>B</sub>g<sub>B</sub>/‖g<sub>B</sub>‖²]",
    "batch_sharpness_ratio": "E[g<sub>B</sub>ᵀH<sub>B</sub>g<sub>B</sub>]/E‖g<sub>B</sub>‖²",
    "interaction_aware": "E[g<sub>B</sub>ᵀHg<sub>B</sub>]/E‖g<sub>B</sub>‖²",
    "noise_interaction": "E[g<sub>B</sub>ᵀHg<sub>B</sub>]/‖g‖²",
}
"""As HTML, of criteria whose symbol is the catalogue's; others are written as the audit has them."""


def report(run: Run | str | Path, out: str | Path | None = None) -> Path:
    """Write one self-contained HTML page on a run.

    It holds the figures as inline SVG, the run's facts, the audit and the recorded errors of every player, and
    the data as JSON in an inert ``<script id="data">``. It loads nothing, runs no script, follows the reader's
    light or dark scheme, and prints.

    Args:
        run: the run, or its folder.
        out: the file to write; default: ``report.html`` in the run's folder.

    Returns:
        Where it was written; replaced in one step if it was there.

    Raises:
        RunError: if the run cannot be read, or is in memory and ``out`` is not given, or ``out`` cannot be
            written.
    """
    run = run if isinstance(run, Run) else read_run(run)
    if out is None:
        if run.path is None:
            raise RunError("this run is in memory: say where the report goes, report(run, out=...)")
        out = run.path / "report.html"
    out = Path(out)
    if out.is_dir():
        raise RunError(f"{str(out)!r} is a folder; name a file, e.g. {str(out / 'report.html')!r}")
    page = render(run)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"the report cannot be written to {str(out)!r}: {error.strerror or error}") from error
    return out


def render(run: Run) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=PackageLoader("losscope.viz"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": words.number, "interval": words.interval}
    players = [_player(run, name, index) for index, name in enumerate(run.players)]
    return environment.get_template("report.html.j2").render(
        run=run, players=players, facts=run_facts(run), cost=run.cost(), verdict=words.verdict, verdicts=words.VERDICTS,
        symbol=_symbol, colours=COLOURS, data=Markup(_data(run)),
    )  # fmt: skip


def _player(run: Run, name: str, index: int) -> dict[str, Any]:
    audit = run.audit(name)
    said = words.headline(audit)
    applies, barred = words.split(audit)
    figures = []
    recorded = {r.probe for r in run.records if r.player == name}
    for kind, caption in CAPTIONS.items():
        if kind in OF_PROBE and OF_PROBE[kind] not in recorded:
            continue
        drawn = {
            width: Markup(
                inline_svg(
                    _untitled(figure(run, kind, player=name, size=size)),
                    prefix=f"fig-{index}-{kind}-{width}",
                    title=f"{kind.replace('_', ' ').capitalize()} of {name}",
                    description=f"{caption} {said.title}: {said.sentence}",
                )
            )
            for width, size in (("wide", WIDE[kind]), ("narrow", NARROW[kind]))
        }
        if kind == "stability" and (course := words.course(phases(run, name))):
            caption = f"{caption} Phases: {course}."
        figures.append({"kind": kind, "caption": caption} | drawn)
    return {
        "name": name, "audit": audit, "headline": said, "applies": applies, "barred": words.together(barred),
        "preconditions": sorted(audit.preconditions, key=lambda each: (each.holds is not False, each.holds is True)),
        "evidence": words.evidence(audit), "figures": figures, "facts": player_facts(run, name),
        "problems": _problems(run, name), "happened": happened(run, name),
    }  # fmt: skip


def _symbol(line: Criterion) -> str:
    entry = CATALOGUE.get(line.name)
    return Markup(SYMBOLS[line.name]) if entry is not None and entry.symbol == line.symbol else line.symbol


def _untitled(made: Figure) -> Figure:
    """The page says whose figure it is."""
    made.suptitle("")
    return made


def happened(run: Run, name: str) -> list[str]:
    """What a reader must know before any verdict: a failed run, numbers that ceased to be finite."""
    said = []
    steps, values, _ = series.loss(run, name)
    broken = steps[~np.isfinite(values)]
    if len(broken):
        said.append(f"The loss was not finite at {len(broken)} steps, first at step {broken[0]:,}.")
    records = [r for r in run.records if r.status == "nonfinite" and r.player == name]
    if records and not len(broken):
        said.append(f"Measurements were not finite, first at step {records[0].step:,}.")
    return said


def _problems(run: Run, name: str) -> dict[str, Any]:
    """Recorded errors, those with the same words gathered."""
    gathered: dict[tuple[str, str, str], list[int]] = {}
    for record in run.records:
        if record.status != "ok" and record.player == name:
            key = (record.probe, record.status, record.reason or "")
            gathered.setdefault(key, []).append(record.step)
    rows = [
        {"probe": probe, "status": status, "reason": reason, "count": len(steps), "first": steps[0], "last": steps[-1]}
        for (probe, status, reason), steps in gathered.items()
    ]
    return {"rows": rows[:MOST_ERRORS], "more": max(len(rows) - MOST_ERRORS, 0)}


def _data(run: Run) -> str:
    """The run as strict JSON that no HTML parser can mistake for markup."""
    logged = {}
    for name in run.players:
        keys = dict.fromkeys(key for r in run.select("log", name) for key in r.values)
        logged[name] = {key: _curve(*run.logged(key, name)) for key in keys}
    content = {
        "meta": run.meta,
        "audit": run_audit_as_dict(run),
        "records": [json.loads(r.to_json()) for r in run.records if r.probe != "log"],
        "logged": logged,
    }
    text = json.dumps(strict(content), allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _curve(steps: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    kept_steps, kept = series.decimate(steps, values, MOST_LOGGED)
    return {"steps": kept_steps.tolist(), "values": kept.tolist(), "decimated": len(kept) < len(values)}
