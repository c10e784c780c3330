"""A GPT on Python's own sources, watched, in short; `case_studies/gpt.py` has one of 10.8 million parameters."""

import dataclasses
from pathlib import Path

import pytest
import torch

import gpt
from losscope.probes import Run


def test_a_small_gpt_is_watched_as_a_large_one(tmp_path: Path) -> None:
    """Accumulation, autocast, clipping, a schedule; the decay of its two groups differs, and it has a threshold."""
    pytest.importorskip("transformers")
    size = dataclasses.replace(gpt.QUICK, width=16, layers=1, block=24, steps=40, rate=1e-2)
    gpt.check(gpt.train(size, tmp_path / "run"))
    run = Run(tmp_path / "run")
    rates = [gpt.rate_at(step, size) for step in range(size.steps)]
    for probe in ("sharpness", "stability", "trace", "spectrum"):
        records = run.select(probe)
        assert len(records) >= 3 and [r.lr for r in records] == [rates[r.step] for r in records], probe
    assert run.meta["players"]["model"]["preconditioned"]
    assert all(r.values["threshold"] == r.values["threshold_largest"] for r in run.select("stability"))
    assert "groups" not in run.audit()["sharpness"].reason
    assert run.meta["steps"] == {"model": size.steps}


def test_the_text_is_the_same_wherever_it_is_read_twice() -> None:
    first, again = gpt.sources(10_000), gpt.sources(10_000)
    assert torch.equal(first, again) and len(first) == 10_000 and int(first.max()) < gpt.BYTES
