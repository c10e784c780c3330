"""The page that report and live page share: its parts, its policy, and what its script is given."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from drawn_everything import everything as of_all_probes
from drawn_runs import diverging, hovering, minibatch, run_of
from drawn_spectra import evolving
from losscope.probes import Record, Run
from losscope.viz.captions import CAPTIONS, NARROW, WIDE
from losscope.viz.captions import DRAWN as CAPTIONS_DRAWN
from losscope.viz.figure import FIGURES
from losscope.viz.page import _plotly, data, fragment, page
from losscope.viz.page_figures import DRAWN, drawn
from losscope.viz.traces import band, curve, inert, layout, numbers
from read_page import HOSTILE, Page

PROBES = ("sharpness", "stability", "trace", "spectrum", "neural_collapse", "tangent_kernel", "gradient_noise",
          "trajectory", "layer_traces")  # fmt: skip


@pytest.fixture(autouse=True)
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static figures that are empty: to draw them takes nearly all of the time."""
    monkeypatch.setattr("losscope.viz.page.figure", lambda run, kind, *, player, size: Figure(figsize=size))


def everything(value: float = 1.0, steps: int = 4, player: str = "model") -> Run:
    """All probes, with one number everywhere."""
    ends = ("", "_low", "_high")
    names = [
        "threshold", "sharpness", "loss", "outliers", "bulk_edge", "lambda_2", "nc1", "nc4", "equinorm", "conv/nc1",
        "centred", "alignment", "velocity", "covariance_trace", "gradient_square", "norm_50", "norm_25", "norm_75",
        "curvature_weighted", "batch_size", "path_length", "first/trace", "two_over_lr", "trace",
    ]  # fmt: skip
    values: dict[str, float | None] = {f"{name}{end}": value for name in names for end in ends}
    records = [
        Record(5 * t, player, probe, lr=value, value=value, low=value, high=value, values=dict(values))
        for t in range(steps) for probe in PROBES
    ]  # fmt: skip
    records += [Record(t, player, "log", values={"loss": value}) for t in range(steps)]
    return run_of(records, **{player: {}})


def strings(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a figure, with the key it is under."""
    if isinstance(content, dict):
        for name, each in content.items():
            yield from strings(each, name)
    elif isinstance(content, list):
        for each in content:
            yield from strings(each, key)
    elif isinstance(content, str):
        yield key, content


def figures(text: str) -> list[dict[str, Any]]:
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    return [figure for run in content["runs"] for figure in run["figures"]]


# --------------------------------------------------------------------------- the contract with the live page


def test_every_fragment_has_its_place() -> None:
    run = run_of([*hovering(300, player="G"), *minibatch(300, player="D")], G={}, D={"batch_size": 32})
    whole, part = Page(page([run])), Page(fragment(run))
    names = part.attribute("data-fragment")
    assert sorted(names) == sorted(whole.attribute("data-fragment")) and len(names) == len(set(names)) == 10
    assert not part.tags("script") and not part.tags("svg")
    assert set(part.attribute("id")) <= set(whole.attribute("id"))


def test_every_figure_has_its_place() -> None:
    spectral = evolving(4)
    run = Run.from_records(spectral.meta, [*spectral.records, *hovering(200)], spectral._arrays)
    whole = Page(page([run]))
    made = figures(data([run]))
    assert {figure["place"] for figure in made} == set(whole.attribute("data-figures"))
    assert {f"figure-{figure['id']}" for figure in made} <= set(whole.attribute("id"))
    assert [figure["id"] for figure in made] == [
        f"0-0-{kind}" for kind in ("sharpness", "stability", "spectrum", "spectrum_over_time", "outliers")
    ]
    assert whole.data == json.loads(data([run]))


def test_a_live_page_asks_its_own_server_only() -> None:
    source = page([run_of(hovering(100))], live=True)
    policy = Page(source).tags("meta")[1]["content"] or ""
    assert re.search(r"script-src 'sha256-\S+' 'sha256-\S+' 'self'(;|$)", policy)
    assert "connect-src 'self'" in policy and "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert {"src": "live.js", "defer": None} in Page(source).tags("script")
    assert "live.js" not in page([run_of(hovering(100))])


def test_without_plotly_it_is_static_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("losscope.viz.page._plotly", lambda: "")
    whole = Page(page([run_of(hovering(100))]))
    (line,) = [text for text in whole.text["p"] if "plotly" in text]
    assert 'pip install "losscope[plotly]"' in line
    assert len(whole.tags("script")) == 2 and len(whole.source) < 500_000
    assert "plotly was not installed" not in page([run_of(hovering(100))], interactive=False)


def test_the_script_of_plotly_cannot_end_its_element() -> None:
    text = _plotly()
    assert len(text) > 1e6 and "</script" not in text.lower() and "<!--" not in text


def test_a_figure_that_fails_does_not_take_the_page_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: Run, kind: str, **options: Any) -> Figure:
        if kind == "stability":
            raise ZeroDivisionError("on <purpose>\nand more")
        return Figure(figsize=options["size"])

    monkeypatch.setattr("losscope.viz.page.figure", fails)
    monkeypatch.setattr("losscope.viz.page.drawn", lambda run, kind, player: fails(run, kind, size=(1, 1)) and None)
    whole = Page(page([run_of(hovering(100))]))
    assert "This figure cannot be drawn: ZeroDivisionError: on <purpose>." in whole.words
    assert len(whole.figures) == 2 and len(whole.tags("figure")) == 2


def test_each_figure_has_a_caption_and_sizes() -> None:
    assert set(CAPTIONS) == set(WIDE) == set(NARROW) == set(DRAWN)
    assert set(CAPTIONS) <= set(FIGURES)


# --------------------------------------------------------------------------- what the script is given


@pytest.mark.parametrize("value", [1.0, 0.0, -2.0, math.nan, math.inf, -math.inf, 1e300, 1e-300])
def test_odd_numbers_are_strict_json(value: float) -> None:
    found = figures(data([everything(value)]))
    if value == 1.0:
        kinds = {figure["id"].removeprefix("0-0-") for figure in found}
        assert kinds == {"sharpness", "stability", "outliers", "collapse", "tangent_kernel", "gradient_noise", "layers"}
    assert fragment(everything(value))


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_few_records(steps: int) -> None:
    run = everything(steps=steps)
    assert fragment(run) and (figures(data([run])) or steps == 0)
    assert figures(data([run_of(diverging())]))
    empty = Run.from_records({"players": {}}, [])
    assert figures(data([empty])) == [] and "How to read" in page([empty]) and fragment(empty)


def test_one_measurement_has_one_tick_and_no_share_of_a_variance() -> None:
    run = of_all_probes([7])
    for kind in ("sharpness", "stability", "tangent_kernel", "layers", "trajectory"):
        traces, arranged = drawn(run, kind, "model") or ([], {})
        assert traces and "nan" not in json.dumps([traces, arranged]).lower()
        if kind != "trajectory":
            assert arranged["xaxis"]["tickvals"] == [7]
    traces, arranged = drawn(of_all_probes([7, 8, 10]), "sharpness", "model") or ([], {})
    assert arranged["xaxis"]["nticks"] == 4  # 7, 8, 9, 10


def test_a_panel_with_nothing_to_draw_says_so() -> None:
    traces, arranged = drawn(of_all_probes([7]), "tangent_kernel", "model") or ([], {})
    (word,) = [trace for trace in traces if trace["mode"] == "text"]
    assert word["text"] == ["nothing to draw"] and word["yaxis"] == "y2"
    assert arranged["yaxis2"]["showticklabels"] is False and "showticklabels" not in arranged["yaxis"]
    assert not [t for t in (drawn(of_all_probes([7, 8]), "tangent_kernel", "model") or ([],))[0] if t["mode"] == "text"]


def test_captions_speak_of_what_plotly_draws() -> None:
    said = {figure["id"].removeprefix("0-0-"): figure["caption"] for figure in figures(data([of_all_probes([7, 8])]))}
    assert set(CAPTIONS_DRAWN) <= set(said)
    assert not [word for word in ("Below: distance", "Hollow", "Grey and dotted") if word in " ".join(said.values())]
    assert "Below: distance" in CAPTIONS["trajectory"]


def test_layers_not_above_zero_are_grey_and_signs_have_the_colours_of_the_still_figure() -> None:
    ends = (("", 0.0), ("_low", -0.1), ("_high", 0.1))

    def of(*rows: float) -> list[dict[str, Any]]:
        values = {f"{i}/trace{end}": row + off for i, row in enumerate(rows) for end, off in ends}
        run = run_of([Record(0, "model", "layer_traces", value=sum(rows), values=values)])
        return (drawn(run, "layers", "model") or ([], {}))[0]

    grey, heat, dots = of(5.0, -0.05)
    assert grey["z"] == [[None], [1.0]] and heat["z"][1] == [None] and dots["y"] == [1]
    _, arranged = drawn(of_all_probes([0, 5]), "layers", "model") or ([], {})
    assert arranged["yaxis"]["range"][1] == -0.5 and "autorange" not in arranged["yaxis"]  # dots would widen it
    (heat,) = of(5.0, -5.0)
    assert heat["z"][0][0] > 0 > heat["z"][1][0]
    assert [colour for _, colour in heat["colorscale"]] == ["--purple", "--paper", "--orange"]  # as in PuOr_r


def test_plotly_knows_all_that_it_is_told() -> None:
    """Its own checks of names and values, once the page's colours are colours."""
    graph = pytest.importorskip("plotly.graph_objects")
    spectral = evolving(4)
    runs = [Run.from_records(spectral.meta, [*spectral.records, *hovering(200)], spectral._arrays), everything()]
    for figure in figures(data(runs)):
        text = re.sub(r'"--\w+(/[\d.]+)?"', '"#123456"', json.dumps([figure["traces"], figure["layout"]]))
        traces, arranged = json.loads(text)
        assert len(graph.Figure(traces, arranged).data) == len(traces) > 0, figure["id"]


def test_words_of_a_run_are_inert_in_figures() -> None:
    records = [*everything(player=HOSTILE).records]
    for record in records:
        record.values.update({f"{HOSTILE}/nc1": 0.5, f"{HOSTILE}/trace": 2.0})
    records.append(Record(3, HOSTILE, "log", values={HOSTILE: 1.0}))
    run = run_of(records, **{HOSTILE: {"threshold_formula": HOSTILE}})
    text = data([run])
    assert "<" not in text and ">" not in text and "&" not in text
    ours = re.compile(r"</?(br|sub|sup|extra)>")
    seen = 0
    for figure in figures(text):
        for key, said in strings([figure["traces"], figure["layout"]]):
            assert "<" not in ours.sub("", said) and "$" not in said, (key, said)
            seen += "&lt;/script&gt;" in said
    assert seen >= 3  # the formula, a layer of each kind
    for figure in figures(text):  # these are put where no markup is read
        assert figure["title"].endswith(f" of {HOSTILE}")


def test_the_numbers_are_those_of_the_records() -> None:
    run = run_of(hovering(400))
    traces, arranged = drawn(run, "stability", "model") or ([], {})
    (line,) = [trace for trace in traces if trace.get("name", "").startswith("lambda_max(H)")]
    expected = {r.step: r.value for r in run.select("stability")}
    assert dict(zip(line["x"], line["y"], strict=True)) == pytest.approx(expected, rel=1e-5)
    phases = [shape for shape in arranged["shapes"] if shape["type"] == "rect" and shape["xref"] == "x"]
    assert [(shape["x0"], shape["x1"]) for shape in phases] == [(p.first, p.last) for p in run.phases()]


# --------------------------------------------------------------------------- curves


def test_curves_keep_gaps_and_extremes() -> None:
    steps, values = np.arange(100_000), np.sin(np.arange(100_000) / 7)
    values[[500, 77_777]] = [np.nan, 9.0]
    (line,) = curve(steps, values, "wave", "blue")
    assert len(line["x"]) <= 2002 and max(v for v in line["y"] if v is not None) == 9.0
    (short,) = curve(np.arange(3), np.array([1.0, np.nan, 2.0]), "gap", "blue")
    assert short["y"] == [1.0, None, 2.0] and short["mode"] == "lines+markers"
    assert curve(steps[:3], np.full(3, np.nan), "nothing", "blue") == []


def test_bands_are_where_both_ends_are_known() -> None:
    low, high = np.array([0.0, 1, np.nan, 3, 4, 5]), np.array([1.0, 2, 3, 4, np.nan, 6])
    (area,) = band(np.arange(6), low, high, "blue")
    assert area["x"] == [0, 1, 1, 0, None] and area["y"] == [0.0, 1.0, 2.0, 1.0, None]
    assert band(np.arange(2), np.array([0.0, np.nan]), np.array([1.0, 2.0]), "blue") == []


def test_panels_share_the_height() -> None:
    made = layout([{"title": "a\nb"}, {"title": "<c>", "type": "log"}], (2, 1))
    assert made["yaxis"]["domain"][0] > made["yaxis2"]["domain"][1] and made["yaxis2"]["domain"][0] == pytest.approx(0)
    assert made["yaxis"]["title"]["text"] == "a<br>b" and made["yaxis2"]["title"]["text"] == "&lt;c&gt;"
    assert made["xaxis"]["anchor"] == "y2" and made["meta"]["steps"]


def test_numbers_and_words() -> None:
    assert numbers([1 / 3, math.nan, math.inf, 1e-300]) == [0.333333, None, None, 1e-300]
    assert inert("x" * 500).endswith("…") and len(inert("x" * 500)) == 120
    assert inert("costs $5 & <b>") == "costs &#36;5 &amp; &lt;b&gt;"
