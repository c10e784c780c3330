"""Claims of the case studies: verdicts, intervals, the file and the tables."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

import restart_test
import stability_audit
from claims import CLAIMS, check_claims, judge, markdown_table, print_claims, read_claims, write_claims
from losscope.landscape import SettingError
from table import BEGIN, END, gather, main, written

FIVE = {0: 1.0, 1: 1.01, 2: 0.99, 3: 1.02, 4: 1.0}


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (FIVE, "REPRODUCED"),
        ({**FIVE, 5: 0.5}, "PARTLY"),
        ({**FIVE, 5: math.inf}, "PARTLY"),
        ({0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}, "INCONCLUSIVE"),
        (dict.fromkeys(range(5), 0.5), "NOT_REPRODUCED"),
        (dict.fromkeys(range(5), math.nan), "NOT_REPRODUCED"),
        ({0: 0.5, 1: 0.5, 2: 0.5, 3: 2.0, 4: 2.0}, "INCONCLUSIVE"),  # the band lies within the range, no seed in it
    ],
)
def test_the_verdict_follows_from_the_numbers(measured: dict[int, float], verdict: str) -> None:
    assert judge("a", "b", "c", measured, between=(0.9, 1.1)).verdict == verdict


def test_an_interval_that_leaves_the_band_decides_nothing() -> None:
    wide = {0: 0.91, 1: 1.09, 2: 0.91, 3: 1.09, 4: 0.91}
    assert judge("a", "b", "c", wide, between=(0.9, 1.1), interval="mean").verdict == "INCONCLUSIVE"
    assert judge("a", "b", "c", wide, between=(0.9, 1.1), interval="range").verdict == "REPRODUCED"


def test_the_interval_of_the_mean_covers() -> None:
    draws = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0)) + 3
    claims = [judge("a", "b", "c", dict(enumerate(row.tolist())), between=(0, 9), interval="mean") for row in draws]
    covered = sum(claim.low <= 3 <= claim.high for claim in claims) / len(claims)
    assert 0.935 <= covered <= 0.965


def test_bad_settings_say_what_to_do() -> None:
    with pytest.raises(SettingError, match="no measured numbers"):
        judge("a", "b", "c", {}, between=(0, 1))
    with pytest.raises(SettingError, match="'mean', 'range'"):
        judge("a", "b", "c", FIVE, between=(0, 1), interval="median")
    with pytest.raises(SettingError, match="smallest, largest"):
        judge("a", "b", "c", FIVE, between=(1, 0))


def test_written_and_read_back(tmp_path) -> None:
    first = judge("a", "b | c", "d", {**FIVE, 7: math.inf}, between=(-math.inf, 2), note="e")
    path = write_claims(tmp_path / "new", "some_study", [first, judge("z", "b", "c", {3: 1.0}, between=(1, 1))])
    raw = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert raw["claims"][0]["measured"][-1] is None and raw["claims"][0]["held"] == 5
    assert [each.name for each in path.parent.iterdir()] == ["claims.json"]
    study, (again, single) = read_claims(path.parent)
    assert study == "some_study" and single == judge("z", "b", "c", {3: 1.0}, between=(1, 1))
    assert math.isnan(again.measured[-1]) and again.band == (-math.inf, 2)
    assert (again.verdict, again.low, again.high, again.note) == (first.verdict, 0.99, 1.02, first.note)
    assert "1 of 6 seeds gave no finite number" in again.note


def test_names_are_unique(tmp_path) -> None:
    claim = judge("a", "b", "c", FIVE, between=(0, 2))
    with pytest.raises(SettingError, match="one name"):
        write_claims(tmp_path, "s", [claim, claim])


def test_check_names_what_failed() -> None:
    good, bad = judge("good", "b", "c", FIVE, between=(0, 2)), judge("bad", "b", "c", FIVE, between=(0, 1))
    check_claims([good, bad], "good")
    with pytest.raises(AssertionError, match=r"bad: predicted 0 to 1, measured 1, 1\.01, 0\.99"):
        check_claims([good, bad])
    with pytest.raises(SettingError, match="'other'"):
        check_claims([good], "other")


def test_tables() -> None:
    claim = judge("a", "rises | falls", "d", FIVE, between=(0, math.inf), note="so far")
    shown = io.StringIO()
    print_claims([claim], "title", Console(file=shown, width=120))
    assert all(text in shown.getvalue() for text in ("title", "at least 0", "5 of 5", "REPRODUCED", "a: so far"))
    lines = markdown_table([claim]).splitlines()
    assert lines[2] == "| rises \\| falls. so far | d | at least 0 | 1.004 [0.99, 1.02] | 5 of 5 | REPRODUCED |"


def test_all_claims_go_into_the_readme(tmp_path, capsys) -> None:
    for study in ("b", "a"):
        write_claims(tmp_path / study, study, [judge("x", f"claim of {study}", "c", FIVE, between=(0, 2))])
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.startswith("2 claims: 2 REPRODUCED\n") and printed.index("### a") < printed.index("### b")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):  # a second time changes nothing
        main([str(tmp_path / "a"), str(tmp_path / "b"), "--readme", str(readme)])
        assert readme.read_text() == f"before\n{BEGIN}\n{printed.strip()}\n{END}\nafter\n"
    with pytest.raises(SystemExit, match="a second time"):
        main([str(tmp_path), str(tmp_path / "a")])
    readme.write_text("nothing")
    with pytest.raises(SystemExit, match="to put the table between"):
        main([str(tmp_path), "--readme", str(readme)])


def test_tables_of_the_readme_and_of_the_pages_are_what_the_results_say() -> None:
    folder = Path(__file__).parents[2] / "case_studies"
    results = sorted((folder / "results").iterdir())
    for page, studies in [("README.md", results), *((f"{each.name}.md", [each]) for each in results)]:
        _, _, rest = (folder / page).read_text().partition(f"{BEGIN}\n")
        again = f"python case_studies/table.py {' '.join(f'case_studies/results/{e.name}' for e in studies)}"
        assert rest.partition(f"\n{END}")[0] == written(gather(studies)), f"{again} --readme case_studies/{page}"


def test_results_are_of_full_versions_and_their_figures_are_linked() -> None:
    folder = Path(__file__).parents[2] / "case_studies"
    for results in (folder / "results").iterdir():
        assert not json.loads((results / CLAIMS).read_text())["quick"]
        page = (folder / f"{results.name}.md").read_text()
        assert all(f"results/{results.name}/{figure.name}" in page for figure in results.glob("*.png"))


def test_older_studies_judge_their_runs_too(tmp_path) -> None:
    quick = stability_audit.Case("GD, 2/20", 30, stability_audit.gradient_descent(20).build, every=10)
    claim = stability_audit.judged(quick, {seed: quick.run(seed) for seed in range(5)})
    assert (claim.name, claim.verdict, claim.measured) == ("GD__2_20", "REPRODUCED", (0.0,) * 5)
    shares = restart_test.judged("far below", {0: [True] * 9 + [False], 1: [False], 2: [True], 3: [True], 4: [True]})
    assert (shares.name, shares.verdict, shares.held, shares.note) == ("far_below", "PARTLY", 4, "14 checkpoints")
