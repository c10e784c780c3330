"""Stable SGD with tr(H) far above 2/lr: why several outputs need S_mu.

tr(H) <= 2/lr is necessary for scalar outputs. With ten outputs the trace is a sum over outputs, of which a
sample's gradient feels about one: the tanh network on 500 digits, half squared error, SGD with batch size 1
and lr 0.02, trains stably while tr(H) is almost twice 2/lr = 100. S_mu = E|g_B|^2 / 2L, which at batch size 1
is mu tr(H) with the alignment mu, stays far below.

    python case_studies/multi_output_trace.py
"""

import torch

from losscope.probes import Stability, watch
from losscope.viz.demo import digits, half_squared_error, network

STEPS = 15_000


def main() -> None:
    """Train, print the audit, check it."""
    x, y = digits(seed=0, samples=500)
    model = network(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    order = torch.Generator().manual_seed(0)
    probes = [Stability(every=1000)]
    with watch(model, optimizer, data=(x, y), criterion=half_squared_error, probes=probes, batch_size=1) as run:
        for step in range(STEPS):
            if step % len(x) == 0:
                permutation = torch.randperm(len(x), generator=order)
            chosen = permutation[step % len(x)].reshape(1)
            optimizer.zero_grad()
            half_squared_error(model(x[chosen]), y[chosen]).backward()
            optimizer.step()

    audit = run.run.audit()
    for line in audit.criteria:
        print(f"{line.name:10} {line.measured:8.2f} against {line.threshold:g}: {line.verdict} ({line.reason})")
    record = run.run.select("stability")[-1]
    print(f"mu = {record.values['mu']:.3f}, loss {record.values['loss']:.4g}")
    assert audit["trace"].ratio > 1.5, audit["trace"]
    assert audit["trace"].verdict == "NOT_APPLICABLE"
    assert audit["s_mu"].verdict == "NOT_EXCLUDED", audit["s_mu"]
    assert audit["s_mu"].ratio < 0.5, audit["s_mu"]


if __name__ == "__main__":
    main()
