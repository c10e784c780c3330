"""Stable SGD with tr(H) far above 2/lr: why several outputs need S_mu.

tr(H) <= 2/lr is necessary for scalar outputs. With ten outputs the trace is a sum over outputs, of which a
sample's gradient feels about one: the tanh network on 500 digits, half squared error, SGD with batch size 1
and lr 0.02, trains stably while tr(H) is almost twice 2/lr = 100. S_mu = E|g_B|^2 / 2L, which at batch size 1
is mu tr(H) with the alignment mu, stays below half of its threshold, and the audit's verdict is the one of S_mu.

    python case_studies/multi_output_trace.py
"""

from __future__ import annotations

import argparse

from torch.optim import SGD

from digits_training import train
from losscope.probes import Run
from losscope.viz.demo import network

STEPS, RATE, SAMPLES = 15_000, 0.02, 500


def trained(seed: int, steps: int = STEPS, every: int = 1000) -> Run:
    """SGD on single samples."""
    model = network(seed)
    optimizer = SGD(model.parameters(), lr=RATE)
    return train(model, optimizer, steps=steps, seed=seed, samples=SAMPLES, batch_size=1, every=every, level="full")


def check(run: Run) -> None:
    """Whether the trace is above its bound and does not count, and S_mu is below half of its own and does.

    Raises:
        AssertionError: if not; it shows the line.
    """
    audit = run.audit()
    trace, s_mu = audit["trace"], audit["s_mu"]
    assert trace.ratio is not None and trace.ratio >= 1.5, trace
    assert trace.verdict == "NOT_APPLICABLE" and "10" in trace.reason, trace
    assert s_mu.ratio is not None and s_mu.ratio < 0.5, s_mu
    assert s_mu.verdict == "NOT_EXCLUDED", s_mu
    assert not audit.above_edge, audit


def main() -> None:
    """Train, print the audits, check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"updates of each run (default {STEPS})")
    options = parser.parse_args()
    for seed in range(options.seeds):
        run = trained(seed, options.steps)
        values = run.select("stability")[-1].values
        print(f"seed {seed}: loss {values['loss']:.4g}, mu {values['mu']:.3f}")
        for line in run.audit().criteria:
            if line.measured is not None and line.threshold is not None:
                against = f"{line.measured:7.2f} against {line.threshold:g}"
                print(f"  {line.name:18} {against}: {line.verdict} ({line.reason})")
        check(run)


if __name__ == "__main__":
    main()
