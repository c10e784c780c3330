"""The audit on a terminal."""

import io

import pytest
from rich.console import Console

from drawn_runs import AMBIGUOUS_NOTE, LONG_NOTE, hovering, noting, run_of
from losscope.probes import Assumption, Audit, Criterion
from losscope.viz.audit_table import print_audit
from losscope.viz.words import VERDICTS

LONG = "the step along the top eigenvector changed sign in 97% of 426 pairs of steps"


def audit(code: str, scale: float = 1.0, sharpness: str = "lambda_max(H)") -> Audit:
    numbers = {
        "measured": 20.04 * scale, "low": 20.01 * scale, "high": 21.7 * scale, "threshold": 20.0 * scale,
        "ratio": 1.002, "ratio_low": 1.0005, "ratio_high": 1.085,
    }  # fmt: skip
    assumptions = (Assumption("squared loss", True), Assumption("no momentum", False), Assumption("local", None))
    lines = tuple(
        Criterion(name, symbol, "necessary and sufficient", code, LONG, assumptions=assumptions, **numbers)
        for name, symbol in (("sharpness", sharpness), ("trace", "tr(H)"), ("s_mu", "S_mu = E|g_B|^2/2L"))
    )
    return Audit("model", (2250, 2990), 75, lines, LONG)


def printed(what: Audit, **options: object) -> str:
    file = io.StringIO()
    print_audit(what, Console(file=file, width=80, **options), title="runs/a")
    return file.getvalue()


@pytest.mark.parametrize("code", VERDICTS)
@pytest.mark.parametrize("scale", [1.0, 1e-7, 12345678.0])
def test_no_word_is_cut_at_80_columns(code: str, scale: float) -> None:
    text = printed(audit(code, scale))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    words = set(text.split())
    assert set(VERDICTS[code].words.split()) <= words
    assert {f"{name}:" for name in ("sharpness", "trace", "s_mu")} <= words
    assert {code, "lambda_max(H)", "tr(H)", "2/lr"} <= words
    assert set(LONG.split()) <= words


def test_what_is_compared_is_said() -> None:
    text = printed(audit("AT_EDGE", sharpness="lambda_max(P^-1 H)"))
    assert "lambda_max(P^-1 H)" in text and "E|g_B|^2/2L" in text and "S_mu" not in text


def test_assumptions_that_do_not_simply_hold() -> None:
    text = printed(audit("AT_EDGE"))
    assert "not met: no momentum" in text and "not checked: local" in text
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
