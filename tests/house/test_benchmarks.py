"""The benchmark command runs, and its tables have their rows; what it measures is not judged here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ROWS = (
    "plain torch: rebuilt", "PyHessian: Hessian", "curvlinops: Hessian", "losscope: retained",
    "losscope: top_eigenpairs", "losscope: GaussNewton",
    "losscope: top_eigenpairs(tol=", "PyHessian: eigenvalues(tol=", "curvlinops: eigsh(tol=",
    "hessian-eigenthings: lanczos(max_iter=",
    "losscope: trace(rtol=0.01)", "PyHessian: trace(tol=", "curvlinops: hutchinson_trace(", "curvlinops: xtrace(",
    "losscope: top_eigenpairs, warm start", "losscope: TrackedPair |", "losscope: TrackedPair, tol=",
    "losscope: watch, Sharpness()", "PyHessian: eigenvalues()",
    "losscope: spectral_density, 1 x 40", "PyHessian: density, 1 x 40", "curvlinops: lanczos_approximate_spectrum, 8",
)  # fmt: skip


# The command twice in one process: all tables, and then one of them again.
TWICE = """
import runpy, shutil, sys
script, out = sys.argv[1:]
sys.path.insert(0, script.rpartition("/")[0])
for again in ([], ["--tables", "tracking"]):
    sys.argv = [script, "--quick", "--only", "mlp-128", "--out", out, *again]
    runpy.run_path(script, run_name="__main__")
    shutil.copy(f"{out}/kernels-cpu.md", f"{out}/{'after' if again else 'before'}.md")
"""


def run_twice(out: Path) -> tuple[str, str]:
    """The Markdown that quick runs on the smallest problem write."""
    command = [sys.executable, "-c", TWICE, str(ROOT / "benchmarks" / "kernels.py"), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return tuple((out / f"{name}.md").read_text(encoding="utf-8") for name in ("before", "after"))


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_tables_have_their_rows_and_one_can_be_measured_again(tmp_path: Path) -> None:
    """In one test, since its first run takes long and every worker of several tests would make it anew."""
    pytest.importorskip("sklearn")
    before, after = run_twice(tmp_path)
    for name in ROWS:
        assert [line for line in before.splitlines() if line.startswith(f"| {name}")], name
    assert "wrong" not in before.split("## What must hold")[0]
    assert not [line for line in before.splitlines() if "losscope" in line and "fails" in line]  # peers may
    assert (tmp_path / "kernels-cpu.png").stat().st_size > 10_000
    assert (tmp_path / "kernels-cpu.svg").exists()
    raw = json.loads((tmp_path / "kernels-cpu.json").read_text())
    for comparison in raw["eigenpairs"]:
        ours = [row for row in comparison["rows"] if row["package"] == "losscope"]
        assert ours
        assert all(row["reached"] and max(row["errors"]) <= comparison["limit"] for row in ours), comparison["task"]
    for title in ("One product with the Hessian", "Forty steps of Lanczos", "The trace, to one percent"):
        assert section(after, title) == section(before, title)
    tracking = "The largest eigenvalue along training"
    assert section(after, tracking) != section(before, tracking)  # times differ
    assert section(after, tracking).count("\n|") == section(before, tracking).count("\n|")


def test_a_density_without_kept_vectors_takes_less_memory_than_twelve() -> None:
    """With 11 million parameters: with fewer, gaps show, and what a process loads at its first product."""
    command = [sys.executable, str(ROOT / "benchmarks" / "lean.py"), "--width", "2900", "--steps", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = re.search(r"(\d+) parameters, .* peak .* MiB, ([\d.]+) vectors", done.stdout)
    assert found and int(found[1]) == 784 * 2900 + 2900**2 + 10 * 2900 + 2 * 2900 + 10
    assert 5 < float(found[2]) < 12, done.stdout
