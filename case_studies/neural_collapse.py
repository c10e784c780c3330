"""Neural collapse: features and classifier tend to a simplex, as far as training can take them there.

Papyan, Han and Donoho 2020 (PNAS 117, 24652) name four properties of the last layer once every sample is fitted:
features come together in their classes (NC1), class means and classifier form a simplex (NC2) and become the same
(NC3), and the nearest class mean decides (NC4). What is measured here:

- theory: three models of `collapse/free_features.py` in which collapse is exact, or as close as a tether lets it come;
- networks on digits: with batch normalisation and several weight decays, and plain ones, over training and by layer;
- imbalance: a network that sees half of the classes twenty times less often.

    python case_studies/neural_collapse.py --quick
    python case_studies/neural_collapse.py --out runs/collapse --jobs 4
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from scipy.stats import linregress
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from claims import Claim, check_claims, judge, print_claims, write_claims
from collapse.figures import draw_free, draw_networks, draw_properties
from collapse.free_features import Tether, mean_cosine, minimiser, path, peeled, unconstrained
from losscope.probes import NeuralCollapse, watch
from losscope.viz.demo import digits
from study import Options, command_line, in_parallel, save_figure

PAPYAN, TIRER = "Papyan et al. 2020, PNAS 117, 24652", "Tirer et al. 2023, arXiv 2210.16658"
ZHU, FANG, HE_SU = "Zhu et al. 2021, arXiv 2105.02375", "Fang et al. 2021, arXiv 2101.12699", "He & Su 2023, PNAS 120"
SAMPLES, BATCH, RATE, RARE = 1500, 64, 0.05, 20
"""Digits to train on (the other 297 test), samples of an update, rate, and how much rarer the rare classes are."""
DECAYS, PLAIN_DECAYS = (0.0, 5e-4, 5e-3, 1e-2), (5e-4, 5e-3)
BETAS, RATIOS = (1e-3, 1e-2, 0.1, 1.0), (1, 3, 10, 30, 100, 300, 1000, 3000)
COLLAPSED, FAR, EXACT = 0.02, 0.1, 1e-6
PROPERTIES = ("nc1", "equinorm", "equiangularity", "nc3")


@dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        seed: of data, weights and order.
        normalised: whether there is batch normalisation, and 256 units in a layer instead of 64.
        decay: weight decay.
        rare: how many times fewer samples the later half of the classes have.
        epochs: the rate falls by 10 after a third and two thirds of them.
    """

    seed: int
    normalised: bool = True
    decay: float = 5e-3
    rare: int = 1
    epochs: int = 200

    @property
    def name(self) -> str:
        """Of its folder."""
        kind = "normalised" if self.normalised else "plain"
        return f"{kind}-{self.decay:g}-{self.rare}-{self.seed}"


@dataclass(frozen=True)
class Training:
    """What was measured of one.

    Attributes:
        epochs: when.
        values: the numbers of `Collapse` then, those of lower layers after their names.
        fitted: the first of these epochs at which no training sample was wrong; None where there was none.
        test_errors: share of wrong test samples, at each of them.
        rare: mean cosine between the classifier's rows of the later half of the classes, at the end.
        common: of the others.
    """

    epochs: tuple[int, ...]
    values: tuple[Mapping[str, float], ...]
    fitted: int | None
    test_errors: tuple[float, ...]
    rare: float
    common: float

    def column(self, name: str) -> list[float]:
        """One number over training."""
        return [values.get(name, math.nan) for values in self.values]


def network(case: Case) -> nn.Sequential:
    """Three hidden layers with ReLU, and a linear classifier; any model that ends in one can stand here."""
    width = 256 if case.normalised else 64
    layers: list[nn.Module] = []
    for size in (64, width, width):
        layers += [nn.Linear(size, width), *([nn.BatchNorm1d(width)] if case.normalised else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def data(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and class indices, to train on and to test; any others can stand here."""
    x, one_hot = digits(case.seed, 1797)
    y = one_hot.argmax(dim=1)
    train, test = torch.arange(SAMPLES), torch.arange(SAMPLES, len(y))
    if case.rare > 1:
        kept = [(y[train] == c).nonzero().flatten() for c in range(int(y.max()) + 1)]
        rare = [case.rare if 2 * c >= len(kept) else 1 for c in range(len(kept))]
        train = torch.cat([some[: len(some) // ratio] for some, ratio in zip(kept, rare, strict=True)])
    return x[train], y[train], x[test], y[test]


def layers_of(model: nn.Sequential) -> list[str]:
    """What is measured: each ReLU, the last as the classifier's input."""
    found = [name for name, module in model.named_children() if isinstance(module, nn.ReLU)]
    return ["penultimate", *found[:-1]]


def trained(case: Case, out: Path | None = None) -> Training:
    """Train on digits under watch."""
    torch.manual_seed(case.seed)
    x, y, *test = data(case)
    model = network(case)
    optimizer = SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=case.decay)
    schedule = MultiStepLR(optimizer, [case.epochs // 3 + 1, 2 * case.epochs // 3])
    order = torch.Generator().manual_seed(case.seed)
    updates, every = -(-len(y) // BATCH), -(-case.epochs // 30)
    wrong: list[tuple[float, float]] = []
    with watch(
        model, optimizer, data=[(x, y)], criterion=nn.CrossEntropyLoss(), mode="train", batch_size=BATCH,
        out=None if out is None else out / "runs" / case.name, probes=[NeuralCollapse(layers_of(model))],
        every=every * updates, seed=case.seed, on_error="raise",
    ) as run:  # fmt: skip
        for epoch in range(case.epochs):
            if epoch % every == 0:
                wrong.append((_wrong(model, x, y), _wrong(model, *test)))
            for some in torch.randperm(len(y), generator=order).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(x[some]), y[some]).backward()
                optimizer.step()
            schedule.step()
        wrong.append((_wrong(model, x, y), _wrong(model, *test)))
        run.measure_now()
    records = run.run.select("neural_collapse")
    rows = next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)).weight.detach()
    epochs = tuple(r.step // updates for r in records)
    values = tuple({k: v for k, v in r.values.items() if v is not None} for r in records)
    fitted = next((epoch for epoch, (train, _) in zip(epochs, wrong, strict=True) if train == 0), None)
    middle = -(-len(rows) // 2)
    cosines = mean_cosine(rows[middle:]), mean_cosine(rows[:middle])
    return Training(epochs, values, fitted, tuple(test for _, test in wrong), *cosines)


@torch.no_grad()
def _wrong(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    share = float((model(x).argmax(dim=1) != y).double().mean())
    model.train()
    return share


# --------------------------------------------------------------------------- claims


Trainings = Mapping[Case, Training]


def theory(seed: int, quick: bool = False) -> dict[str, float]:
    """What the models of free features measure: the numbers that claims are about, and those that are drawn."""
    collapse = unconstrained(seed)
    betas = (1e-3, 1e-2) if quick else BETAS
    at = {beta: minimiser(Tether(beta=beta), seed) for beta in betas}
    descent = path(Tether(), seed, steps=150 if quick else 600)
    decays = {d: minimiser(Tether(decay=d), seed)[1] for d in (5e-4, 5e-2)}
    feature_decays = {d: minimiser(Tether(feature_decay=d), seed)[1] for d in (5e-4, 5e-2)}
    cosines = {ratio: peeled(ratio, seed) for ratio in ((1, 1000) if quick else RATIOS)}
    found = {
        "unconstrained": max(
            collapse.numbers[name] for name in (*PROPERTIES, "nc1_quotient", "cdnv", "etf_error", "nc4")
        ),
        "path": sum(b < a for a, b in itertools.pairwise(descent)) / (len(descent) - 1),
        "shrunk": max(after / before for before, after, _ in at.values()),
        "theory": max(abs(after / predicted - 1) for _, after, predicted in at.values()),
        "decay": decays[5e-2] / decays[5e-4],
        "feature_decay": feature_decays[5e-2] / feature_decays[5e-4],
        "balanced": cosines[1] + 1 / 9,
        "minority": cosines[1000],
    }  # fmt: skip
    found |= {f"beta {beta:g}": after / before for beta, (before, after, _) in at.items()}
    return found | {f"ratio {ratio}": cosine for ratio, cosine in cosines.items()} | {
        f"path {i}": value / descent[0] for i, value in enumerate(descent)
    }  # fmt: skip


def theory_claims(found: Mapping[int, Mapping[str, float]]) -> list[Claim]:
    """Of the models whose features are free."""

    def about(name: str) -> dict[int, float]:
        return {seed: numbers[name] for seed, numbers in found.items()}

    return [
        judge("free_collapse", "Free features: the largest of all numbers at the minimum", ZHU,
              about("unconstrained"), between=(0, EXACT), predicted="0"),
        judge("tether_path", "Tethered features, best classifier: share of the path on which tr S_W/tr S_B falls",
              TIRER, about("path"), between=(1, 1)),
        judge("tether_shrinks", "Tethered features: the quotient at the minimum over that of the given ones, largest",
              TIRER, about("shrunk"), between=(0, 1), predicted="below 1"),
        judge("tether_exact", "Tethered features: relative error of the quotient's closed form", TIRER,
              about("theory"), between=(0, 1e-6), predicted="0"),
        judge("tether_decay", "Tethered features: the quotient at decay 0.05 over that at 5e-4, of the classifier",
              TIRER, about("decay"), between=(0, 0.9), predicted="below 1"),
        judge("tether_feature_decay", "The same of the features' decay", TIRER, about("feature_decay"),
              between=(0, 0.9), predicted="below 1"),
        judge("peeled_balanced", "Classes of one size: cosine between rows of the classifier, plus 1/(C-1)", FANG,
              about("balanced"), between=(-1e-3, 1e-3), predicted="0"),
        judge("peeled_minority", "Minority collapse: the rare classes' cosine at a ratio of 1000", FANG,
              about("minority"), between=(0.99, 1), predicted="1"),
    ]  # fmt: skip


def property_claims(found: Trainings) -> list[Claim]:
    """The four properties, from the first epoch without a training error to the end."""
    cases = {case.seed: training for case, training in found.items() if _kind(case) == (True, 5e-3, 1)}
    claims = []
    for name, text in zip(PROPERTIES, ("NC1", "NC2, lengths", "NC2, angles", "NC3"), strict=True):
        ratios = {seed: _since_fitted(training, name) for seed, training in cases.items()}
        claims.append(judge(
            f"terminal_{name}", f"{text}: at the end, over its value when the last training error went", PAPYAN, ratios,
            between=(0, 0.9), predicted="falls",
        ))  # fmt: skip
    ends = {seed: training.values[-1] for seed, training in cases.items()}
    tests = {seed: t.test_errors[-1] - t.test_errors[_index(t)] for seed, t in cases.items()}
    return [
        *claims,
        judge("nc1", "NC1 at the end, batch normalisation and decay 5e-3", PAPYAN,
              {s: v["nc1"] for s, v in ends.items()}, between=(0, COLLAPSED), predicted="0"),
        judge("nc4", "NC4: share of samples that the nearest mean decides otherwise", PAPYAN,
              {s: v["nc4"] for s, v in ends.items()}, between=(0, 0)),
        judge("terminal_test_error", "Test error at the end, less that when the last training error went", PAPYAN,
              tests, between=(-1, 0), predicted="not above 0"),
    ]  # fmt: skip


def _index(training: Training) -> int:
    return training.epochs.index(training.fitted) if training.fitted is not None else -1


def _since_fitted(training: Training, name: str) -> float:
    return training.column(name)[-1] / training.column(name)[_index(training)]


def _kind(case: Case) -> tuple[bool, float, int]:
    return case.normalised, case.decay, case.rare


def quotient_claims(found: Trainings) -> list[Claim]:
    """The quotient over training, by layer and by weight decay; where it stalls; classes of different sizes."""
    by_kind: dict[tuple[bool, float, int], dict[int, Training]] = {}
    for case, training in found.items():
        by_kind.setdefault(_kind(case), {})[case.seed] = training
    best, rare = by_kind[True, 5e-3, 1], by_kind[True, 5e-3, RARE]
    plain = by_kind[False, 5e-4, 1]
    claims = [
        judge("quotient_path", "Network: rank correlation of the quotient with time", TIRER,
              {s: _trend(t) for s, t in best.items()}, between=(-1, -0.9), predicted="falls along the path"),
        judge("by_layer", "Network: largest ratio of the quotient of a layer to that of the layer below, at the end",
              HE_SU, {s: max(_steps_up(t)) for s, t in best.items()}, between=(0, 1), predicted="below 1"),
        judge("plain_stalls", "Plain network without normalisation, decay 5e-4: NC1 at the end", PAPYAN,
              {s: t.values[-1]["nc1"] for s, t in plain.items()}, between=(0, COLLAPSED), predicted="0",
              note=f"{sum(t.fitted is not None for t in plain.values())} of {len(plain)} runs fit every sample"),
        judge("imbalance", f"Classes {RARE} times rarer: their rows' cosine less that of the others", FANG,
              {s: t.rare - t.common for s, t in rare.items()}, between=(0, 2), predicted="above 0"),
    ]  # fmt: skip
    decays = sorted(decay for normalised, decay, ratio in by_kind if normalised and ratio == 1 and decay > 0)
    if len(decays) > 2:
        slopes = {
            s: float(linregress(
                [math.log(d) for d in decays],
                [math.log(by_kind[True, d, 1][s].values[-1]["nc1_quotient"]) for d in decays],
            ).slope)
            for s in best
        }  # fmt: skip
        claims.append(judge("decay_slope", "Network: log-log slope of the quotient against weight decay", TIRER, slopes,
                            between=(-math.inf, -0.1), predicted="falls"))  # fmt: skip
    return claims


def _trend(training: Training) -> float:
    """Spearman's coefficient of the quotient with time."""
    values = torch.tensor(training.column("nc1_quotient"))
    ranks = torch.stack([values.argsort().argsort().double(), torch.arange(len(values)).double()])
    return float(torch.corrcoef(ranks)[0, 1])


def _steps_up(training: Training) -> list[float]:
    """Of each layer's quotient to that of the one below, at the end."""
    last = training.values[-1]
    below = [last[name] for name in sorted(n for n in last if n.endswith("/nc1_quotient"))]
    chain = [*below, last["nc1_quotient"]]
    return [b / a for a, b in itertools.pairwise(chain)]


# --------------------------------------------------------------------------- all of it


def study(options: Options) -> list[Claim]:
    """Train, measure and judge; the short version leaves out the weight decays and most of the epochs."""
    seeds, quick = options.seeds, options.quick
    free = dict(zip(seeds, in_parallel(partial(theory, quick=quick), seeds, options.jobs, name="theory"), strict=True))
    decays, plain = ((5e-3,), (5e-4,)) if quick else (DECAYS, PLAIN_DECAYS)
    cases = [
        each
        for seed in seeds
        for each in (
            *(Case(seed, decay=decay) for decay in decays),
            *(Case(seed, normalised=False, decay=decay) for decay in plain),
            Case(seed, rare=RARE),
        )
    ]
    if quick:
        cases = [replace(case, epochs=45) for case in cases]
    trainings = in_parallel(partial(trained, out=options.out), cases, options.jobs, name="networks")
    found = dict(zip(cases, trainings, strict=True))
    claims = theory_claims(free) + property_claims(found) + quotient_claims(found)
    if not quick:
        save_figure(draw_properties(found, PROPERTIES), options.out, "properties")
        save_figure(draw_networks(found), options.out, "networks")
        save_figure(draw_free(free, BETAS, RATIOS), options.out, "free_features")
    return claims


ROBUST = (
    "free_collapse", "tether_path", "tether_shrinks", "tether_exact", "tether_decay", "tether_feature_decay",
    "peeled_balanced", "peeled_minority", "terminal_nc1", "terminal_nc3", "nc4", "quotient_path", "imbalance",
)  # fmt: skip


def main() -> None:
    """Everything, the table, and with ``--quick`` the assertions."""
    options = command_line(__doc__, "neural_collapse", quick_seeds=1)
    claims = study(options)
    write_claims(options.out, "neural_collapse", claims, quick=options.quick)
    print_claims(claims, "Neural collapse")
    if options.quick:
        check_claims(claims, *ROBUST)


if __name__ == "__main__":
    main()
