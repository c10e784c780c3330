"""`losscope doctor`: what can be measured here, and what a run cost."""

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner, Result

from drawn_runs import hovering, write
from losscope.probes import Record
from losscope.probes import capabilities as tried
from losscope.probes.capabilities import CASES, capabilities
from losscope.viz.cli import app
from losscope.viz.doctor import OPTIONAL, print_cost


def losscope(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="losscope")


def test_it_tells_what_is_here() -> None:
    result = losscope("doctor")
    assert result.exit_code == 0, result.output
    assert torch.__version__ in result.stdout and "threads" in result.stdout
    for name in (*CASES, *OPTIONAL):
        assert name in result.stdout
    assert "\x1b" not in result.stdout and max(map(len, result.stdout.splitlines())) <= 80


def test_common_models_can_be_measured_and_nothing_is_changed() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = {each.name: each for each in capabilities("cpu")}
    assert torch.equal(torch.get_rng_state(), state)
    for name in CASES:
        assert found[name].kernel, found[name]


class Failing(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such kernel\non this machine")


def test_what_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tried, "CASES", {"failing": lambda: Failing(8, 1)})
    (only,) = capabilities("cpu")
    assert only.kernel == "" and "no such kernel on this machine" in only.reason


def test_what_a_run_cost(tmp_path: Path) -> None:
    write(tmp_path / "a", hovering())
    result = losscope("doctor", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1] == "a" and "Measuring took 7.5 s of 30 s, 25 %" in result.stdout
    assert {"probe", "measured", "seconds", "share"} <= set(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_run_that_is_none(tmp_path: Path) -> None:
    result = losscope("doctor", tmp_path)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1


def test_a_run_without_measurements(tmp_path: Path) -> None:
    out = StringIO()
    print_cost(write(tmp_path / "a", []).cost(), Console(file=out, width=80))
    assert "Nothing was measured." in out.getvalue()


def test_a_probe_that_failed_keeps_its_name(tmp_path: Path) -> None:
    failed = [Record(t, "model", "neural_collapse", status="error", reason="LossError: no outputs") for t in range(3)]
    write(tmp_path / "a", [*hovering(), *failed])
    said = losscope("doctor", tmp_path / "a").stdout
    assert "\nneural_collapse of 'model': 3 times error" in said and "Neural_collapse" not in said
