"""The ends of the curves, put to what was drawn before, are the curves of the whole."""

import random
from pathlib import Path
from typing import Any

import pytest

from drawn_everything import everything
from drawn_runs import hovering, meta
from losscope.probes import Record, Run
from losscope.viz.live.followed import FollowedRun
from losscope.viz.live.later import CONTINUED, SENT, later
from losscope.viz.page_figures import drawn

STEPS = range(0, 400, 10)


def followed(run: Run, records: list[Record]) -> FollowedRun:
    return FollowedRun(Path(), run.meta, list({record.key: record for record in records}.values()), 0)


def key(trace: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(trace.get(name) for name in ("name", "yaxis", "fillcolor", "meta"))


def joined(trace: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
    """What live.js does."""
    first, last = end["x"][0], end["x"][-1]
    x = trace["x"]
    before = len(x) if "fill" in trace else sum(each < first for each in x)
    after = before if "fill" in trace else sum(each <= last for each in x)
    return trace | {
        name: [*trace[name][:before], *end[name], *trace[name][after:]] for name in ("x", "y", "text") if name in trace
    }


def curves(run: Run, kind: str, player: str = "model") -> list[dict[str, Any]]:
    made = drawn(run, kind, player)
    return [] if made is None else [{name: t[name] for name in (*SENT, "fill") if name in t} for t in made[0]]


def grown(before: FollowedRun, fresh: list[Record], kind: str, place: int = 0) -> list[dict[str, Any]]:
    """The curves that the page has after `fresh`."""
    sent = {each["id"]: each["traces"] for each in later(before, fresh)}
    ends = {key(trace): trace for trace in sent.get(f"0-{place}-{kind}", [])}
    known = curves(before, kind, before.players[place])
    return [joined(trace, ends[key(trace)]) if key(trace) in ends else trace for trace in known]


def areas(trace: dict[str, Any]) -> float:
    """Of a band, whose outline may be in pieces: the area by trapezia; else 0."""
    if "fill" not in trace:
        return 0.0
    total, start = 0.0, 0
    points = list(zip(trace["x"], trace["y"], strict=True))
    for i, (x, _) in enumerate(points):
        if x is None:
            piece = points[start:i]
            total += abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(piece, [*piece[1:], piece[0]], strict=True))) / 2
            start = i + 1
    return total


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert key(mine) == key(other)
        if "fill" in other:
            assert areas(mine) == pytest.approx(areas(other), rel=1e-3)
        else:
            assert mine == other


@pytest.mark.parametrize("kind", CONTINUED)
@pytest.mark.parametrize("cut", [30, 39])
def test_every_figure_goes_on(kind: str, cut: int) -> None:
    run = everything(STEPS)
    at = STEPS[cut]
    before = followed(run, [r for r in run.records if r.step < at])
    whole = followed(run, run.records)
    # Verdicts and phases are those of before, as they are on the page.
    whole._known |= {("audit", "model"): before.audit("model"), ("phases", "model"): before.phases("model")}
    same(grown(before, [r for r in run.records if r.step >= at], kind), curves(whole, kind))


def test_a_probe_that_is_due_less_often_is_still_the_one_that_is_drawn() -> None:
    """Sharpness is that of its own probe where there is one, also while only probe stability goes on."""
    records = [r for r in hovering(300) if r.probe != "sharpness" or r.step % 100 == 0]
    run = FollowedRun(Path(), meta(model={}), [r for r in records if r.step < 250], 0)
    (curve,) = [
        t for t in grown(run, [r for r in records if r.step >= 250], "sharpness") if t.get("name") == "sharpness"
    ]
    assert curve["x"] == [0, 100, 200]


def test_steps_that_are_done_again_count_anew() -> None:
    """As after a resume from a checkpoint: what was measured after it stands until it is measured again."""
    records = [r for r in hovering(300) if r.probe == "sharpness"]
    run = FollowedRun(Path(), meta(model={}), records, 0)
    again = [Record(step, "model", "sharpness", value=1.0, values={"threshold": 20.0}) for step in (105, 115)]
    (curve,) = [t for t in grown(run, again, "sharpness") if t.get("name") == "sharpness"]
    assert curve["x"] == [*range(0, 101, 10), 105, 115, *range(120, 300, 10)]
    assert curve["y"][11:13] == [1.0, 1.0]


def test_several_players() -> None:
    records = [*hovering(200), *hovering(200, player="other")]
    random.Random(0).shuffle(records)
    facts = meta(model={}, other={})
    before = FollowedRun(Path(), facts, [r for r in records if r.step < 150], 0)
    found = grown(before, [r for r in records if r.step >= 150 and r.player == "other"], "sharpness", place=1)
    assert [t["x"][-1] for t in found if t.get("name") == "sharpness"] == [190]
    assert [t["x"][-1] for t in grown(before, [], "sharpness") if t.get("name") == "sharpness"] == [140]


def test_what_is_broken_or_new_waits_for_the_whole() -> None:
    run = everything(STEPS)
    before = followed(run, [r for r in run.records if r.probe == "sharpness"])
    assert later(before, []) == []
    odd = [Record(500, "model", "sharpness", value=float("nan")), Record(500, "nobody", "sharpness", value=1.0),
           Record(500, "model", "sharpness", status="error", reason="x")]  # fmt: skip
    assert all(set(each) == {"id", "traces"} for each in later(before, odd))
    same(grown(before, [r for r in run.records if r.probe == "spectrum"], "outliers"), [])
