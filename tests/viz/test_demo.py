"""The demo: its data and network, a short run of it, and the phenomenon itself."""

import builtins
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from losscope.probes import Run
from losscope.viz.cli import app
from losscope.viz.demo import _minibatches as minibatches
from losscope.viz.demo import (
    digits,
    fresh_folder,
    half_squared_error,
    network,
    reading,
    train_full_batch,
    train_minibatch,
    write_figures,
)


def test_data_and_network() -> None:
    x, y = digits(0)
    assert (x.shape, y.shape) == ((1000, 64), (1000, 10))
    assert (x.min(), x.max()) == (-1.0, 1.0)
    assert y.sum(dim=1).eq(1).all()
    assert not torch.equal(digits(1)[0], x)
    state = torch.get_rng_state()
    assert [tuple(p.shape) for p in network(0).parameters()][::2] == [(50, 64), (50, 50), (10, 50)]
    assert torch.equal(torch.get_rng_state(), state)
    out = torch.randn(7, 10)
    assert half_squared_error(out, y[:7]).item() == pytest.approx(((out - y[:7]) ** 2).sum().item() / 14)


def test_minibatches_are_whole_and_cover_an_epoch() -> None:
    x = torch.arange(100).float()[:, None]
    batches = [b.flatten().tolist() for b, _ in minibatches(x, x, 32, 7, seed=0)]
    assert [len(b) for b in batches] == [32] * 7
    assert len({v for b in batches[:3] for v in b}) == 96
    assert batches[:3] != batches[3:6]


def test_short_run_by_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--steps", "60", "--out", str(tmp_path / "d")])
    assert result.exit_code == 0, result.output
    for name in ("full-batch", "mini-batch"):
        run = Run(tmp_path / "d" / name)
        assert run.status == "finished"
        assert [r.step for r in run.select("sharpness")] == [0, 10, 20, 30, 40, 50]
        assert run.logged("loss")[0].tolist() == list(range(60))
        for file in ("sharpness.png", "sharpness.pdf", "report.html"):
            assert (tmp_path / "d" / name / file).stat().st_size > 5000
            assert str(tmp_path / "d" / name / file) in result.stdout.replace("\n", "")
    assert result.stdout.count("Audit of") == 2
    assert "Full-batch gradient descent started at" in result.stdout.replace("\n", " ")
    assert "full batch: step 60 of 60" in result.stderr
    again = CliRunner().invoke(app, ["demo", "--steps", "60", "--out", str(tmp_path / "d")])
    assert again.exit_code == 2
    assert "holds a run already" in again.stderr


def test_a_fresh_folder_each_time(tmp_path: Path) -> None:
    for expected in ("demo", "demo-2", "demo-3"):
        folder = fresh_folder(tmp_path / "demo")
        assert folder.name == expected
        folder.mkdir()


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "d")])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1 and 'pip install "losscope[demo]"' in result.stderr
    assert not (tmp_path / "d").exists()


def test_figures_need_a_folder() -> None:
    run = train_minibatch(steps=1)
    with pytest.raises(Exception, match="in memory"):
        write_figures(run)
    assert reading(run, run).startswith("Full-batch gradient descent started at 0.")


@pytest.mark.slow
def test_gradient_descent_hovers_at_the_edge_and_the_audit_says_so() -> None:
    """Median ratio over the last half in [0.98, 1.05]; at most 3 products per sharpness measured."""
    run = train_full_batch(0)
    records = run.select("sharpness")
    ratios = [r.value / r.values["threshold"] for r in records]
    assert 0.98 <= statistics.median(ratios[len(ratios) // 2 :]) <= 1.05
    assert statistics.mean(r.matvecs for r in records) <= 3
    criterion = run.audit()["sharpness"]
    assert criterion.verdict == "AT_EDGE", criterion.reason


@pytest.mark.slow
def test_minibatch_training_stays_flatter() -> None:
    run = train_minibatch(0, steps=600)
    ratios = [r.value / r.values["threshold"] for r in run.select("sharpness")]
    assert statistics.median(ratios[len(ratios) // 2 :]) < 0.95
    assert run.audit()["s_mu"].verdict == "NOT_EXCLUDED"
