"""The benchmark command runs, and its tables have their rows; what it measures is not judged here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_kernels_runs(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), "--quick", "--only", "mlp-128", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "kernels-cpu.md").read_text(encoding="utf-8")
    names = ("plain torch: rebuilt", "PyHessian: Hessian", "curvlinops: Hessian", "losscope: retained")
    for name in (*names, "losscope: top_eigenpairs", "losscope: GaussNewton"):
        rows = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert rows, name
    assert "wrong" not in text.split("## What must hold")[0]
    assert (tmp_path / "kernels-cpu.png").stat().st_size > 10_000
    assert (tmp_path / "kernels-cpu.svg").exists()
