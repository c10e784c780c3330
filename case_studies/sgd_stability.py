"""What SGD's stability selects: the trace bound, where it is exact, where it is not enough, and what follows from it.

SGD with single samples and rate lr can stay at an interpolating minimum only if tr(H) <= 2/lr, gradient descent if
lambda_max(H) <= 2/lr (Wu and Su 2023, arXiv 2305.17490; Wu, Wang and Su 2022, arXiv 2207.02628). Five experiments:

- linear models: the exact mean-square threshold against 2/tr(H), for three kinds of rows;
- identities: the networks of `sgd/networks.py`, whose trace or sharpness is a norm of the parameters;
- diagonal: sparse regression by a diagonal linear network, where a larger rate finds the sparse solution;
- bounds: a tanh network on real data (digits, even or odd), at several rates and batch sizes, under watch;
- outputs: `multi_output_trace.py`, where tr(H) exceeds 2/lr and S_mu does not.

    python case_studies/sgd_stability.py --quick
    python case_studies/sgd_stability.py --out runs/sgd --jobs 4
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import multi_output_trace
from claims import Claim, check_claims, judge, print_claims, write_claims
from sgd.bounds import RATES, TRAINED, real_claims, real_run
from sgd.figures import draw_bounds, draw_diagonal, draw_rows
from sgd.identities import identities, path_norms
from sgd.linear import BATCHES, ROWS, linear_claims, rows_of
from sgd.networks import WU_SU
from sgd.sparse import DESCENT_RATES, SGD_RATES, STEPS, diagonal_claims, diagonal_run
from study import Options, command_line, in_parallel, save_figure


def outputs_run(seed: int) -> tuple[float, float]:
    """tr(H) lr/2 and S_mu lr/2 of the network with ten outputs."""
    audit = multi_output_trace.trained(seed).audit()
    return audit["trace"].ratio or math.nan, audit["s_mu"].ratio or math.nan


def outputs_claims(seeds: Sequence[int], found: Sequence[tuple[float, float]]) -> list[Claim]:
    """The trace is not bound by 2/lr, what replaces it is."""
    trace, index = ({s: pair[i] for s, pair in zip(seeds, found, strict=True)} for i in (0, 1))
    source = "derived in landscape/stability.py"
    return [
        judge("outputs_trace", "Ten outputs, single samples: stable SGD with tr(H) lr/2 above 1", source, trace,
              between=(1.3, math.inf), predicted="up to 10: the trace adds up outputs"),
        judge("outputs_s_mu", "Ten outputs: S_mu lr/2, S_mu = E|g_B|^2/2L", source, index, between=(0, 1)),
    ]  # fmt: skip


def study(options: Options) -> list[Claim]:
    """Run the experiments and judge them; the short version leaves out the many rates and several outputs."""
    seeds, jobs, quick = options.seeds, options.jobs, options.quick
    rows = [(kind, seed) for kind in ROWS for seed in seeds]
    linear = dict(zip(rows, in_parallel(rows_of, rows, jobs, name="linear models"), strict=True))
    claims = linear_claims(seeds, linear)
    errors = in_parallel(identities, seeds, jobs, name="identities")
    for name, what in (
        ("diagonal trace", "tr(H) = |u|^2 + |v|^2"), ("sharpness", "lambda_max(H) = max (u^2 + v^2), white inputs"),
        ("two-layer trace", "tr(H) = (|W|^2 + d |a|^2)/2, ReLU"),
    ):  # fmt: skip
        measured = {s: e[name] for s, e in zip(seeds, errors, strict=True)}
        claims.append(judge(
            f"identity_{name.replace(' ', '_').replace('-', '_')}", f"{what}: relative error",
            "derived in sgd/networks.py", measured, between=(0, 1e-10), predicted="0",
        ))  # fmt: skip
    sparse_rates = ((0.01, 0.06), (0.08, 0.6)) if quick else (SGD_RATES, DESCENT_RATES)
    cases = [(s, rate, descent) for descent in (False, True) for s in seeds for rate in sparse_rates[descent]]
    task = partial(diagonal_run, steps=STEPS // 3 if quick else STEPS)
    sparse = dict(zip(cases, in_parallel(task, cases, jobs, name="diagonal"), strict=True))
    claims += diagonal_claims(seeds, sparse)
    paths = in_parallel(partial(path_norms, steps=1500 if quick else 6000), seeds, jobs, name="two-layer")
    claims.append(judge(
        "two_layer_path", "Two-layer ReLU network, single samples: path norm sqrt(d) sum |a||w| lr/2", WU_SU,
        dict(zip(seeds, paths, strict=True)), between=(0, 1),
    ))  # fmt: skip
    rates = {1: (0.04,), TRAINED: (0.04,)} if quick else RATES
    runs = [(s, size, rate) for size in rates for s in seeds for rate in rates[size]]
    watched = partial(real_run, out=options.out, shorter=5 if quick else 1)
    real = dict(zip(runs, in_parallel(watched, runs, jobs, name="real data"), strict=True))
    claims += real_claims(seeds, real)
    if not quick:
        claims += outputs_claims(seeds, in_parallel(outputs_run, seeds, jobs, name="ten outputs"))
        save_figure(draw_rows(linear, BATCHES), options.out, "linear_models")
        save_figure(draw_diagonal(sparse), options.out, "diagonal_network")
        save_figure(draw_bounds(real, TRAINED), options.out, "real_data")
    return claims


def main() -> None:
    """Everything, the table, and with ``--quick`` the assertions."""
    options = command_line(__doc__, "sgd_stability")
    claims = study(options)
    write_claims(options.out, "sgd_stability", claims, quick=options.quick)
    print_claims(claims, "SGD's stability")
    if options.quick:
        check_claims(claims)


if __name__ == "__main__":
    main()
