"""The page in a browser: no complaint, no request, nothing of a run's words acts, readable everywhere."""

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from drawn_runs import AMBIGUOUS_NOTE, LONG_NOTE, hovering, meta, minibatch, noting, run_of, write
from drawn_spectra import evolving
from losscope.probes import Record, Run
from losscope.viz import report
from losscope.viz.words import shown
from opened_pages import chromium, opened

pytestmark = pytest.mark.browser

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '<a href="javascript:alert(3)">click</a> <b>bold</b><br>&lt;i&gt;',
    "\"'`${alert(4)} %{x} %{customdata} $x^2$",
    "\u202eright to left\u202c \u05d0\u05d1\u05d2 \U0001f600\U0001f1e8\U0001f1ed",
    "a_very_long_name_without_a_place_to_break_it_" * 12,
    "--blue", "__proto__", "]]> <!-- -->\x00\x1b[31m\x9b\ud800{{ 7 * 7 }}",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    spectral = evolving()
    run = Run.from_records(spectral.meta, [*spectral.records, *hovering(800)], spectral._arrays)
    two = [run, run_of(minibatch(400), G={"batch_size": 32})]
    made = {"page": report(run, folder / "page.html")}
    with pytest.MonkeyPatch.context() as patch:
        blank(patch)
        made["static"] = report(run, folder / "static.html", static=True)
        made["two"] = report(two, folder / "two.html")
    return made


def blank(patch: pytest.MonkeyPatch) -> None:
    """Static figures that are empty: to draw them takes nearly all of the time."""
    patch.setattr("losscope.viz.page.figure", lambda run, kind, *, player, size: Figure(figsize=size))
    patch.setattr("losscope.viz.page.overlay", lambda runs, name, size: Figure(figsize=size))


def until(page: Any, expression: str) -> None:
    """Wait until something holds; playwright's own way to wait is one that the page's policy forbids."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


def quiet(page: Any, path: Path) -> bool:
    assert page.complaints == []
    assert page.requests == [path.as_uri()]
    return True


def test_opens_without_complaint_or_request(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["page"]) as page:
        assert quiet(page, pages["page"])
        assert page.count("figure") == page.count("figure.drawn") == 5
        assert page.count("figure svg[role=img]") == 10
        assert not page.locator("figure svg[role=img]").first.is_visible()
        assert page.locator(".plot").first.is_visible()
        assert "At the edge" in page.locator("main").inner_text()
        assert page.count("main h2") >= 4 and page.count("h1") == 1


def test_the_pointer_reads_out_numbers(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["page"]) as page:
        plot = page.locator("#figure-0-0-sharpness .plot")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
        page.wait_for_selector("#figure-0-0-sharpness .hoverlayer text")
        buttons = page.locator(".modebar-btn").evaluate_all("(all) => [...new Set(all.map((b) => b.dataset.title))]")
        assert len(buttons) == 6 and not [
            each for each in buttons if re.search("share|cloud|edit", each, re.IGNORECASE)
        ]
        said = page.locator("#figure-0-0-sharpness .hoverlayer").text_content()
        assert "sharpness" in said and re.search(r"\d\d", said)
        assert quiet(page, pages["page"])


def test_a_picture_can_be_saved(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["page"]) as page:
        page.locator("#figure-0-0-sharpness .plot").hover()
        with page.expect_download(timeout=20_000) as waiting:
            page.locator("#figure-0-0-sharpness .modebar-btn[data-title*='Download']").click()
        assert Path(waiting.value.path()).read_bytes().startswith(b"\x89PNG")
        assert page.complaints == [] and not [each for each in page.requests if each.startswith("http")]


def test_zooms_are_linked_by_step(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["page"]) as page:
        ranges = """() => ['sharpness', 'stability', 'outliers'].map((name) =>
            document.querySelector(`#figure-0-0-${name} .plot`).layout.xaxis.range.map(Math.round))"""
        page.evaluate(
            "Plotly.relayout(document.querySelector('#figure-0-0-sharpness .plot'), {'xaxis.range': [100, 300]})"
        )
        until(page, f"({ranges})().every(([a, b]) => a === 100 && b === 300)")
        spectrum = page.evaluate("document.querySelector('#figure-0-0-spectrum .plot').layout.xaxis.range")
        assert [round(each) for each in spectrum] != [100, 300]
        page.evaluate(
            "Plotly.relayout(document.querySelector('#figure-0-0-stability .plot'), {'xaxis.autorange': true})"
        )
        until(page, f"({ranges})().every(([a, b]) => a <= 0 && b >= 500)")
        assert quiet(page, pages["page"])


def test_new_data_are_drawn_and_fragments_put_in_place(browser: Any, pages: dict[str, Path]) -> None:
    """What the live page does with what its server sends; figures that are far from sight wait until they come near."""
    with opened(browser, pages["page"]) as page:
        page.evaluate("""async () => {
            const data = JSON.parse(document.getElementById('data').textContent);
            const figure = data.runs[0].figures.find((each) => each.id === '0-0-sharpness');
            const curve = figure.traces.find((each) => each.name === 'sharpness');
            curve.x.push(5000); curve.y.push(77);
            data.runs[0].figures.push({...figure, id: '0-0-late', caption: 'came <b>late</b>'});
            await losscope.update(data, '<p data-fragment="0-0-problems">new <script>alert(1)</script></p>');
        }""")
        last = "document.querySelector('#figure-0-0-sharpness .plot').data.find((t) => t.name === 'sharpness').x.at(-1)"
        assert page.evaluate(last) == 790
        page.locator("#figure-0-0-sharpness").scroll_into_view_if_needed()
        until(page, f"{last} === 5000")
        assert page.locator("[data-fragment='0-0-problems']").inner_text().strip() == "new"
        assert page.locator("#figure-0-0-late figcaption").inner_text() == "came <b>late</b>"
        assert page.count("#figure-0-0-late .main-svg") > 0
        assert quiet(page, pages["page"])


def test_without_javascript(browser: Any, pages: dict[str, Path]) -> None:
    for name in ("page", "static", "two"):
        with opened(browser, pages[name], script=False) as page:
            shown = page.locator("figure .wide svg")
            assert shown.count() >= 5 and all(shown.nth(i).is_visible() for i in range(shown.count()))
            assert not page.locator(".plot").first.is_visible() if name != "static" else page.count(".plot") == 0
            assert "The sharpness was first measured above its threshold" in page.locator("main").inner_text()
            assert quiet(page, pages[name])


def test_static_has_no_script(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["static"]) as page:
        assert page.count("script") == 0 and page.count("figure") == 5
        assert quiet(page, pages["static"])


@pytest.mark.parametrize("note", [AMBIGUOUS_NOTE, LONG_NOTE], ids=["ambiguous", "long note"])
def test_narrow_screens_need_no_sideways_scrolling(note: str, browser: Any, tmp_path: Path) -> None:
    page = report(run_of(noting(hovering(300), note)), tmp_path / "page.html", static=True)
    with opened(browser, page, width=375) as shown:
        assert shown.sideways == 0


@pytest.mark.parametrize("name", ["page", "two"])
def test_narrow_with_figures_to_hover(name: str, browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages[name], width=375) as page:
        assert page.sideways == 0
        widest = page.evaluate(
            "Math.max(...[...document.querySelectorAll('.plot')].map((p) => p.getBoundingClientRect().right))"
        )
        assert widest <= 375
        if name == "two":
            inner = page.evaluate(
                "(({scrollWidth, clientWidth}) => [scrollWidth, clientWidth])(document.querySelector('.scroll'))"
            )
            assert inner[0] > inner[1]  # the table scrolls inside itself
        assert quiet(page, pages[name])


def picture(page: Any) -> np.ndarray:
    return imread(io.BytesIO(page.screenshot()))[..., :3]


def test_light_and_dark(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["page"]) as page:
        page.locator("#figure-0-0-sharpness").scroll_into_view_if_needed()
        light = picture(page)
        page.emulate_media(color_scheme="dark")
        ink = "getComputedStyle(document.querySelector('#figure-0-0-sharpness .xtitle')).fill"
        until(page, f"{ink} === 'rgb(230, 237, 243)'")  # figures follow without a reload
        dark = picture(page)
        assert quiet(page, pages["page"])
    assert light.mean() > 0.85 and dark.mean() < 0.25
    for shot in (light, dark):  # ink on paper
        assert np.ptp(shot.mean(axis=2)) > 0.7


def test_it_prints_its_static_figures(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["page"], dark=True) as page:
        page.emulate_media(media="print")
        assert page.locator("figure .wide svg").first.is_visible()
        assert not page.locator(".plot").first.is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        pdf = page.pdf(format="A4")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12


@pytest.mark.parametrize("name", ["page", "two"])
def test_links_lead_somewhere_and_headings_descend(name: str, browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages[name], script=False) as page:
        targets = page.locator("a").evaluate_all("(all) => all.map((a) => a.getAttribute('href'))")
        assert len(targets) >= 5 and all(page.count(f"[id='{target[1:]}']") == 1 for target in targets)
        levels = page.locator("h1, h2, h3, h4").evaluate_all("(all) => all.map((h) => Number(h.tagName[1]))")
        assert levels[0] == 1 and all(below - above <= 1 for above, below in itertools.pairwise(levels))
        page.keyboard.press("Tab")
        assert page.locator(".skip").bounding_box()["x"] >= 0  # seen once it has the focus


# --------------------------------------------------------------------------- hostile words


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose folders, players, probes, reasons, facts and logged names are all meant to do harm."""
    made = []
    for index in range(2):
        records: list[Record] = []
        players = {}
        for number, word in enumerate(HOSTILE[:4] if index else HOSTILE[4:]):
            players[word] = dict.fromkeys(("model", "optimizer", "threshold_formula", "loss_family", "device"), word)
            records += hovering(60, player=word)
            records.append(Record(5, word, word, status="error", reason=word))
            records.append(Record(6 + number, word, "log", values={word: 1.0, "loss": 0.1}))
            spectral = {f"{word}/nc1": 0.5, "nc1": 0.4}
            records += [
                Record(t, word, "neural_collapse", value=0.4, values=spectral, reason=word) for t in (0, 10, 20)
            ]
            layers = {f"{word}/trace{end}": 2.0 for end in ("", "_low", "_high")}
            records += [Record(t, word, "layer_traces", value=2.0, values=layers) for t in (0, 10)]
        description = meta(**players) | {"reason": HOSTILE[index], "status": "failed", "git": {"commit": HOSTILE[1]}}
        description["versions"] = {HOSTILE[0]: HOSTILE[1]}
        folder = tmp_path_factory.mktemp("hostile") / f"<b onclick=alert(5)>{index}"
        made.append(write(folder, records, description))
    with pytest.MonkeyPatch.context() as patch:
        blank(patch)
        return report(made, tmp_path_factory.mktemp("page") / "page.html")


def test_hostile_words_are_inert(hostile: Path, browser: Any) -> None:
    with opened(browser, hostile) as page:
        assert quiet(page, hostile)  # which would tell of a dialog as well
        assert page.count("img") == page.count("iframe") == 0 and page.count("script") == 3
        assert page.count("[onclick], [onerror], [href^='javascript']") == 0
        assert page.count(".plot a[*|href^='javascript'], .plot [style*='bold'] >> text=bold") == 0
        assert page.count("figure.drawn") == page.count("figure") > 10
        body = page.locator("body").text_content()
        for word in HOSTILE[:5]:
            assert shown(word) in body
        assert "49" not in page.locator("h1, h2, h3").all_text_contents() and not re.search("[\u202e\x00\x1b]", body)
        drawn = page.locator(".plot").all_text_contents()  # plotly's own words: tags are shown, not obeyed
        assert any("<b>bold</b>" in each for each in drawn)
        assert any("</script>" in each for each in drawn)
        assert page.evaluate("Object.prototype.x === undefined && !('model' in {})")


def test_hostile_words_do_not_widen_the_page(hostile: Path, browser: Any) -> None:
    with opened(browser, hostile, width=375, script=False) as page:
        assert page.sideways == 0


def test_an_injected_script_is_blocked(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    """Should a word ever get through, the page's policy stops it, and tells."""
    source = pages["page"].read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    injected = (
        "<script>window.broken = 1</script><img src='https://losscope.invalid/x.png' onerror='window.broken = 2'>"
    )
    broken.write_text(source.replace("<header>", f"<header>{injected}", 1), encoding="utf-8")
    with opened(browser, broken) as page:
        assert page.evaluate("window.broken") is None
        page.evaluate("""() => {
            const script = document.createElement('script');
            script.textContent = 'window.broken = 3';
            document.body.append(script);
        }""")
        assert page.evaluate("window.broken") is None
        page.evaluate("""() => new Promise((done) => setTimeout(() => {
            try { new Function('window.broken = 4')(); } catch { window.refused = true; }
            done();
        }))""")
        assert page.evaluate("window.refused") and page.evaluate("window.broken") is None
        failed = page.evaluate("fetch('https://losscope.invalid/').then(() => 'sent', () => 'refused')")
        assert failed == "refused"
        assert len([said for said in page.complaints if "Content Security Policy" in said]) >= 4
        assert page.count("figure.drawn") == 5  # and the page's own scripts run
