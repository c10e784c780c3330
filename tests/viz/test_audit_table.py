"""The audit on a terminal."""

import dataclasses
import io
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console

from drawn_runs import AMBIGUOUS_NOTE, LONG_NOTE, hovering, noting, run_of
from losscope.probes import Assumption, Audit, Criterion
from losscope.probes.catalogue import CATALOGUE
from losscope.viz.audit_table import print_audit
from losscope.viz.words import VERDICTS

LONG = "the step along the top eigenvector changed sign in 97% of 426 pairs of steps"


LINES = [(entry.name, entry.symbol, entry.kind) for entry in CATALOGUE.values()]
BARS = {"trace": "for scalar outputs only, and there are 10", "mean_square": "not measured"}


def audit(
    code: str, scale: float = 1.0, sharpness: str = "lambda_max(H)", barred: Iterable[str] = (), **fields: Any
) -> Audit:
    """All lines of the catalogue, those named as not applicable."""
    numbers = {
        "measured": 20.04 * scale, "low": 20.01 * scale, "high": 21.7 * scale, "threshold": 20.0 * scale,
        "ratio": 1.002, "ratio_low": 1.0005, "ratio_high": 1.085,
    }  # fmt: skip
    assumptions = (Assumption("squared loss", True), Assumption("no momentum", False), Assumption("local", None))
    lines = tuple(
        Criterion(
            name, sharpness if name == "sharpness" else symbol, kind, "NOT_APPLICABLE" if name in barred else code,
            BARS.get(name, "mini-batches only") if name in barred else LONG, assumptions=assumptions, **numbers,
        )
        for name, symbol, kind in LINES
    )  # fmt: skip
    return Audit("model", (2250, 2990), 75, lines, LONG, **fields)


def printed(what: Audit, width: int = 80, *, explain: bool = False, **options: Any) -> str:
    file = io.StringIO()
    print_audit(what, Console(file=file, width=width, **options), title="runs/a", explain=explain)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("code", VERDICTS)
@pytest.mark.parametrize("scale", [1.0, 1e-7, 12345678.0])
@pytest.mark.parametrize("explain", [False, True])
def test_no_word_is_cut(width: int, code: str, scale: float, explain: bool) -> None:
    text = printed(audit(code, scale), width, explain=explain)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    words = set(text.replace(",", " ").replace(":", " ").split())
    assert {name for name, *_ in LINES} <= words
    assert set(LONG.split()) <= words
    if code != "NOT_APPLICABLE":
        assert {
            code,
            *VERDICTS[code].words.replace(",", "").split(),
            "lambda_max(H)",
            "tr(H)",
            "2/lr",
            "E|g_B|^2/2L",
        } <= words


def rows(text: str) -> list[str]:
    """The first line of each row of the table."""
    table = text.split("criterion")[1].split("\n\n")[0].splitlines()[1:]
    return [line.split()[0] for line in table[::2]]


@pytest.mark.parametrize("width", [80, 120])
def test_rows_of_what_applies_and_below_it_what_does_not(width: int) -> None:
    barred = ["trace", "aligned_trace", "frobenius", "s_mu", "mean_square"]
    text = printed(audit("AT_EDGE", barred=barred), width)
    assert rows(text) == [name for name, *_ in LINES if name not in barred]
    below = " ".join(text.split("Does not apply")[1].split("What the verdicts rest on")[0].split())
    assert below == (
        "trace: for scalar outputs only, and there are 10 "
        "aligned_trace, frobenius, s_mu: mini-batches only mean_square: not measured"
    )


def test_what_is_shared_is_said_once() -> None:
    """Ten lines of one verdict, one reason and the same assumptions: two kinds of which make two reasons."""
    text = " ".join(printed(audit("BELOW_EDGE")).split())
    assert text.count("no momentum") == text.count("not met") == 1 and "no momentum [" not in text
    assert text.count("BELOW_EDGE (necessary and sufficient): ") == 1 and text.count("BELOW_EDGE (empirical): ") == 1
    lines = audit("BELOW_EDGE").criteria
    some = [dataclasses.replace(c, assumptions=()) if c.name == "sharpness" else c for c in lines]
    assert "no momentum [all but sharpness]" in printed(dataclasses.replace(audit("BELOW_EDGE"), criteria=tuple(some)))
    few = [dataclasses.replace(c, assumptions=()) if c.name != "trace" else c for c in lines]
    assert "no momentum [trace]" in printed(dataclasses.replace(audit("BELOW_EDGE"), criteria=tuple(few)))


def test_preconditions_and_evidence() -> None:
    found = (Assumption("squared loss", True), Assumption("no clipping (12 %)", False), Assumption("same data", None))
    text = printed(audit("AT_EDGE", preconditions=found, observations=("the midpoint is flatter", LONG)))
    said = text.split("Preconditions of the run\n")[1].split("\n\n")
    assert said[0].split("\n") == ["  not met: no clipping (12 %)", "  not checked: same data", "  met: squared loss"]
    assert said[1].split() == ["Evidence", "The", "midpoint", "is", "flatter"]  # LONG is a verdict's reason already


def test_explaining() -> None:
    text = " ".join(printed(audit("AT_EDGE", barred=["trace"]), explain=True).split())
    for entry in CATALOGUE.values():
        for words in (entry.says, entry.derived, entry.source, f"{entry.name}: {entry.symbol} against "):
            assert " ".join(words.split()) in text, words
    assert "measured: 20.04 (20.01 to 21.7) against 2/lr = 20; ratio 1.002 (1 to 1.085)" in text
    assert "verdict: NOT_APPLICABLE (necessary): for scalar outputs only, and there are 10" in text
    assert "not met here: no momentum" in text and "met here: squared loss" in text
    unknown = Audit("model", (0, 1), 2, (Criterion("mine", "x", "empirical", "BELOW_EDGE", "because"),), "")
    assert "verdict: BELOW_EDGE (empirical): because" in printed(unknown, explain=True)


def test_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, width=80)
    for code in VERDICTS:
        print_audit(audit(code), console)
    unmeasured = Criterion("s_mu", "S_mu = E|g_B|^2/2L", "necessary", "INCONCLUSIVE", "not measured")
    print_audit(Audit("model", (0, 90), 10, (unmeasured,), ""), console)


def test_what_is_compared_is_said() -> None:
    text = printed(audit("AT_EDGE", sharpness="E[u' H_B u/g_B'u], u = P^-1 g_B"))
    assert "E[u' H_B u/g_B'u]" in text and "E|g_B|^2/2L" in text and "S_mu = " not in text and "P^-1 g_B" not in text


def test_assumptions_that_do_not_simply_hold() -> None:
    text = printed(audit("AT_EDGE"))
    assert "Presumed and not met\n  no momentum\n" in text and "Presumed and not checked\n  local\n" in text
    assert "squared loss" not in text


@pytest.mark.parametrize("note", [AMBIGUOUS_NOTE, LONG_NOTE], ids=["ambiguous", "finite differences"])
def test_what_the_products_were_is_said_in_full_and_fits(note: str) -> None:
    text = printed(run_of(noting(hovering(), note)).audit())
    assert max(map(len, text.splitlines())) <= 80
    assert " ".join(note.split()).replace(" ", "") in "".join(text.split())  # a long name is broken, not cut
    ambiguous = note is AMBIGUOUS_NOTE
    assert ("sharpness: INCONCLUSIVE" in text) == ambiguous
    assert ("sharpness: AT_EDGE" in text) == (not ambiguous)
    assert ("Hessian is ambiguous" in " ".join(text.split())) == ambiguous
    assert "Note" not in printed(run_of(hovering()).audit())


def test_colours_on_a_terminal_only() -> None:
    assert "\x1b[" not in printed(audit("ABOVE_EDGE"))
    assert "\x1b[" in printed(audit("ABOVE_EDGE"), force_terminal=True, color_system="standard")


def test_nothing_measured() -> None:
    text = printed(Audit("model", None, 0, (), "nothing"))
    assert "No verdict" in text and "ratio" not in text


def test_nothing_of_a_run_moves_the_cursor() -> None:
    told = audit("BELOW_EDGE", note="\x1b[2J\x1b]0;title\x07 gone", sharpness="\x1b[31mred")
    found = printed(dataclasses.replace(told, evidence="a\rb")) + printed(told, explain=True)
    assert not set(found) & set("\x1b\x07\r") and "red" in found and "gone" in found
