"""The page on runs: one HTML document that needs nothing but itself, for the report and for the live page.

Figures are in it as SVG and readable without JavaScript. A script puts figures to hover over and to zoom in their
place, which it draws with plotly.js from the JSON in ``<script id="data">``. The page's policy lets nothing else run
and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from losscope.landscape import RunError
from losscope.landscape.errors import first_line
from losscope.probes import Criterion, Run
from losscope.probes.audit_json import run_audit_as_dict, strict
from losscope.probes.catalogue import CATALOGUE

from . import series, words
from .captions import CAPTIONS, DASHED, DRAWN, NARROW, WIDE, kinds
from .compare import QUANTITIES, compare, distinct_runs, overlaid, overlay, overlays
from .facts import player_facts, run_facts
from .figure import figure
from .names import run_names
from .page_figures import drawn
from .story import Sentence, story
from .svg import COLOURS, Glyphs, inline_svg

__all__ = ["data", "fragment", "page"]

MOST_ERRORS = 20
OVERLAY = {"wide": (8.6, 4.2), "narrow": (3.9, 4.4)}
"""Inches of figures of several runs together."""
CHAPTERS = {
    "training": "Training", "edge": "Edge of stability", "spikes": "Spikes", "changes": "What changed",
    "verdict": "Verdicts", "gaps": "What is missing", "cost": "Cost",
}  # fmt: skip
"""Of a story, in the order in which it is told."""
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


def page(runs: Sequence[Run], *, interactive: bool = True, live: bool = False) -> str:
    """The whole HTML of a page on one run, or on several.

    Args:
        runs: what it is on.
        interactive: whether it has a script, which draws figures to hover over where plotly is installed; without,
            the page has no script at all.
        live: whether it is served and fed while a run is being written: it then may ask its own server, and loads
            ``live.js`` from beside itself, which calls ``losscope.update(data, fragment)``.

    Returns:
        The document. Its policy (``Content-Security-Policy``) admits its own scripts by their hash, no others, and
        no request; with ``live`` also scripts of its own server and requests to it.
    """
    scripts = [script for script in (_plotly(), _resource("report.js")) if script] if interactive else []
    runs, given = distinct_runs(runs), len(runs)
    several, glyphs = len(runs) > 1, Glyphs()
    names = run_names(runs)
    described = [
        _described(run, index, name=name, level=3 if several else 2, glyphs=glyphs)
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    compared = _compared(runs, glyphs) if several else None
    return _render(
        "report.html.j2", runs=described, compared=compared, repeated=given - len(runs), title=" – ".join(names),
        interactive=interactive, live=live, plotly=len(scripts) == 2, glyphs=Markup(glyphs.element()),
        scripts=[Markup(script) for script in scripts], policy=_policy(scripts, live=live), colours=COLOURS,
        style=Markup(_resource("report.css")), data=Markup(data(runs)) if interactive else "",
    )  # fmt: skip


def data(runs: Sequence[Run]) -> str:
    """What the page's script draws: strict JSON that no HTML parser can mistake for markup.

    Of each run its name, ``meta`` and ``audit``, and its ``figures``: each with ``id``, ``place`` (the part of the page
    it belongs to), ``title``, ``caption``, and plotly's ``traces`` and ``layout``, whose words are inert and whose
    colours are names of the page's own. ``figures`` beside ``runs`` are those of several runs together.
    """
    runs = distinct_runs(runs)
    content = {
        "figures": [_together(runs, name) for name in overlays(runs)] if len(runs) > 1 else [],
        "runs": [
            {
                "name": run.name, "meta": run.meta, "audit": run_audit_as_dict(run),
                "figures": [made for i, name in enumerate(run.players) for made in _interactive(run, name, index, i)],
            }
            for index, run in enumerate(runs)
        ]
    }  # fmt: skip
    text = json.dumps(strict(content), allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def fragment(run: Run) -> str:
    """The parts of a run's page that are text, each in an element with ``data-fragment``.

    The page's script puts each in the place of its element of the same name: ``losscope.update(data, fragment)``.
    """
    return _render("fragment.html.j2", run=_described(run, 0))


def _render(name: str, **context: Any) -> str:
    environment = Environment(
        loader=PackageLoader("losscope.viz"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda said: words.shown(said) if type(said) is str else said,
    )  # fmt: skip
    environment.filters |= {"number": words.number, "interval": words.interval}
    environment.globals |= {"verdict": words.verdict, "symbol": _symbol, "rests_on": words.rests_on}
    return environment.get_template(name).render(**context)


# --------------------------------------------------------------------------- what is on the page


def _described(
    run: Run, index: int, *, name: str | None = None, level: int = 2, glyphs: Glyphs | None = None
) -> dict[str, Any]:
    """A run for the templates; ``level`` is that of its headings; with its figures where there are glyphs for them."""
    inner = level + (len(run.players) > 1)
    players = [_player(run, name, f"{index}-{i}", glyphs) for i, name in enumerate(run.players)]
    return {
        "name": name or run.name, "key": str(index), "level": level, "facts": run_facts(run), "cost": run.cost(),
        "players": [player | {"level": inner} for player in players],
    }  # fmt: skip


def _player(run: Run, name: str, key: str, glyphs: Glyphs | None) -> dict[str, Any]:
    audit = run.audit(name)
    said = words.headline(audit)
    applies, barred = words.split(audit)
    return {
        "name": name, "key": key, "audit": audit, "headline": said, "applies": applies,
        "barred": words.together(barred), "evidence": words.evidence(audit), "facts": player_facts(run, name),
        "preconditions": sorted(audit.preconditions, key=lambda each: (each.holds is not False, each.holds is True)),
        "problems": _problems(run, name), "story": _told(story(run, name)),
        "figures": []
        if glyphs is None
        else [_static(run, name, key, kind, f"{said.title}: {said.sentence}", glyphs) for kind in kinds(run, name)],
    }  # fmt: skip


def _told(sentences: Sequence[Sentence]) -> list[tuple[str, list[Sentence]]]:
    """A story by what its sentences are about."""
    return [(title, some) for about, title in CHAPTERS.items() if (some := [s for s in sentences if s.about == about])]


def _static(run: Run, name: str, key: str, kind: str, verdict: str, glyphs: Glyphs) -> dict[str, Any]:
    """A figure as SVG, for wide and for narrow screens; why there is none where it cannot be drawn."""
    shown = {"id": f"{key}-{kind}", "caption": _caption(run, name, kind)}
    sizes = {"wide": WIDE[kind], "narrow": NARROW[kind]}
    said = (f"{_title(kind)} of {name}", f"{CAPTIONS[kind]} {verdict}")
    try:
        made = {width: figure(run, kind, player=name, size=size) for width, size in sizes.items()}
        for each in made.values():
            each.suptitle("")  # the page says whose figure it is
        return shown | _drawings(made, f"{key}-{kind}", said, glyphs)
    except RunError as error:  # e.g. its arrays are gone
        return shown | {"missing": str(error)}
    except Exception as error:  # one figure that fails must not take the report with it
        return shown | {"missing": f"{type(error).__name__}: {first_line(error)}"}


def _drawings(made: dict[str, Figure], key: str, said: tuple[str, str], glyphs: Glyphs) -> dict[str, Markup]:
    """Figures as SVG, by whether they are for wide or for narrow screens."""
    title, words = said
    return {
        width: Markup(inline_svg(each, prefix=f"fig-{key}-{width}", title=title, description=words, glyphs=glyphs))
        for width, each in made.items()
    }


def _compared(runs: Sequence[Run], glyphs: Glyphs) -> dict[str, Any]:
    """The runs side by side, for the templates."""
    found = []
    for name in overlays(runs):
        made = {width: overlay(runs, name, size) for width, size in OVERLAY.items()}
        key, caption = f"compare-{name.replace('/', '-')}", QUANTITIES[name]
        said = (f"{_title(name)} of all runs", caption)
        found.append({"id": key, "caption": caption} | _drawings(made, key, said, glyphs))
    return {"table": compare(runs), "figures": found}


def _together(runs: Sequence[Run], name: str) -> dict[str, Any]:
    traces, layout = overlaid(runs, name)
    return {
        "id": f"compare-{name.replace('/', '-')}", "place": "compare", "title": f"{_title(name)} of all runs",
        "caption": QUANTITIES[name], "traces": traces, "layout": layout,
    }  # fmt: skip


def _interactive(run: Run, name: str, index: int, place: int) -> list[dict[str, Any]]:
    key, found = f"{index}-{place}", []
    for kind in kinds(run, name):
        try:
            made = drawn(run, kind, name)
        except Exception:  # the static one stays, which tells of what failed for it as well
            continue
        if made is not None:
            found.append(
                {
                    "id": f"{key}-{kind}", "place": key, "title": f"{_title(kind)} of {name}",
                    "caption": _caption(run, name, kind, DRAWN), "traces": made[0], "layout": made[1],
                }
            )  # fmt: skip
    return found


def _title(kind: str) -> str:
    return kind.replace("_", " ").capitalize()


def _caption(run: Run, name: str, kind: str, own: Mapping[str, str] = CAPTIONS) -> str:
    """What is said under a figure; of those that have words of their own, these."""
    course = words.course(run.phases(name)) if kind == "stability" else ""
    compared = kind == "sharpness" and np.isfinite(series.sharpness(run, name).threshold).any()
    said = own.get(kind, CAPTIONS[kind])
    return said + (f" Phases: {course}." if course else "") + (f" {DASHED}" if compared else "")


def _symbol(line: Criterion) -> str:
    entry = CATALOGUE.get(line.name)
    return Markup(SYMBOLS[line.name]) if entry is not None and entry.symbol == line.symbol else line.symbol


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


# --------------------------------------------------------------------------- scripts


def _resource(name: str) -> str:
    return (resources.files("losscope.viz") / "templates" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """plotly.js as plotly's own package brings it; empty where that is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return ""
    # Inside a string of JavaScript "<\/script" is the same, and an HTML parser does not end the element there.
    return re.sub(r"</(?=script)", r"<\\/", str(get_plotlyjs()), flags=re.IGNORECASE).replace("<!--", "<\\!--")


def _policy(scripts: Sequence[str], *, live: bool) -> str:
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    rules = [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data: blob:" if scripts else "img-src data:",  # plotly saves a picture by way of a blob
        "base-uri 'none'",
        "form-action 'none'",
    ]
    if hashes:
        rules.append(f"script-src {' '.join(hashes)}" + (" 'self'" if live else ""))
    if live:
        rules.append("connect-src 'self'")
    return "; ".join(rules)
