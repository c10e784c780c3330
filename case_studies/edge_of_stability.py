"""The edge of stability: gradient descent sharpens until lambda_max(H) reaches 2/lr, and stays.

The tanh network 64-50-50-10 on 1000 digits, half squared error, full-batch gradient descent at lr 2/10 and
2/20 over three seeds (Cohen et al. 2021, arXiv 2103.00065). Asserted: the median over the later half of
sharpness / (2/lr) lies in [0.98, 1.05], it is reached later at the smaller rate, and the audit says AT_EDGE.

    python case_studies/edge_of_stability.py
"""

import statistics

from losscope.probes import Run
from losscope.viz.demo import train_full_batch

STEPS = 3000


def ratios(run: Run) -> dict[int, float]:
    """Sharpness over threshold by step."""
    return {r.step: r.value / r.values["threshold"] for r in run.select("sharpness")}


def main() -> None:
    """Train, print a table, check it."""
    print("rate   seed  crossing  later-half median  verdict")
    for seed in (0, 1, 2):
        crossings = []
        for divisor in (10, 20):
            run = train_full_batch(seed, STEPS, rate=2 / divisor)
            ratio = ratios(run)
            crossing = next(step for step, value in ratio.items() if value > 1)
            median = statistics.median(value for step, value in ratio.items() if step >= STEPS / 2)
            verdict = run.audit()["sharpness"].verdict
            print(f"2/{divisor}   {seed}     {crossing:5d}     {median:.4f}             {verdict}")
            assert 0.98 <= median <= 1.05, f"median ratio {median:.4f}"
            assert verdict == "AT_EDGE", verdict
            crossings.append(crossing)
        assert crossings[0] < crossings[1], f"crossings {crossings}"


if __name__ == "__main__":
    main()
