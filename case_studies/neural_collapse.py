"""Neural collapse: features and classifier tend to a simplex, where training can take them there.

Three cases, each with several seeds. With the features as free parameters (Mixon, Parshall and Pi 2020, arXiv
2011.11619; Zhu et al. 2021, arXiv 2105.02375) the simplex is the only minimiser, and every number of it falls below
1e-6. A network with batch normalisation and weight decay 5e-3 on 1500 digits comes near: NC1 below 0.02 and NC4 = 0
after 200 epochs, the rate divided by 10 at a third and two thirds of them (Papyan, Han and Donoho 2020, PNAS 117,
24652). A plain network of width 64 with weight decay 5e-4 fits the digits as well, and stays above 0.1.

    python case_studies/neural_collapse.py
    python case_studies/neural_collapse.py --seeds 1 --out runs/collapse
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from losscope.landscape import Collapse, neural_collapse
from losscope.probes import NeuralCollapse, Run, watch
from losscope.viz import report
from losscope.viz.demo import digits

CLASSES, SIZE, EACH, DECAY = 4, 16, 20, 5e-3
"""Of the unconstrained features: classes, dimensions, samples of each class, weight decay of the classifier."""
SAMPLES, BATCH, RATE, EPOCHS = 1500, 64, 0.05, 200
COLLAPSED, FAR, EXACT = 0.02, 0.1, 1e-6


def unconstrained(seed: int, steps: int = 5000) -> Collapse:
    """Features and classifier minimised together, in float64 by gradient descent with momentum."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(CLASSES * EACH, SIZE, generator=generator, dtype=torch.float64).requires_grad_()
    weight = (torch.randn(CLASSES, SIZE, generator=generator, dtype=torch.float64) / 4).requires_grad_()
    bias = torch.zeros(CLASSES, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    # The loss is a mean: a feature has the gradient of one sample, the classifier that of all.
    rates = [{"params": [features], "lr": 0.1 * len(features)}, {"params": [weight, bias], "lr": 0.1}]
    optimizer = SGD(rates, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        ridge = DECAY / 2 * weight.square().sum() + DECAY / EACH / 2 * features.square().sum()
        (F.cross_entropy(features @ weight.T + bias, labels) + ridge).backward()
        optimizer.step()
    return neural_collapse(features, labels, weight=weight, bias=bias)


def network(width: int, *, normalised: bool) -> nn.Sequential:
    """Three hidden layers with ReLU, and a linear classifier on 10 classes."""
    layers: list[nn.Module] = []
    for size in (64, width, width):
        layers += [nn.Linear(size, width), *([nn.BatchNorm1d(width)] if normalised else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def trained(seed: int, *, normalised: bool, epochs: int = EPOCHS, out: Path | None = None) -> Run:
    """Train on digits under watch: 256 wide, normalised and decayed by 5e-3, or 64 wide, plain and by 5e-4."""
    torch.manual_seed(seed)
    x, y = _data(seed)
    model = network(256 if normalised else 64, normalised=normalised)
    optimizer = SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-3 if normalised else 5e-4)
    schedule = MultiStepLR(optimizer, [epochs // 3 + 1, 2 * epochs // 3])
    order = torch.Generator().manual_seed(seed)
    updates = -(-SAMPLES // BATCH)
    with watch(
        model, optimizer, data=[(x, y)], criterion=nn.CrossEntropyLoss(), mode="train", batch_size=BATCH, out=out,
        probes=[NeuralCollapse()], every=max(1, epochs // 20) * updates, seed=seed, on_error="raise",
    ) as run:  # fmt: skip
        for _ in range(epochs):
            for some in torch.randperm(SAMPLES, generator=order).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(x[some]), y[some]).backward()
                optimizer.step()
            schedule.step()
        run.measure_now()
    return run.run


def _data(seed: int) -> tuple[Tensor, Tensor]:
    x, one_hot = digits(seed, SAMPLES)
    return x, one_hot.argmax(dim=1)


def check_unconstrained(found: Collapse) -> None:
    """Whether every number of NC1 to NC3 is zero, to six digits.

    Raises:
        AssertionError: if not; it names them.
    """
    names = (
        "nc1", "nc1_quotient", "cdnv", "equinorm", "equinorm_classifier", "equiangularity", "equiangularity_classifier",
        "etf_error", "nc3", "nc3_etf",
    )  # fmt: skip
    large = {name: found.numbers[name] for name in names if not found.numbers[name] < EXACT}
    assert not large, large


def check(run: Run, *, normalised: bool) -> None:
    """Whether the features have collapsed at the end of training, or have not.

    Raises:
        AssertionError: if it is not as said above; it shows the numbers.
    """
    values = run.select("neural_collapse")[-1].values
    nc1, nc4 = values["nc1"], values["nc4"]
    assert nc1 is not None, values
    if normalised:
        assert nc1 < COLLAPSED and nc4 == 0, values
    else:
        assert nc1 > FAR, values


def main() -> None:
    """Run the three cases, print the numbers, check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--out", type=Path, help="folder for runs and reports; by default none are kept")
    options = parser.parse_args()
    for seed in range(options.seeds):
        found = unconstrained(seed)
        print(f"seed {seed}, unconstrained features: {found}")
        check_unconstrained(found)
        for normalised, name in ((True, "normalised"), (False, "plain")):
            out = None if options.out is None else options.out / f"{name}-{seed}"
            run = trained(seed, normalised=normalised, out=out)
            first, last = (run.select("neural_collapse")[i].values for i in (0, -1))
            shown = (f"{key} {first[key]:.3g} to {last[key]:.3g}" for key in ("nc1", "equiangularity", "nc3", "nc4"))
            print(f"seed {seed}, {name} network: {', '.join(shown)}")
            check(run, normalised=normalised)
            if out is not None:
                print(f"  {report(run)}")


if __name__ == "__main__":
    main()
