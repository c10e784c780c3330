"""The edge of stability: optimizers sharpen until the curvature they see is at their threshold, and stay there.

The tanh network 64-50-50-10 on 1000 digits, half squared error, full batch. Gradient descent, heavy ball, Nesterov,
Adam and RMSprop, each at three or four rates (Cohen et al. 2021 and 2022, arXiv 2103.00065 and 2207.14484); gradient
flow and the central flow (Cohen et al. 2024, arXiv 2410.24206) beside gradient descent from the same weights; ReLU
and cross-entropy, with which the edge need not appear.

    python case_studies/edge_of_stability.py --quick
    python case_studies/edge_of_stability.py --jobs 4 --out runs/edge
    python case_studies/edge_of_stability.py --cifar ~/data/cifar-10-batches-py      # the published network instead

Another network: ``Case.model`` in stability_audit.py. Other data: ``digits`` in digits_training.py. Other rates:
FAMILIES in edge/sweep.py.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from claims import Claim, check_claims, judge, print_claims, write_claims
from edge.beside import Beside, beside
from edge.cifar import cifar, trained_on_cifar
from edge.figures import draw, draw_sweep
from edge.sweep import ABSENT, FAMILIES, Trained, trained
from losscope.landscape import DataError
from study import Options, command_line, in_parallel

STUDY = "edge_of_stability"
GD, ADAPTIVE = "Cohen et al. 2021, arXiv 2103.00065", "Cohen et al. 2022, arXiv 2207.14484"
CENTRAL = "Cohen et al. 2024, arXiv 2410.24206"
BANDS = {
    "gradient descent": (GD, (0.98, 1.05), ""),
    "heavy ball 0.5": (GD, (0.95, 1.05), ""),
    "heavy ball 0.9": (GD, (0.95, 1.05), ""),
    "Nesterov": (GD, (0.95, 1.05), "Momentum 0.9"),
    "Adam": (ADAPTIVE, (0.93, 1.05), "Betas 0.9 and 0.99"),
    "RMSprop": (ADAPTIVE, (0.98, 1.12), ""),
}
"""Source, band and note of each family's hovering."""
QUICK = {"gradient descent": ("GD 2/16", "GD 2/20"), "Adam": ("Adam 0.001",)}
QUICK_STEPS = 900
LONGER = ("loss_falls", "central_loss", "central_excess", "central_variance")
"""Claims that take more steps than ``--quick`` makes: it holds one burst of the oscillation at most."""
CIFAR_EDGES, CIFAR_STEPS = (20.0, 40.0, 60.0), 5000

Runs = dict[str, list[Trained]]
"""By name of the case, one for each seed."""


def hovers(
    family: str, runs: Runs, source: str, between: tuple[float, float], names: Sequence[str], note: str = ""
) -> Claim:
    """The claim that a family hovers at its threshold at all of its rates."""
    crossed = [run.crossing < math.inf for name in names for run in runs[name]]
    return judge(
        f"{family.replace(' ', '_')}_hovers", f"At its own threshold: {family}, rates: {len(names)}", source,
        by_seed(runs, names, lambda some: farthest(run.late for run in some)), between=between,
        predicted=f"median of sharpness over threshold in {between[0]:g} to {between[1]:g} (later half)",
        note="; ".join(filter(None, ["Of the rates the one farthest from 1", _share(crossed), note])),
    )  # fmt: skip


def _share(crossed: Sequence[bool]) -> str:
    return f"{sum(crossed)} of {len(crossed)} runs cross" if not all(crossed) else ""


def by_seed(runs: Runs, names: Iterable[str], number: Callable[[list[Trained]], float]) -> dict[int, float]:
    """A number of the runs of some cases, for each seed."""
    some = [runs[name] for name in names]
    return {each[0].seed: number(list(each)) for each in zip(*some, strict=True)}


def farthest(values: Iterable[float]) -> float:
    """From 1."""
    return max(values, key=lambda value: abs(value - 1))


def in_order(some: list[Trained]) -> float:
    """Share of the neighbouring rates of which the smaller crosses later, or alone does not; both not is no pair."""
    pairs = [(a.crossing, b.crossing) for a, b in pairwise(some) if min(a.crossing, b.crossing) < math.inf]
    return sum(a < b for a, b in pairs) / len(pairs) if pairs else math.nan


def families_judged(runs: Runs) -> list[Claim]:
    """Hovering and crossing, of each family of which there are runs."""
    known = {family: [case.name for case in cases if case.name in runs] for family, cases in FAMILIES.items()}
    claims = []
    for family, names in known.items():
        source, band, note = BANDS.get(family, (GD, (0.95, 1.05), ""))
        if names:
            claims.append(hovers(family, runs, source, band, names, note))
        if len(names) > 1:
            order = by_seed(runs, names, in_order)
            claims.append(
                judge(
                    f"{family.replace(' ', '_')}_later", f"Smaller rates cross later: {family}", source, order,
                    between=(1, 1), predicted="all neighbouring rates in order",
                )
            )  # fmt: skip
    if names := known.get("gradient descent"):
        claims += [
            judge(
                "loss_rises", "At the edge the loss does not fall at every step", GD,
                by_seed(runs, names, lambda some: min(run.rises for run in some)), between=(0.05, 1),
                predicted="it rises in 5 % of the later steps or more",
            ),
            judge(
                "loss_falls", "At the edge the loss falls over longer times", GD,
                by_seed(runs, names[-1:], lambda some: late_over_crossing(some[0])), between=(0, 0.8),
                predicted="loss at the end over that at the crossing at most 0.8",
            ),
        ]  # fmt: skip
    return claims


def late_over_crossing(run: Trained) -> float:
    """Loss at the end over that at the crossing."""
    return run.losses[-1] / run.losses[int(run.crossing)] if run.crossing < math.inf else math.nan


def flows_judged(found: dict[int, Beside]) -> list[Claim]:
    """Gradient flow until the crossing, the central flow after it."""

    def claim(name: str, text: str, source: str, number: Callable[[Beside], float], low: float, high: float, words: str,
              **more: str) -> Claim:  # fmt: skip
        measured = {seed: number(each) for seed, each in found.items()}
        return judge(name, text, source, measured, between=(low, high), predicted=words, **more)

    windows = ", ".join(str(each.single) for each in found.values())
    bursts = sum(each.burst for each in found.values())
    few = f"The oscillation comes in bursts, of which {bursts} of these {len(found)} windows hold any"
    return [
        claim(
            "flow_before", "Until the crossing gradient descent follows gradient flow", GD, lambda b: b.before, 0, 0.05,
            "distance at most 5 % of the way from the start",
        ),
        claim(
            "flow_after", "After the crossing the two part", GD,
            lambda b: max(b.apart[b.crossing // 10 :]) / b.before, 2, math.inf, "that share at least doubles",
        ),
        claim(
            "flow_sharpens", "Gradient flow sharpens on, beyond 2/lr", GD, lambda b: b.flow[-1], 1.1, math.inf,
            "sharpness over 2/lr at least 1.1 at the end",
        ),
        claim(
            "central_loss", "The central flow predicts the time average of the loss", CENTRAL,
            lambda b: b.mean(b.averages) / b.measured, 0.98, 1.02, "predicted over measured 0.98 to 1.02",
            note=f"Over the updates after the crossing with one unstable mode, {windows}",
        ),
        claim(
            "central_excess", "It predicts what the oscillation adds to the loss", CENTRAL,
            lambda b: (b.mean(b.averages) - b.mean(b.below)) / (b.measured - b.mean(b.below)), 0.5, 2,
            "predicted over measured 0.5 to 2",
            note=few,
        ),
        claim(
            "central_variance", "It predicts the variance sigma^2 of the oscillation", CENTRAL,
            lambda b: b.mean(b.variances) / b.mean(b.squares), 0.5, 2, "predicted over measured 0.5 to 2", note=few,
        ),
        claim(
            "central_path", "The weights follow the central flow", CENTRAL, lambda b: b.away[1], 0, 0.05,
            "distance at most 5 % of the way since the crossing",
        ),
        claim(
            "central_nearer", "They follow it more closely than gradient flow", CENTRAL,
            lambda b: b.away[0] / b.away[1], 3, math.inf,
            "distance from gradient flow over that from the central flow at least 3",
        ),
    ]  # fmt: skip


def absent_judged(runs: Runs) -> list[Claim]:
    """Where the edge need not appear."""
    present = {name: [case.name] for name, case in ABSENT.items() if case.name in runs}
    claims = []
    if "ReLU" in present:
        late = by_seed(runs, present["ReLU"], lambda some: some[0].late)
        called = sum(run.verdict == "AT_EDGE" for run in runs[present["ReLU"][0]])
        claims.append(
            judge(
                "relu", "With ReLU gradient descent at 2/20 hovers as with tanh", GD, late, between=(0.98, 1.05),
                predicted="median of sharpness over threshold in 0.98 to 1.05 (later half)",
                note=f"The audit calls {called} of {len(late)} runs AT_EDGE",
            )
        )  # fmt: skip
    for name in ("cross-entropy", "cross-entropy, 2/4"):
        if name in present:
            largest = max(max(run.ratio.values()) for run in runs[present[name][0]])
            crossed = sum(run.crossing < math.inf for run in runs[present[name][0]])
            claims.append(
                judge(
                    name.replace(", 2/", "_2_").replace("-", "_"), f"With {name} the sharpness falls late", GD,
                    by_seed(runs, present[name], lambda some: some[0].late), between=(0, 0.5),
                    predicted="median of sharpness over threshold below 0.5 (later half)",
                    note=f"{crossed} of {len(runs[present[name][0]])} runs cross before; largest ratio {largest:.2f}",
                )
            )  # fmt: skip
    return claims


def on_digits(options: Options) -> list[Claim]:
    """All runs on digits, their figures and claims."""
    cases = [case for family in FAMILIES.values() for case in family] + list(ABSENT.values())
    if options.quick:
        wanted = [name for names in QUICK.values() for name in names]
        cases = [case for case in cases if case.name in wanted] + [ABSENT["cross-entropy"]]
    jobs = [
        (case, seed, QUICK_STEPS if options.quick else case.steps, folder(options.out, case.name, seed))
        for case in cases
        for seed in options.seeds
    ]
    done = in_parallel(trained, jobs, options.jobs, name="optimizers")
    runs: Runs = {case.name: [run for run in done if run.name == case.name] for case in cases}
    size = {"updates": 200, "samples": 300} if options.quick else {}
    found = in_parallel(partial(beside, **size), options.seeds, options.jobs, name="flows")
    flows = {seed: each for seed, each in zip(options.seeds, found, strict=True) if each is not None}
    draw(runs, list(flows.values()), options.out)
    return families_judged(runs) + (flows_judged(flows) if flows else []) + absent_judged(runs)


def folder(out: Path, name: str, seed: int) -> Path:
    """Where a run is written."""
    return out / "runs" / f"{name} {seed}".replace("/", "_").replace(",", "").replace(" ", "-")


def on_cifar(options: Options) -> list[Claim]:
    """The published network on CIFAR-10 from a local folder."""
    given = options.more
    try:
        cifar(given.cifar, given.samples)
    except DataError as error:
        raise SystemExit(f"--cifar: {error}") from error
    names = {edge: f"CIFAR-10, GD 2/{edge:g}" for edge in CIFAR_EDGES}
    jobs = [
        (given.cifar, given.samples, edge, seed, given.steps, folder(options.out, name, seed))
        for edge, name in names.items()
        for seed in options.seeds
    ]
    done = in_parallel(trained_on_cifar, jobs, options.jobs, name="CIFAR-10")
    runs: Runs = {name: [run for run in done if run.name == name] for name in names.values()}
    draw_sweep({"CIFAR-10, gradient descent": runs}, options.out, "cifar")
    order = by_seed(runs, names.values(), in_order)
    return [
        hovers("CIFAR-10", runs, GD, (0.98, 1.05), list(names.values())),
        judge(
            "cifar_later", "Smaller rates cross later: CIFAR-10", GD, order, between=(1, 1),
            predicted="all neighbouring rates in order",
        ),
    ]  # fmt: skip


def arguments_of(parser: argparse.ArgumentParser) -> None:
    """Those of this script alone."""
    parser.add_argument("--cifar", type=Path, help="folder with CIFAR-10's batches: the published network, not digits")
    parser.add_argument("--samples", type=int, default=5000, help="images of CIFAR-10 (default 5000)")
    parser.add_argument("--steps", type=int, default=CIFAR_STEPS, help=f"updates on CIFAR-10 (default {CIFAR_STEPS})")


def main(arguments: Sequence[str] | None = None) -> list[Claim]:
    """Train, draw, judge, write."""
    options = command_line(
        __doc__ or "", STUDY, seeds=5, quick_seeds=1, more=arguments_of, arguments=arguments
    )  # fmt: skip
    claims = on_cifar(options) if options.more.cifar else on_digits(options)
    print_claims(claims, STUDY)
    write_claims(options.out, STUDY, claims, quick=options.quick)
    print(f"written: {options.out}")
    if options.quick and not options.more.cifar:
        check_claims(claims, *(claim.name for claim in claims if claim.name not in LONGER))
    return claims


if __name__ == "__main__":
    main()
