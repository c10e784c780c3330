"""The page: self-contained, escaped, complete."""

import base64
import dataclasses
import hashlib
import math
import re
from collections import Counter
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from drawn_runs import AMBIGUOUS_NOTE, LONG_NOTE, diverging, hovering, meta, minibatch, noting, run_of, write
from drawn_spectra import evolving
from losscope.landscape import RunError
from losscope.probes import Assumption, Record, Run
from losscope.probes.audit_json import audit_as_dict
from losscope.viz import report
from losscope.viz.cli import app
from losscope.viz.words import together
from read_page import HOSTILE, Page


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages whose figures are empty: to draw them takes nearly all of the time."""
    monkeypatch.setattr("losscope.viz.page.figure", lambda run, kind, *, player, size: Figure(figsize=size))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("runs") / "mini"
    write(folder, minibatch(), meta(model={"batch_size": 32}))
    path = report(folder)
    assert path == folder / "report.html" and path.stat().st_size < 8e6
    assert [each.name for each in folder.iterdir() if "tmp" in each.name] == []
    return Page(path)


def test_refers_to_nothing_outside(page: Page) -> None:
    assert "http://" not in page.markup and "https://" not in page.markup and "//cdn" not in page.markup
    assert not re.search(r"@import|url\((?!#)", page.markup)
    assert page.attribute("src") == []
    assert all(ref.startswith("#") for ref in page.attribute("href"))
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "object", "embed", "base")]


def test_its_own_scripts_run_and_no_others(page: Page, tmp_path: Path) -> None:
    assert page.tags("script") == [{"type": "application/json", "id": "data"}, {}, {}]
    rules = dict(rule.split(" ", 1) for rule in page.tags("meta")[1]["content"].split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert rules.pop("style-src") == "'unsafe-inline'" and rules.pop("img-src") == "data: blob:"
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]]
    assert rules == {"script-src": " ".join(f"'sha256-{each}'" for each in hashes)}


def test_static_has_no_script(tmp_path: Path, blank: None) -> None:
    page = Page(report(run_of(minibatch(300)), tmp_path / "page.html", static=True))
    assert page.tags("script") == [] and "script-src" not in page.source
    assert len(page.figures) == 4 and "Not excluded" in page.words
    assert len(page.source) < 1e6


def test_ids_are_unique_and_references_resolve(page: Page) -> None:
    ids = Counter(page.attribute("id"))
    assert [each for each, count in ids.items() if count > 1] == []
    targets = {ref[1:] for ref in page.attribute("href")} | set(re.findall(r"url\(#([^)]+)\)", page.markup))
    named = {each for value in page.attribute("aria-labelledby") for each in value.split()}
    assert targets | named <= set(ids)
    assert len(targets) > 10


def test_figures_have_names_and_take_the_page_s_colours(page: Page) -> None:
    assert len(page.figures) == 4  # sharpness and stability, each wide and narrow
    assert sum("Sharpness of model" in text for text in page.text["title"]) == 2
    body = page.source[page.source.index("<body>") : page.source.index('id="data"')]
    assert not re.search(r"#[0-9a-f]{6}\b", body, re.IGNORECASE)
    rules = re.findall(r"<style>(.*?)</style>", body, re.DOTALL)
    assert all(rule.lstrip().startswith("#fig-0-") for rule in rules)


def test_says_the_facts_and_the_verdict(page: Page) -> None:
    for words in (
        "Not excluded", "SGD", "6,310 parameters", "1,000 samples", "0 to 2,999", "7.5 s of 30 s (25 %)",
        "torch 2.13.0", "0123456789ab, with uncommitted changes", "? not checked", "✓ met",
        "does not apply", "Evidence",
    ):  # fmt: skip
        assert words in page.words, words
    assert "safe" not in page.words.lower()


def test_the_audit_table_is_the_audit(page: Page, tmp_path: Path) -> None:
    audit = run_of(minibatch(), model={"batch_size": 32}).audit()
    badges = [attrs["title"] for _, attrs in page.elements if "badge" in (attrs.get("class") or "")]
    assert badges == [c.verdict for c in audit.criteria if c.verdict != "NOT_APPLICABLE"] and badges
    assert all(c.reason in page.words for c in audit.criteria)
    below = [each.strip() for each in page.text["li"] if each.strip().endswith("does")]
    assert below == [line for line in together(audit.criteria) if "not measured" in line]


def test_the_data_is_the_run(page: Page) -> None:
    (found,) = page.data["runs"]
    assert found["meta"]["players"]["model"]["batch_size"] == 32
    run = run_of(minibatch(), model={"batch_size": 32})
    audited = found["audit"]["players"]["model"]
    (phase,) = audited.pop("phases")
    assert audited == audit_as_dict(run.audit())
    assert f"Phases: progressive sharpening (steps {phase['first']:,} to {phase['last']:,})." in page.words
    sharpness, _ = found["figures"]
    measured = next(trace for trace in sharpness["traces"] if trace.get("name") == "sharpness")
    assert measured["x"] == [r.step for r in run.select("sharpness")]
    assert measured["y"] == pytest.approx([r.value for r in run.select("sharpness")], rel=1e-5)


def test_preconditions_and_evidence(tmp_path: Path, blank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not met first; and words of the run stay words."""
    found = (Assumption("squared loss", True), Assumption(HOSTILE, False), Assumption("same data", None))
    run = run_of(hovering(300))
    audit = dataclasses.replace(run.audit(), preconditions=found, observations=(HOSTILE, "the midpoint is flatter"))
    monkeypatch.setattr(Run, "audit", lambda *_: audit)
    page = Page(report(run, tmp_path / "page.html"))
    said = [" ".join(each.split()) for each in page.text["li"]]
    order = [f"✗ not met: {HOSTILE}", "? not checked: same data", "✓ met: squared loss"]
    assert [each for each in said if each in order] == order
    assert "The midpoint is flatter." in said and "img" not in {tag for tag, _ in page.elements}


def test_spectra_have_figures_of_their_own(tmp_path: Path) -> None:
    run = evolving()
    page = Page(report(Run.from_records(run.meta, run.records, run._arrays), tmp_path / "page.html"))
    assert len(page.figures) == 10  # three more, each wide and narrow
    assert "Spectrum over time of model" in page.text["title"]
    images = [attrs["href"] for tag, attrs in page.elements if tag == "image"]
    assert len(images) >= 2 and all(image.startswith("data:image/png;base64,") for image in images)
    assert "http://" not in page.markup and page.attribute("src") == []
    assert max(Counter(page.attribute("id")).values()) == 1
    assert len(page.markup) < 1_000_000


def test_spectra_that_all_failed_are_said_to(tmp_path: Path, blank: None) -> None:
    page = Page(report(evolving(3, failed=(0, 1, 2)), tmp_path / "page.html"))
    assert "RuntimeError: out of memory" in page.words


def test_arrays_that_are_gone(tmp_path: Path) -> None:
    """As where a folder was copied without them: that figure says so, and the rest is there."""
    spectral = evolving(3)
    write(tmp_path / "run", [*spectral.records, *hovering(100)])
    page = Page(report(tmp_path / "run"))
    assert "This figure cannot be drawn: " in page.words
    assert len(page.figures) == 8 and [figure["id"] for figure in page.data["runs"][0]["figures"]] == [
        "0-0-sharpness", "0-0-stability", "0-0-outliers"
    ]  # fmt: skip


def test_hostile_words_stay_words(tmp_path: Path, blank: None) -> None:
    records = [*diverging(), Record(5, HOSTILE, "sharpness", status="error", reason=HOSTILE)]
    records += [Record(t, HOSTILE, HOSTILE, value=1.0, values={HOSTILE: math.nan}) for t in range(3)]
    description = meta(**{"model": {"threshold_formula": HOSTILE, "optimizer": HOSTILE}, HOSTILE: {"model": HOSTILE}})
    description |= {"reason": HOSTILE, "status": "failed", "git": {"commit": HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    folder = tmp_path / "<b>run & co"
    write(folder, records, description)
    page = Page(report(folder))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "b>run"} and len(page.tags("script")) == 3
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert "<b>run & co" in page.words and HOSTILE in page.words
    assert page.data["runs"][0]["meta"]["reason"] == HOSTILE
    assert "<" not in page.scripts[0]
    names = [trace.get("name", "") for figure in page.data["runs"][0]["figures"] for trace in figure["traces"]]
    assert not [name for name in names if "<" in name] and any("&lt;/script&gt;" in name for name in names)


def test_a_diverged_run_says_so(tmp_path: Path, blank: None) -> None:
    page = Page(report(run_of(diverging()), tmp_path / "page.html"))
    assert "The training loss was not finite at 170 of 500 steps, first at step 330" in page.words
    assert "RuntimeError: out of memory" in page.words and "Recorded errors" in page.words
    assert "Above the edge" in page.words


def test_what_the_products_were(tmp_path: Path, blank: None) -> None:
    page = Page(report(run_of(noting(hovering(300), AMBIGUOUS_NOTE)), tmp_path / "ambiguous.html"))
    assert f"Note: {AMBIGUOUS_NOTE}." in page.words
    assert page.attribute("title")[0] == "INCONCLUSIVE"
    assert "The loss's Hessian is ambiguous: double backward gives v'Hv = 1.0637, differences" in page.words
    records = noting(hovering(300), LONG_NOTE, "finite_difference")
    page = Page(report(run_of(records, model={"kernel": "auto"}), tmp_path / "differences.html"))
    assert f"Note: {LONG_NOTE}." in page.words
    assert "finite difference" in page.text["dd"]
    assert "Recorded errors" not in page.words
    page = Page(report(run_of(records, model={"kernel": "finite_difference"}), tmp_path / "asked.html"))
    assert "finite difference (asked for)" in page.text["dd"]
    plain = Page(report(run_of(hovering(300)), tmp_path / "plain.html"))
    assert "Note: " not in plain.words
    assert "retained" in plain.text["dd"]
    hostile = Page(report(run_of(noting(hovering(300), HOSTILE)), tmp_path / "hostile.html"))
    assert HOSTILE in hostile.words and "img" not in {tag for tag, _ in hostile.elements}


def test_every_player(tmp_path: Path, blank: None) -> None:
    run = run_of([*hovering(300, player="G"), *minibatch(300, player="D")], G={}, D={"batch_size": 32})
    page = Page(report(run, tmp_path / "page.html"))
    assert [t for t in page.text["h2"] if t.strip()][:2] == ["G", "D"]
    assert len(page.figures) == 8
    assert max(Counter(page.attribute("id")).values()) == 1


def test_a_run_that_says_nothing(tmp_path: Path, blank: None) -> None:
    page = Page(report(Run.from_records({"players": {"model": {}}}, []), tmp_path / "page.html"))
    assert "No verdict" in page.words and "running, or killed" in page.words


def test_long_logs_are_thinned_out_in_the_data(tmp_path: Path, blank: None) -> None:
    records = [Record(t, "model", "log", values={"loss": 1.0 / (1 + t)}) for t in range(50_000)]
    page = Page(report(run_of(records), tmp_path / "page.html"))
    (sharpness,) = page.data["runs"][0]["figures"]
    assert [len(trace["x"]) < 2100 for trace in sharpness["traces"] if trace["mode"] != "text"] == [True]
    assert len(page.source) < 6_000_000


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    run = run_of([])
    with pytest.raises(RunError, match="in memory"):
        report(run)
    with pytest.raises(RunError, match="is a folder"):
        report(run, tmp_path)
    with pytest.raises(RunError, match="cannot be written"):
        report(run, tmp_path / "missing" / "page.html")
    with pytest.raises(RunError, match="no such folder"):
        report(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "no such folder"), ("file", "is a file; a run is a folder"), ("notrun", "is not a losscope run"),
        ("newer", "cannot be read: the run was written with record schema 2"),
        ("newest", "was written in format 9, this losscope reads up to 1; update losscope"),
    ],
)  # fmt: skip
def test_what_is_no_run_of_this_version(name: str, said: str, tmp_path: Path) -> None:
    """Told in one line that names the folder, with exit code 2, and no page is left."""
    good = write(tmp_path / "good", hovering(50)).path
    (tmp_path / "file").write_text("words")
    (tmp_path / "notrun").mkdir()
    for folder in ("newer", "newest"):
        write(tmp_path / folder, hovering(50))
    records = tmp_path / "newer" / "records.jsonl"
    records.write_text(records.read_text().replace('"v":1', '"v":2', 1))
    about = tmp_path / "newest" / "meta.json"
    about.write_text(about.read_text().replace('"v": 1', '"v": 9', 1))
    for given in ([tmp_path / name], [good, tmp_path / name]):
        done = CliRunner().invoke(app, ["report", *map(str, given), "--out", str(tmp_path / "page.html")])
        assert done.exit_code == 2 and done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("losscope: ") and said in line and str(tmp_path / name) in line
    assert not list(tmp_path.rglob("*.html"))


def test_an_older_page_is_replaced(tmp_path: Path, blank: None) -> None:
    (tmp_path / "page.html").write_text("old")
    assert "old" not in report(run_of([]), tmp_path / "page.html").read_text()[:3]
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_words_cannot_turn_round_what_follows_nor_fail_to_be_written(tmp_path: Path, blank: None) -> None:
    """Marks of direction, controls and halves of surrogate pairs; what is said of one reason stays short."""
    odd = "a\u202eb\x00c\ud800d\x1b[2J"
    records = [*hovering(60, player=odd), Record(70, odd, odd, status="error", reason=odd + "y" * 5000)]
    source = report(run_of(records, **{odd: {"model": odd}}), tmp_path / "page.html", static=True).read_text("utf-8")
    assert not re.search("[\u202e\x00\x1b\ufffd]", source) and "a·b·c·d·[2J" in source
    (story,) = re.findall(r"Probe a·b·c·d·\[2J failed.*", source)
    assert len(story) < 400


def test_what_a_single_measurement_rests_on_is_said(tmp_path: Path, blank: None) -> None:
    page = report(run_of(hovering(1)), tmp_path / "page.html", static=True).read_text("utf-8")
    assert page.count("One measurement, at step 0.") == 2  # beside the verdict, and over the table


def test_a_caption_speaks_of_a_threshold_only_where_one_is_drawn(tmp_path: Path, blank: None) -> None:
    drawn = report(run_of(hovering(60)), tmp_path / "a.html", static=True).read_text("utf-8")
    bare = [dataclasses.replace(r, values={}) for r in hovering(60) if r.probe == "sharpness"]
    assert "Dashed: the threshold" in drawn
    assert "Dashed: the threshold" not in report(run_of(bare), tmp_path / "b.html", static=True).read_text("utf-8")
