"""The Hessian of over-parametrised networks: a bulk that grows with the parameters, outliers that follow the data.

ReLU networks 20-w-w-k, half squared error, on Gaussian clusters (Sagun, Bottou and LeCun 2016, arXiv 1611.07476; Sagun
et al. 2017, arXiv 1706.04454). Five experiments:

- widths: from 300 to 20,000 parameters as many eigenvalues stand out, and all others are about zero;
- clusters: k clusters of k classes, from 2 to 10: k^2 eigenvalues stand out, one for each output and cluster mean
  (Papyan 2020, arXiv 2008.11865), of which k are largest; of two classes only, two for each cluster;
- separability: clusters that come closer, until nothing separates;
- real data and another loss: digits of 2 to 10 classes; cross-entropy;
- batches: a large-batch solution, and where small batches take it: no barrier between, unless they step too far.

    python case_studies/hessian_outliers.py --quick
    python case_studies/hessian_outliers.py --out runs/outliers --jobs 4
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.stats import spearmanr
from torch import nn

from claims import Claim, check_claims, judge, print_claims, write_claims
from losscope.landscape import (
    Hessian,
    Objective,
    SpectralDensity,
    bezier_path,
    linear_path,
    spectral_density,
    top_eigenpairs,
)  # fmt: skip
from losscope.landscape.surface import LossPath
from over_parametrised.data import blobs, digits_of, relu_network, squared_error, train
from over_parametrised.outlier_figures import draw_clusters, draw_elsewhere, draw_paths, draw_widths
from study import Options, command_line, in_parallel, save_figure

SAGUN16, SAGUN17 = "Sagun et al. 2016, arXiv 1611.07476", "Sagun et al. 2017, arXiv 1706.04454"
PAPYAN = "Papyan 2020, arXiv 2008.11865"

BEYOND = 0.01
"""An eigenvalue of this share of the largest, or more, is not in the bulk about zero."""
WIDTHS, CLUSTERS, WIDTH = (8, 16, 32, 64, 128), 5, 32
COUNTS, CLASSES = (2, 3, 4, 6, 8, 10), (2, 4, 6, 8, 10)
SHARED = (3, 4, 6, 8)
"""Clusters of two classes."""
DISTANCES = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)


# --------------------------------------------------------------------------- spectra


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Of a trained network's Hessian.

    Attributes:
        top: (m,) largest eigenvalues, descending.
        parameters: P.
        loss: of training.
        density: of all eigenvalues; None where it was not asked for.
    """

    top: torch.Tensor
    parameters: int
    loss: float
    density: SpectralDensity | None = None

    @property
    def beyond(self) -> int:
        """Eigenvalues that are `BEYOND` of the largest or more, of those that were computed."""
        return int((self.top >= BEYOND * self.top[0]).sum())

    @property
    def bulk(self) -> float:
        """The share of eigenvalues about zero."""
        assert self.density is not None
        edge = BEYOND * float(self.top[0])
        return self.density.mass(-edge, edge).value

    def gap(self, most: int) -> int:
        """After which of the first `most` eigenvalues the next one is smaller by the largest factor."""
        return int(self.factors[:most].argmax()) + 1

    @property
    def factors(self) -> torch.Tensor:
        """(m - 1,) of each eigenvalue over the next."""
        positive = self.top.clamp_min(1e-12 * float(self.top[0]))
        return positive[:-1] / positive[1:]


@dataclass(frozen=True)
class Case:
    """What to train on: data of `clusters`, `apart` from the origin, or digits; and the network."""

    seed: int
    clusters: int = CLUSTERS
    classes: int | None = None
    apart: float = 3.0
    width: int = WIDTH
    digits: bool = False
    entropy: bool = False


def spectrum(case: Case, *, pairs: int | None = None, density: bool = False) -> Spectrum:
    """Train, and compute the largest eigenvalues: by default a third more than one for each output and cluster."""
    outputs = case.classes or case.clusters
    data = (
        digits_of(case.clusters, case.seed) if case.digits
        else blobs(case.clusters, case.seed, apart=case.apart, classes=case.classes)
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss() if case.entropy else squared_error
    model = relu_network(case.width, outputs, case.seed, data[0].shape[1])
    train(model, data, criterion=criterion, rate=0.05 if case.digits else 0.02, seed=case.seed)
    objective = Objective(model, data, criterion=criterion)
    H = Hessian(objective)
    pairs = pairs or -(-4 * outputs * case.clusters // 3) + 2
    found = top_eigenpairs(H, pairs, tol=1e-2, seed=case.seed)
    whole = spectral_density(H, vectors=2, steps=60, deflate=found, seed=case.seed) if density else None
    return Spectrum(found.values, H.shape[0], objective.value(), whole)


Found = Mapping[Case, Spectrum]


def width_claims(seeds: Sequence[int], found: Found) -> list[Claim]:
    """What grows with the network, and what does not."""
    widths = sorted({case.width for case in found})
    narrow, wide = ({s: found[Case(s, width=w)] for s in seeds} for w in (widths[0], widths[-1]))
    small, large = (next(iter(x.values())).parameters for x in (narrow, wide))
    return [
        judge(
            "outliers_stay", f"Eigenvalues beyond {BEYOND:.0%} of the largest, P = {large:,} over P = {small:,}",
            SAGUN16, {s: wide[s].beyond / narrow[s].beyond for s in seeds}, between=(0.8, 1.25), predicted="1",
            note=f"{large / small:.0f} times the parameters; the largest gap is after {CLUSTERS**2} in {_clean(wide)} "
            f"of {len(seeds)} seeds at P = {large:,} and in {_clean(narrow)} at P = {small:,}",
        ),
        judge(
            "bulk_is_zero", f"Share of eigenvalues within {BEYOND:.0%} of the largest about zero, P = {large:,}",
            SAGUN16, {s: wide[s].bulk for s in seeds}, between=(0.99, 1), predicted="nearly 1",
            note=f"at P = {small:,} {', '.join(f'{narrow[s].bulk:.3f}' for s in seeds)}",
        ),
    ]  # fmt: skip


def _clean(found: Mapping[int, Spectrum]) -> int:
    """In how many the largest gap is after one eigenvalue for each output and cluster."""
    return sum(spectrum.gap(len(spectrum.top) - 1) == CLUSTERS**2 for spectrum in found.values())


def cluster_claims(seeds: Sequence[int], found: Found, shared: Found) -> list[Claim]:
    """How many stand out, for how many clusters."""
    counts = sorted({case.clusters for case in found})

    def of(seed: int, k: int) -> Spectrum:
        return found[Case(seed, k)]

    few = [k for k in counts if k <= 6]
    many = [k for k in counts if k >= 4]
    claims = [
        judge(
            "one_for_each_output_and_cluster", f"k clusters of k classes, k of {_listed(few)}: share of k for which "
            "the largest gap is after k^2 eigenvalues", PAPYAN,
            {s: sum(of(s, k).gap(len(of(s, k).top) - 1) == k * k for k in few) / len(few) for s in seeds},
            between=(1, 1), predicted="1",
        ),
        judge(
            "the_first_of_them", f"and of k of {_listed(many)}: share for which the largest gap in the first 2k is "
            "after k", SAGUN16, {s: sum(of(s, k).gap(2 * k) == k for k in many) / len(many) for s in seeds},
            between=(1, 1), predicted="1",
        ),
        judge(
            "count_follows_the_data", f"Rank correlation of k and the eigenvalues beyond {BEYOND:.0%} of the largest",
            SAGUN17, {s: float(spearmanr(counts, [of(s, k).beyond for k in counts]).statistic) for s in seeds},
            between=(0.99, 1), predicted="1",
        ),
    ]  # fmt: skip
    if shared:
        clusters = sorted({case.clusters for case in shared})
        ratio = {
            s: sum(shared[Case(s, k, 2)].beyond / (2 * k) for k in clusters) / len(clusters) for s in seeds
        }  # fmt: skip
        claims.append(judge(
            "clusters_not_classes", f"Two classes of k clusters, k of {_listed(clusters)}: eigenvalues beyond "
            f"{BEYOND:.0%} of the largest over 2k, mean over k", SAGUN17, ratio, between=(0.75, 1.25), predicted="1",
        ))  # fmt: skip
    return claims


def separability_claims(seeds: Sequence[int], found: Found) -> list[Claim]:
    """The gap closes as clusters come closer."""
    distances = sorted({case.apart for case in found})
    n = CLUSTERS**2

    def factor(seed: int, apart: float) -> float:
        return float(found[Case(seed, apart=apart)].factors[n - 1])

    return [
        judge(
            "separability", f"Rank correlation of the clusters' distance and the factor after {n} eigenvalues", SAGUN17,
            {s: float(spearmanr(distances, [factor(s, d) for d in distances]).statistic) for s in seeds},
            between=(0.8, 1), predicted="1",
        ),
        judge(
            "no_gap_without_separation", f"Factor after {n} eigenvalues, clusters at {distances[0]:g} of the noise's "
            "length", SAGUN17, {s: factor(s, distances[0]) for s in seeds}, between=(1, 1.5), predicted="about 1",
            note=f"at {distances[-1]:g}: {', '.join(f'{factor(s, distances[-1]):.1f}' for s in seeds)}",
        ),
    ]  # fmt: skip


def elsewhere_claims(seeds: Sequence[int], real: Found, entropy: Found) -> list[Claim]:
    """Digits, and cross-entropy: where the count is not clean."""
    classes = sorted({case.clusters for case in real})

    def digit(seed: int, k: int) -> Spectrum:
        return real[Case(seed, k, digits=True)]

    counts = sorted({case.clusters for case in entropy})
    gaps = {s: [entropy[Case(s, k, entropy=True)] for k in counts] for s in seeds}
    return [
        judge(
            "digits_first", f"Real data of k classes, k of {_listed(classes)}: share of k for which the largest gap in "
            "the first 2k is after k or k - 1", SAGUN16,
            {s: sum(digit(s, k).gap(2 * k) in (k, k - 1) for k in classes) / len(classes) for s in seeds},
            between=(1, 1), predicted="1",
        ),
        judge(
            "digits_grow", "Real data: rank correlation of k and the eigenvalues beyond 10% of the largest", SAGUN17,
            {s: float(spearmanr(classes, [_tenth(digit(s, k)) for k in classes]).statistic) for s in seeds},
            between=(0.8, 1), predicted="1",
        ),
        judge(
            "entropy_first", f"Clusters with cross-entropy, k of {_listed(counts)}: share of k for which the largest "
            "gap in the first 2k is after k or k - 1", SAGUN16,
            {s: sum(x.gap(2 * k) in (k, k - 1) for x, k in zip(gaps[s], counts, strict=True)) / len(counts)
             for s in seeds}, between=(1, 1), predicted="1",
            note="once all are classified the curvature p (1 - p) of each sample fades at a pace of its own",
        ),
    ]  # fmt: skip


def _tenth(found: Spectrum) -> int:
    return int((found.top >= 0.1 * found.top[0]).sum())


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


# --------------------------------------------------------------------------- small and large batches


@dataclass(frozen=True, eq=False)
class Batches:
    """From a large-batch solution to others.

    Attributes:
        onward: straight to where small batches take it.
        faster: the same at three times the rate.
        apart: straight to a small-batch solution from other initial weights.
        bent: to that one by a trained Bezier curve.
        moved: lengths of the first two, over the distance that the large batches had come.
    """

    onward: LossPath
    faster: LossPath
    apart: LossPath
    bent: LossPath
    moved: tuple[float, float]


def batches(seed: int, *, steps: int = 4000, epochs: int = 150) -> Batches:
    """Digits with cross-entropy: all samples at once, then mini-batches of 16 from there."""
    data, entropy = digits_of(10, seed, 1000), nn.CrossEntropyLoss()
    inputs, outputs = data[0].shape[1], int(data[1].max()) + 1
    start, elsewhere = (relu_network(64, outputs, s, inputs) for s in (seed, 1000 + seed))
    large = train(copy.deepcopy(start), data, criterion=entropy, rate=0.1, size=len(data[0]), steps=60)
    small = partial(train, data=data, criterion=entropy, momentum=0.0, size=16, steps=steps, seed=seed)
    objective = Objective(large, data, criterion=entropy)
    straight = partial(linear_path, objective, large, names=("large batches", "small batches"))
    onward, faster = (straight(small(copy.deepcopy(large), rate=rate)) for rate in (0.1, 0.3))
    other = small(elsewhere, rate=0.1)
    begun = linear_path(objective, start, large, points=3).length
    bent = bezier_path(objective, large, other, epochs=epochs, names=("large batches", "small batches"), seed=seed)
    return Batches(onward, faster, straight(other), bent, (onward.length / begun, faster.length / begun))


def batch_claims(seeds: Sequence[int], found: Sequence[Batches]) -> list[Claim]:
    """What lies between small- and large-batch solutions: the loss above the worse end, as ends differ."""
    by_seed = dict(zip(seeds, found, strict=True))
    moved = [", ".join(f"{b.moved[i]:.2f}" for b in found) for i in (0, 1)]
    return [
        judge(
            "no_barrier_onward", "Large batches, then small ones from there: loss on the line above its worse end",
            SAGUN17, {s: b.onward.above_worse_end for s, b in by_seed.items()}, between=(-math.inf, 0.01),
            predicted="0",
            note=f"small batches move it {moved[0]} times as far as large ones had",
        ),
        judge(
            "no_barrier_faster", "The same at three times the rate", SAGUN17,
            {s: b.faster.above_worse_end for s, b in by_seed.items()}, between=(-math.inf, 0.01), predicted="0",
            note=f"small batches move it {moved[1]} times as far",
        ),
        judge(
            "barrier_apart", "To a small-batch solution from other initial weights: the same",
            "Frankle et al. 2020, arXiv 1912.05671", {s: b.apart.above_worse_end for s, b in by_seed.items()},
            between=(0.1, math.inf), predicted="above 0.1",
        ),
        judge(
            "no_barrier_bent", "To that one by a Bezier curve: loss above its worse end",
            "Garipov et al. 2018, arXiv 1802.10026", {s: b.bent.above_worse_end for s, b in by_seed.items()},
            between=(-math.inf, 0.02), predicted="0",
        ),
    ]  # fmt: skip


# --------------------------------------------------------------------------- all of it


def study(options: Options) -> list[Claim]:
    """Run the experiments and judge them; the short version has few of each."""
    seeds, jobs, quick = options.seeds, options.jobs, options.quick

    def spectra(name: str, cases: list[Case], **settings: object) -> dict[Case, Spectrum]:
        task = partial(spectrum, **settings)  # type: ignore[arg-type]
        return dict(zip(cases, in_parallel(task, cases, jobs, name=name), strict=True))

    widths = spectra("widths", [Case(s, width=w) for s in seeds for w in (WIDTHS[1::2] if quick else WIDTHS)],
                     pairs=40, density=True)  # fmt: skip
    counts = (2, 4) if quick else COUNTS
    clusters = spectra("clusters", [Case(s, k) for s in seeds for k in counts])
    shared = {} if quick else spectra("two classes", [Case(s, k, 2) for s in seeds for k in SHARED], pairs=40)
    claims = width_claims(seeds, widths) + cluster_claims(seeds, clusters, shared)
    if quick:
        return claims + batch_claims(seeds[:1], [batches(s, steps=1000, epochs=60) for s in seeds[:1]])
    apart = spectra("distances", [Case(s, apart=d) for s in seeds for d in DISTANCES])
    real = spectra("digits", [Case(s, k, digits=True) for s in seeds for k in CLASSES])
    entropy = spectra("cross-entropy", [Case(s, k, entropy=True) for s in seeds for k in CLASSES], pairs=30)
    paths = in_parallel(batches, seeds, jobs, name="batches")
    save_figure(draw_widths(widths, BEYOND), options.out, "widths")
    save_figure(draw_clusters(clusters, apart, CLUSTERS, BEYOND), options.out, "clusters")
    save_figure(draw_elsewhere(real, entropy), options.out, "elsewhere")
    save_figure(draw_paths(dict(zip(seeds, paths, strict=True))), options.out, "batches")
    return [
        *claims, *separability_claims(seeds, apart), *elsewhere_claims(seeds, real, entropy),
        *batch_claims(seeds, paths),
    ]  # fmt: skip


def main() -> None:
    """Everything, the table, and with ``--quick`` the assertions."""
    options = command_line(__doc__, "hessian_outliers")
    claims = study(options)
    write_claims(options.out, "hessian_outliers", claims, quick=options.quick)
    print_claims(claims, "The Hessian of over-parametrised networks")
    if options.quick:
        check_claims(claims, *(claim.name for claim in claims if claim.name != "no_barrier_faster"))


if __name__ == "__main__":
    main()
