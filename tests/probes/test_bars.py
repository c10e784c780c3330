"""Bars of long measurements: silent in files, and where nobody wants them."""

import sys

import pytest

from losscope.probes.bars import bar, in_notebook


def test_a_file_gets_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("losscope", " products") as shown:
        for _ in range(1000):
            shown.update(1)
    assert capsys.readouterr() == ("", "") and shown.disable


def test_a_terminal_has_one_unless_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    with bar("losscope", " products") as shown, bar("losscope", " products", silent=True) as silent:
        assert not shown.disable and silent.disable and shown.delay == 2.0


def test_a_notebook_has_one_and_no_warning(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    assert not in_notebook()
    monkeypatch.setattr(type(sys.stdout), "__module__", "ipykernel.iostream")
    assert in_notebook()
    with bar("losscope", " products") as shown:
        shown.update(1)
        assert not shown.disable
    assert len(recwarn) == 0
