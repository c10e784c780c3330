"""The tangent kernel: constant in wide networks (lazy), learned in narrow ones and at a small output scale (rich).

- width: networks on digits in the parametrisation of Jacot et al. 2018 (arXiv 1806.07572), where the kernel has a
  limit: how far it drifts, against the width;
- scale: the same network with outputs ``alpha (f - f_0)`` (Chizat et al. 2019, arXiv 1812.07956), drift against alpha,
  alignment with the labels, and kernel regression beside the network;
- early: SGD in torch's own parametrisation, where most of the motion falls into the first epochs and the kernel of
  later predicts better than that of the start (Fort et al. 2020, arXiv 2010.15110);
- gap: what lazy training costs where the kernel of the start is wrong, by `tangent/quadratic_network.py`, and how test
  error lags behind training error (Kumar et al. 2024, arXiv 2310.06110);
- grokking: large initial weights on digits, by `tangent/grokking.py`, which fit at once and generalise late.

    python case_studies/tangent_kernel.py --quick
    python case_studies/tangent_kernel.py --out runs/tangent --jobs 4
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from scipy.stats import linregress
from torch import Tensor, nn
from torch.nn import functional as F

from claims import Claim, check_claims, judge, print_claims, write_claims
from digits_training import minibatches
from losscope.landscape import Objective, tangent_kernel
from losscope.landscape.tangent import kernel_regression, lazy_summary
from losscope.probes import TangentKernel, watch
from losscope.viz.demo import digits
from study import Options, command_line, in_parallel, save_figure
from tangent.figures import draw_early, draw_gap, draw_grokking, draw_lazy
from tangent.grokking import Start, grokked, grokking_claims
from tangent.quadratic_network import Fit, Setting, fitted

JACOT, CHIZAT = "Jacot et al. 2018, arXiv 1806.07572", "Chizat et al. 2019, arXiv 1812.07956"
FORT, KUMAR = "Fort et al. 2020, arXiv 2010.15110", "Kumar et al. 2024, arXiv 2310.06110"
DYER = "Dyer & Gur-Ari 2020, arXiv 1909.11304"
WIDTHS, ALPHAS, WIDTH, STEPS = (32, 64, 128, 256, 512), (0.3, 1.0, 3.0, 10.0, 30.0), 64, 300
"""Widths at alpha = 1, scales at one width, and updates of gradient descent."""
TRAIN, TEST, WATCHED = 200, 300, 128
"""Digits to train on, to test on, and of the former how many the drift is measured on."""
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
FORT_WIDTHS, EPOCHS, EARLY, BATCH, RATE = (32, 128, 512), 30, 3, 64, 0.2
GAPS, LAGS = (1.0, 10.0), (0.5, 0.1)
"""Output scales of the quadratic network; its activation's eps at alpha = 10, for the lag."""
STARTS = ((6.0, 12_000), (1.0, 1000))
"""Scales of the initial weights, and updates, for grokking and its absence."""


def centred_digits(seed: int, samples: int = 1797) -> tuple[Tensor, Tensor]:
    """Digits in an order that the seed gives, every pixel with mean zero, and class indices; other data can stand here.

    A common mean of the inputs would be the kernel's first direction, which nothing moves.
    """
    x, y = digits(seed, samples)
    return x - x.mean(dim=0), y.argmax(dim=1)


# --------------------------------------------------------------------------- width and scale


class Layer(nn.Linear):
    """Standard normal weights, and the factor ``gain / sqrt(inputs)`` in the forward pass."""

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight)
        self.factor = gain / inputs**0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * super().forward(x)


def network(width: int, activation: str = "tanh", inputs: int = 64, outputs: int = 10) -> nn.Sequential:
    """Two hidden layers in the parametrisation that has a limit; any other can stand here."""
    act = ACTIVATIONS[activation]
    return nn.Sequential(
        Layer(inputs, width, 1.0), act(), Layer(width, width, 2**0.5), act(), Layer(width, outputs, 2**0.5)
    )  # fmt: skip


def torch_network(width: int, inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers in torch's own parametrisation, for SGD; any other can stand here."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )  # fmt: skip


class Scaled(nn.Module):
    """``alpha (f - f_0)``."""

    def __init__(self, model: nn.Module, alpha: float) -> None:
        super().__init__()
        self.model, self.start, self.alpha = model, copy.deepcopy(model).requires_grad_(False), alpha

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * (self.model(x) - self.start(x))


@dataclass(frozen=True)
class Drift:
    """How far one training went.

    Attributes:
        change: ``|K_T - K_0| / |K_0|``.
        distance: ``1 - cos(K_0, K_T)``, centred.
        linearisation: error of the model linearised at the start.
        parameters: ``|theta_T - theta_0| / |theta_0|``.
        alignment: with the labels at the end, less that at the start.
        train: share of training samples that are right.
        network: of test samples.
        first: the same of regression with the kernel of the start; NaN where it was not computed.
        last: with that of the end.
    """

    change: float
    distance: float
    linearisation: float
    parameters: float
    alignment: float
    train: float
    network: float
    first: float
    last: float


def drifted(
    case: tuple[int, float, int], steps: int = STEPS, regression: bool = False, activation: str = "tanh"
) -> Drift:
    """Gradient descent on the squared loss, at half of the rate at which the kernel of the start is unstable.

    Args:
        case: width, alpha and seed.
        steps: updates.
        regression: whether to compare with kernel regression, too.
        activation: ``"tanh"``, or ``"relu"`` whose derivative jumps.
    """
    width, alpha, seed = case
    torch.manual_seed(seed)
    x, y = centred_digits(seed)
    classes = int(y.max()) + 1
    model = Scaled(network(width, activation, x.shape[1], classes), alpha)
    target = F.one_hot(y, classes).float() - 1 / classes
    samples = slice(0, TRAIN + TEST) if regression else slice(0, WATCHED)
    objective = Objective(model, (x[samples], y[samples]), criterion=nn.CrossEntropyLoss())
    start = objective.space.flatten([p.detach().clone() for p in objective.parameters.values()])
    first = tangent_kernel(objective)
    fit = first.matrix[:TRAIN, :TRAIN]
    # The outputs move by rate * K / n: the kernel has the factor alpha^2, the rate does without it.
    rate = len(fit) / float(torch.linalg.eigvalsh(fit)[-1])
    optimizer = torch.optim.SGD(model.model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (model(x[:TRAIN]) - target[:TRAIN]).square().sum(dim=1).mean()).backward()
        optimizer.step()
    last = tangent_kernel(objective)
    moved = lazy_summary(objective, start, first, last, targets=y[samples])
    with torch.no_grad():
        right = (model(x).argmax(dim=1) == y).double()
    accuracies = [
        kernel_regression(kernel, y[samples], TRAIN).accuracy if regression else math.nan for kernel in (first, last)
    ]
    return Drift(
        moved.change, moved.centred, moved.linearisation, moved.parameters,
        float(moved.alignment or 0) - float(moved.alignment_start or 0), float(right[:TRAIN].mean()),
        float(right[TRAIN : TRAIN + TEST].mean()), *accuracies,
    )  # fmt: skip


Drifts = Mapping[tuple[int, float, int], Drift]


def slopes(found: Drifts, name: str, along: int, seeds: Sequence[int], least: float = 0.0) -> dict[int, float]:
    """Of a number against width (``along=0``) or scale (``along=1``) in logarithms, by seed."""
    fits = {}
    for seed in seeds:
        points = [(c[along], getattr(d, name)) for c, d in found.items() if c[2] == seed and c[along] >= least]
        fits[seed] = float(linregress([math.log(a) for a, _ in points], [math.log(b) for _, b in points]).slope)
    return fits


def width_claims(found: Drifts, seeds: Sequence[int]) -> list[Claim]:
    """The wider, the less the kernel moves."""
    change, distance, linear = (slopes(found, name, 0, seeds) for name in ("change", "distance", "linearisation"))
    return [
        judge("width_change", "Slope of |K_T - K_0|/|K_0| against width, logarithms", f"{JACOT}; {DYER}", change,
              between=(-1.2, -0.4), predicted="-1 to -1/2"),
        judge("width_distance", "Slope of the centred distance 1 - cos(K_0, K_T) against width", JACOT, distance,
              between=(-2.4, -0.8), predicted="twice that, -2 to -1"),
        judge("width_linear", "Slope of the linearised model's error against width", CHIZAT, linear,
              between=(-1.2, -0.3), predicted="-1/2 or steeper"),
    ]  # fmt: skip


def kink_claims(found: Drifts, seeds: Sequence[int]) -> list[Claim]:
    """Where the theory's smoothness is missing: units that switch change the kernel by steps, at random."""
    return [
        judge("scale_relu", "ReLU: slope of |K_T - K_0|/|K_0| against alpha >= 3", CHIZAT,
              slopes(found, "change", 1, seeds, 3.0), between=(-1.2, -0.8), predicted="-1 for smooth activations",
              note="the theorem asks for a smooth derivative; n switches at random add up as their root"),
    ]  # fmt: skip


def scale_claims(found: Drifts, seeds: Sequence[int]) -> list[Claim]:
    """The larger alpha, the less the kernel moves, and the less it learns."""
    lazy, rich = max(c[1] for c in found), min(c[1] for c in found)

    def at(alpha: float, name: str) -> dict[int, float]:
        return {s: getattr(next(d for c, d in found.items() if c[1:] == (alpha, s)), name) for s in seeds}

    gains = {s: at(rich, "last")[s] - at(rich, "first")[s] for s in seeds}
    beside = {s: at(lazy, "network")[s] - at(lazy, "first")[s] for s in seeds}
    return [
        judge("scale_change", "Slope of |K_T - K_0|/|K_0| against alpha >= 3, logarithms", CHIZAT,
              slopes(found, "change", 1, seeds, 3.0), between=(-1.2, -0.8), predicted="-1"),
        judge("scale_linear", "Slope of the linearised model's error against alpha >= 3", CHIZAT,
              slopes(found, "linearisation", 1, seeds, 3.0), between=(-1.2, -0.8), predicted="-1"),
        judge("rich_alignment", f"Kernel-label alignment gained, alpha = {rich:g}", KUMAR, at(rich, "alignment"),
              between=(0.02, 1), predicted="rises"),
        judge("lazy_alignment", f"Kernel-label alignment gained, alpha = {lazy:g}", KUMAR, at(lazy, "alignment"),
              between=(-0.01, 0.01), predicted="0"),
        judge("lazy_is_kernel", f"Test accuracy of the network less that of regression with K_0, alpha = {lazy:g}",
              JACOT, beside, between=(-0.05, 0.05), predicted="0"),
        judge("kernel_learns", f"Test accuracy with K_T less that with K_0, alpha = {rich:g}", FORT, gains,
              between=(0, 1), predicted="above 0"),
    ]  # fmt: skip


# --------------------------------------------------------------------------- early in SGD


@dataclass(frozen=True)
class Course:
    """The kernel at the beginning of each epoch, and after the last.

    Attributes:
        distance: plain, from the start.
        centred: the same of the centred kernels.
        alignment: with the labels.
        errors: test error of regression with the kernel of the start, after `EARLY` epochs and at the end.
        network: of the network at the end.
    """

    distance: tuple[float, ...]
    centred: tuple[float, ...]
    alignment: tuple[float, ...]
    errors: tuple[float, float, float]
    network: float


def watched(case: tuple[int, int], epochs: int = EPOCHS, out: Path | None = None) -> Course:
    """A training of a width and seed by SGD, in torch's parametrisation, with the kernel measured before each epoch."""
    width, seed = case
    torch.manual_seed(seed)
    x, y = centred_digits(seed)
    model = torch_network(width, x.shape[1], int(y.max()) + 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    train, some = len(y) - TEST, torch.cat([torch.arange(TRAIN), torch.arange(len(y) - TEST, len(y))])
    objective = Objective(model, (x[some], y[some]), criterion=nn.CrossEntropyLoss())
    batches, steps = minibatches(x[:train], y[:train], BATCH, seed), -(-train // BATCH)
    errors = []
    with watch(
        model, optimizer, data=(x[:WATCHED], y[:WATCHED]), criterion=F.cross_entropy, probes=[TangentKernel()],
        every=steps, batch_size=BATCH, out=None if out is None else out / "runs" / f"width-{width}-{seed}",
    ) as run:  # fmt: skip
        for epoch in range(epochs):
            if epoch in (0, EARLY):
                errors.append(1 - kernel_regression(tangent_kernel(objective), y[some], TRAIN).accuracy)
            for _ in range(steps):
                inputs, targets = next(batches)
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
        run.measure_now()
    errors.append(1 - kernel_regression(tangent_kernel(objective), y[some], TRAIN).accuracy)
    records = run.run.select("tangent_kernel")
    with torch.no_grad():
        wrong = float((model(x[train:]).argmax(dim=1) != y[train:]).double().mean())
    columns = [tuple(float(r.values[name] or 0) for r in records) for name in ("centred", "alignment")]
    return Course(tuple(float(r.value or 0) for r in records), *columns, tuple(errors), wrong)  # type: ignore[arg-type]


def early_claims(found: Mapping[tuple[int, int], Course], seeds: Sequence[int]) -> list[Claim]:
    """Most of the motion is early, in a wide network less, and the kernel improves."""
    widths = sorted({width for width, _ in found})
    shares = {s: min(found[w, s].distance[EARLY] / found[w, s].distance[-1] for w in widths) for s in seeds}
    ratio = {s: found[widths[-1], s].distance[-1] / found[widths[0], s].distance[-1] for s in seeds}
    better = {s: found[widths[0], s].errors[1] / found[widths[0], s].errors[0] for s in seeds}
    rising = {s: min(found[w, s].alignment[-1] - found[w, s].alignment[0] for w in widths) for s in seeds}
    return [
        judge("early_share", f"SGD: share of the final distance that is there after {EARLY} epochs, smallest of widths",
              FORT, shares, between=(0.5, 1.3), predicted="most of it"),
        judge("early_width", f"SGD: final distance at width {widths[-1]} over that at {widths[0]}", JACOT, ratio,
              between=(0, 0.6), predicted="below 1"),
        judge("early_alignment", "SGD: kernel-label alignment gained, smallest of widths", FORT, rising,
              between=(0.02, 1), predicted="rises"),
        judge("early_kernel", f"SGD: test error with K of epoch {EARLY} over that with K_0, width {widths[0]}", FORT,
              better, between=(0, 0.5), predicted="about 1/3 (on CIFAR)"),
    ]  # fmt: skip


# --------------------------------------------------------------------------- the gap


def gap_claims(fits: Mapping[Setting, Fit], seeds: Sequence[int]) -> list[Claim]:
    """What lazy training costs, and how late test error follows."""
    by = {(s.alpha, s.eps, s.seed): fit for s, fit in fits.items()}
    lazy, rich = max(a for a, e, _ in by if e == 0.5), min(a for a, e, _ in by if e == 0.5)
    claims = [
        judge("gap", f"Test error at one training error, alpha = {lazy:g} over alpha = {rich:g}", KUMAR,
              {s: by[lazy, 0.5, s].test[-1] / by[rich, 0.5, s].test[-1] for s in seeds}, between=(3, math.inf),
              predicted="well above 1"),
        judge("gap_kernel", "Test error of the rich network over that of regression with K_0", KUMAR,
              {s: by[rich, 0.5, s].test[-1] / by[rich, 0.5, s].first for s in seeds}, between=(0, 0.2),
              predicted="well below 1"),
        judge("gap_learned", "Test error of regression with K_T over that with K_0, rich", KUMAR,
              {s: by[rich, 0.5, s].last / by[rich, 0.5, s].first for s in seeds}, between=(0, 0.5),
              predicted="below 1"),
    ]  # fmt: skip
    last = min(e for _, e, _ in by)
    if last < 0.5:
        lags = {s: _lag(by[lazy, last, s]) for s in seeds}
        claims.append(judge(
            "delayed_drop", f"Steps until test error is a fifth, over those of training error, alpha = {lazy:g}, "
            f"eps = {last:g}", KUMAR, lags, between=(5, math.inf), predicted="much later (grokking)",
        ))  # fmt: skip
    return claims


def _lag(fit: Fit) -> float:
    """How many times later test error falls to a fifth; infinite where it never does."""
    train, test = fit.when(fit.train, 0.2), fit.when(fit.test, 0.2)
    return math.inf if train is None or test is None else test / train


# --------------------------------------------------------------------------- all of it


def study(options: Options) -> list[Claim]:
    """Train, measure and judge; the short version takes the ends of what is varied."""
    seeds, jobs, quick = options.seeds, options.jobs, options.quick
    widths = [(w, 1.0, s) for s in seeds for w in ((32, 64, 128, 256) if quick else WIDTHS)]
    scales = [(WIDTH, a, s) for s in seeds for a in ((0.3, 3.0, 30.0) if quick else ALPHAS)]
    steps = STEPS // 2 if quick else STEPS
    by_width = dict(zip(widths, in_parallel(partial(drifted, steps=steps), widths, jobs, name="widths"), strict=True))
    regress = partial(drifted, steps=steps, regression=True)
    by_scale = dict(zip(scales, in_parallel(regress, scales, jobs, name="scales"), strict=True))
    kinks = [] if quick else [c for c in scales if c[1] >= 1]
    task = partial(drifted, steps=steps, activation="relu")
    by_kink = dict(zip(kinks, in_parallel(task, kinks, jobs, name="ReLU"), strict=True))
    early = [(w, s) for s in seeds for w in ((16, 128) if quick else FORT_WIDTHS)]
    course = partial(watched, epochs=6 if quick else EPOCHS, out=options.out)
    courses = dict(zip(early, in_parallel(course, early, jobs, name="SGD"), strict=True))
    stop = 1e-3 if quick else 1e-6
    settings = [Setting(a, s, stop=stop) for s in seeds for a in GAPS]
    if not quick:
        settings += [Setting(GAPS[-1], s, eps=e, stop=3e-3) for s in seeds for e in LAGS[1:]]
    fits = dict(zip(settings, in_parallel(fitted, settings, jobs, name="quadratic networks"), strict=True))
    claims = width_claims(by_width, seeds) + scale_claims(by_scale, seeds)
    claims += kink_claims(by_kink, seeds) if by_kink else []
    claims += early_claims(courses, seeds) + gap_claims(fits, seeds)
    if not quick:
        starts = [Start(s, scale, updates) for s in seeds for scale, updates in STARTS]
        late = dict(
            zip(starts, in_parallel(partial(grokked, out=options.out), starts, jobs, name="grokking"), strict=True)
        )
        claims += grokking_claims(late, seeds)
        save_figure(draw_grokking(late), options.out, "grokking")
        save_figure(draw_lazy(by_width, by_scale, by_kink), options.out, "lazy")
        save_figure(draw_early(courses, EARLY), options.out, "early")
        save_figure(draw_gap(fits), options.out, "gap")
    return claims


ROBUST = (
    "width_change", "width_distance", "scale_change", "scale_linear", "rich_alignment", "lazy_alignment", "early_width",
    "gap", "gap_kernel", "gap_learned",
)  # fmt: skip


def main() -> None:
    """Everything, the table, and with ``--quick`` the assertions."""
    options = command_line(__doc__, "tangent_kernel", quick_seeds=1)
    claims = study(options)
    write_claims(options.out, "tangent_kernel", claims, quick=options.quick)
    print_claims(claims, "Tangent kernel")
    if options.quick:
        check_claims(claims, *ROBUST)


if __name__ == "__main__":
    main()
