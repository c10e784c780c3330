"""How long every figure takes of a run with 100,000 records, in seconds of one core: drawn, and written as a PNG.

    python benchmarks/long_runs.py [--records 100000] [--out benchmarks/results]

The runs are those of the tests: so many records in all, of the probes that a figure draws.
"""

import argparse
import io
import platform
import statistics
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

from hostile_cases import long_run  # noqa: E402
from losscope.viz import figure  # noqa: E402
from losscope.viz.figure import FIGURES  # noqa: E402


def seconds(name: str, records: int) -> tuple[float, float]:
    """Of the processor, median of three: for the figure, and to write it as a PNG."""
    run, taken = long_run(name, records), []
    for _ in range(3):
        start = time.process_time()
        made = figure(run, name)
        drawn = time.process_time()
        made.savefig(io.BytesIO(), format="png", dpi=100)
        taken.append((drawn - start, time.process_time() - drawn))
    figures, files = zip(*taken, strict=True)
    return statistics.median(figures), statistics.median(files)


def main() -> None:
    """Time every figure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    head = (
        f"Figures of a run with {options.records:,} records. {platform.machine()}, matplotlib {matplotlib.__version__}."
    )
    rows = [head, "", "| figure | drawn, s | as PNG, s | together, s |", "|---|---:|---:|---:|"]
    for name in FIGURES:
        drawn, written = seconds(name, options.records)
        rows.append(f"| {name} | {drawn:.2f} | {written:.2f} | {drawn + written:.2f} |")
        print(rows[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "long-runs.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
