"""What the table of each kind of result holds in a notebook: its numbers with their intervals, how it was obtained."""

from __future__ import annotations

import dataclasses
import functools
import html
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .class_structure import ClassStructure
from .collapse import Collapse
from .html_fields import fields_html
from .html_table import between, html_table, number
from .noise import NoiseStatistics
from .noise_scale import NoiseScale
from .outliers import Outliers
from .results import DiagonalEstimate, Eigenpairs, Estimate, Solution
from .spectral_measure import SpectralDensity
from .surface.results import Line, LossPath, Plane
from .tangent_kernel import EmpiricalKernel

__all__ = ["as_html"]

NAMED = ("", "value", "interval")
CURVATURE = "in the unit of the operator's entries: loss / parameter² for a Hessian"


@functools.singledispatch
def as_html(result: object) -> str:
    """A result as HTML; of one that is not known here, its fields, or its ``repr``."""
    return fields_html(result) if dataclasses.is_dataclass(result) else f"<pre>{html.escape(repr(result))}</pre>"


@as_html.register
def _estimate(found: Estimate) -> str:
    rows = [
        ["value", number(found.value), between(found.low, found.high, found.confidence)],
        ["standard error", number(found.stderr, 3), ""],
        *_made(found.method, found.matvecs, found.kernel),
    ]
    return html_table(_title("Estimate", found.converged), NAMED, rows, found.note)


@as_html.register
def _eigenpairs(found: Eigenpairs) -> str:
    columns = (found.values.tolist(), found.low.tolist(), found.high.tolist(), found.residuals.tolist())
    rows = [
        [str(i), number(value), between(low, high), number(residual, 2)]
        for i, (value, low, high, residual) in enumerate(zip(*columns, strict=True), 1)
    ]
    made = f"{found.bound} bounds at {found.confidence:.0%}, {found.matvecs} products {found.kernel}".strip()
    note = "; ".join(filter(None, (made, CURVATURE, found.note)))
    header = ("", "eigenvalue", "bounds", "residual")
    return html_table(_title(f"Eigenpairs, {found.which}", found.converged), header, rows, note)


@as_html.register
def _diagonal(found: DiagonalEstimate) -> str:
    names: Mapping[str, Tensor] = found.by_name() if hasattr(found.space, "names") else {"": found.value}
    rows = [[name, str(t.numel()), number(float(t.double().sum())), number(float(t.double().mean()))]
            for name, t in names.items()]  # fmt: skip
    error = f"each entry within {found.relative_half_width:.2g} of their root mean square at {found.confidence:.0%}"
    note = "; ".join(filter(None, (error, f"{found.method}, {found.matvecs} products", found.note)))
    header = ("parameter", "entries", "sum", "mean")
    return html_table(_title("DiagonalEstimate", found.converged), header, rows, note)


@as_html.register
def _solution(found: Solution) -> str:
    residuals = torch.atleast_1d(found.relative).tolist()
    steps = torch.atleast_1d(found.iterations).tolist()
    rows = [[str(i), number(r, 3), str(int(n))] for i, (r, n) in enumerate(zip(residuals, steps, strict=True), 1)]
    made = f"{found.method}, {found.matvecs} products {found.kernel}".strip()
    bends = "" if found.negative_curvature is None else repr(found.negative_curvature)
    note = "; ".join(filter(None, (made, bends, found.note)))
    return html_table(_title("Solution", found.converged), ("", "relative residual", "steps"), rows, note)


@as_html.register
def _density(found: SpectralDensity) -> str:
    low, high = found.bounds
    trace = found.trace
    rows = [
        ["eigenvalues", f"{found.size:,}", ""],
        ["of them one by one", str(len(found.deflated)), ""],
        ["range", "", f"{number(low)} to {number(high)}"],
        ["trace", number(trace.value), between(trace.low, trace.high, trace.confidence)],
        ["error (Wasserstein-1)", "", between(None, found.wasserstein)],
        ["random starts", str(len(found.starts)), ""],
        *_made("", found.matvecs, found.kernel),
    ]
    note = "; ".join(filter(None, (CURVATURE, found.note)))
    return html_table(_title("SpectralDensity", found.converged), NAMED, rows, note)


@as_html.register
def _outliers(found: Outliers) -> str:
    rows = []
    for side in (found.upper, found.lower):
        shown = ", ".join(number(value) for value in side.values[:5].tolist()) + (", ..." if side.count > 5 else "")
        rows.append([side.side, str(side.count), shown, number(side.edge), between(side.low, side.high), side.status])
    header = ("side", "outliers", "eigenvalues", "edge of the bulk", "interval", "")
    return html_table(f"Outliers of {found.size:,} eigenvalues", header, rows, found.note)


@as_html.register
def _collapse(found: Collapse) -> str:
    rows = [
        [name, number(value) if math.isfinite(value) else found.reasons.get(name, "undefined")]
        for name, value in found.numbers.items()
    ]
    note = f"{len(found.labels)} classes, {found.samples:,} samples; exact"
    return html_table("Neural collapse", ("", "value"), rows, note)


@as_html.register
def _kernel(found: EmpiricalKernel) -> str:
    values = found.eigenvalues
    rows = [
        ["samples", f"{found.samples:,}"], ["outputs", str(found.outputs)],
        ["trace", number(float(values.sum()))], ["largest eigenvalue", number(float(values[-1]))],
        ["smallest eigenvalue", number(float(values[0]))],
        ["relative error", number(found.error, 2) if found.error else ""],
    ]  # fmt: skip
    rows = [row for row in rows if row[1]]
    return html_table(
        f"Tangent kernel, {found.form}", ("", "value"), rows, "; ".join([found.method, found.note]).rstrip("; ")
    )


@as_html.register
def _noise_scale(found: NoiseScale) -> str:
    rows = _scale_rows("noise scale [samples]", found)
    return html_table("NoiseScale", NAMED, rows, f"{found.noise.matvecs} draws")


@as_html.register
def _noise(found: NoiseStatistics) -> str:
    rows = _scale_rows("simple noise scale [samples]", found.simple)
    if found.curvature_weighted is not None:
        rows += _scale_rows("curvature-weighted noise scale [samples]", found.curvature_weighted)[:1]
    drawn = f"{found.draws} draws of {found.batch_size} of {found.samples} samples, {found.engine}"
    return html_table("Gradient noise", NAMED, rows, "; ".join(filter(None, (drawn, found.note))))


def _scale_rows(name: str, found: NoiseScale) -> list[list[str]]:
    value = number(found.value) if found.conclusive else "inconclusive"
    return [
        [name, value, between(found.low, found.high, found.confidence)],
        ["noise tr(Σ)", number(found.noise.value), between(found.noise.low, found.noise.high)],
        ["signal |G|²", number(found.signal.value), between(found.signal.low, found.signal.high)],
    ]


@as_html.register
def _classes(found: ClassStructure) -> str:
    trace, shares = found.trace, found.shares.items()
    rows = [["trace", number(trace.value), between(trace.low, trace.high, trace.confidence)]]
    rows += [[f"share {name}", number(share.value, 3), between(share.low, share.high)] for name, share in shares]
    return html_table(f"Class structure, {len(found.masses)} classes", NAMED, rows)


@as_html.register
def _line(found: Line) -> str:
    return _slice(f"Line along {found.axis.name}", f"{len(found.x):,} points", found)


@as_html.register
def _plane(found: Plane) -> str:
    names = " and ".join(axis.name for axis in found.axes)
    return _slice(f"Plane over {names}", f"{len(found.x)} x {len(found.y)} points", found)


def _slice(title: str, points: str, found: Line | Plane) -> str:
    rows = [["at the centre: loss", number(found.center), "", ""]]
    for name, values in found.values.items():
        finite = values[torch.isfinite(values)]
        ends = f"{number(float(finite.min()))} to {number(float(finite.max()))}" if len(finite) else ""
        lost = values.numel() - len(finite)
        rows.append([name, "", ends, f"{lost:,} of {values.numel():,}" if lost else ""])
    return html_table(
        title, ("", "value", "range", "not finite"), rows, f"{points}, {found.engine}, {found.seconds:.2g} s"
    )


@as_html.register
def _path(found: LossPath) -> str:
    rows = [
        ["barrier of the loss", number(found.barrier)], ["at t", number(found.position, 3)],
        ["loss at the ends", f"{number(float(found.loss[0]))}, {number(float(found.loss[-1]))}"],
        ["length", number(found.length)], ["points", str(len(found.t))],
    ]  # fmt: skip
    return html_table(f"Path, {found.kind}", ("", "value"), rows)


def _made(method: str, matvecs: int, kernel: str) -> list[list[str]]:
    rows = [["method", method, ""], ["products", str(matvecs), ""], ["kernel", kernel, ""]]
    return [row for row in rows if row[1]]


def _title(name: str, converged: bool) -> str:
    return name if converged else f"{name}, NOT converged"
