"""Every snippet of docs/loops.md runs, measures something, and leaves the same bits without its watch."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loop_cases import Unwatched
from losscope.probes import Watch
from losscope.probes import watch as real_watch
from probe_cases import fingerprint, seed_everything, streams

PAGE = Path(__file__).resolve().parents[2] / "docs" / "loops.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
SETUP, SNIPPETS = BLOCKS[0], BLOCKS[1:]


def run(snippet: str, watched: bool) -> tuple[Any, list[Watch]]:
    """What the snippet leaves of every model and optimizer it has made, and its watches."""
    seed_everything(5)
    torch._dynamo.reset()
    watches: list[Watch] = []

    def watch(*args: Any, **options: Any) -> Any:
        if not watched:
            return contextlib.nullcontext(Unwatched())
        watches.append(real_watch(*args, on_error="raise", **options))
        return watches[-1]

    names: dict[str, Any] = {"__name__": "snippet"}
    exec(SETUP, names)
    names["watch"] = watch
    exec(snippet, names)
    found = {k: v for k, v in names.items() if isinstance(v, nn.Module | torch.optim.Optimizer)}
    return (fingerprint({k: v.state_dict() for k, v in found.items()}), streams()), watches


def title(snippet: str) -> str:
    """The words in bold before it."""
    before = PAGE.read_text(encoding="utf-8").split(snippet)[0]
    return re.findall(r"^\*\*(.*?)\*\*", before, re.MULTILINE)[-1].strip(".,")


@pytest.mark.filterwarnings("ignore:losscope. .* is measured in mode=")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=map(title, SNIPPETS))
def test_a_snippet_runs_and_changes_no_bit(snippet: str) -> None:
    for package in re.findall(r"^from (peft|transformers) import", snippet, re.MULTILINE):
        pytest.importorskip(package)
    watched, (watch,) = run(snippet, watched=True)
    assert watched == run(snippet, watched=False)[0]
    records = [r for r in watch.run.records if r.probe != "log"]
    assert {r.status for r in records} == {"ok"} and len(watch.run.select("sharpness")) >= 1
    assert all(steps >= 2 for steps in watch.run.meta["steps"].values())
