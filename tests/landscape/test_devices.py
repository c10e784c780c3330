"""Everything is measured where the model is: on a device of its own, made for this, as on the host."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import is_ninja_available

SCRIPT = Path(__file__).parents[1] / "support" / "on_second_device.py"


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") and is_ninja_available()), reason="needs a C++ compiler and ninja")
def test_another_device_says_what_the_host_says(tmp_path: Path) -> None:
    """In a process of its own: torch takes the device for the machine's accelerator from then on."""
    environment = os.environ | {"MAX_JOBS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    first, second = report["refused"]
    assert "same device" in first and "generator of this device" in second
    assert {name: gap for name, gap in report["apart"].items() if not gap < 2e-3} == {}
    few, many = (report[f"copies of {steps} steps"] for steps in (10, 40))
    assert (many - few) / 30 < 1  # what a step finds stays there; convergence is looked at now and then
