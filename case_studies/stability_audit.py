"""The audit of each kind of optimizer at its own edge, and of runs that are not at one.

The network 64-50-50-10 on 1000 digits, full batch, half squared error. Gradient descent, Nesterov, Adam and their kin
sharpen until the curvature that their steps see, lambda_max(H) or lambda_max(P^-1 H), is at the optimizer's own
threshold, and hover there (Cohen et al., arXiv 2103.00065 and 2207.14484). Heavy ball with momentum 0.9 crosses its
threshold early and ends below, since training converges. Three kinds of run must not be called AT_EDGE: a ReLU network,
which stays below under these seeds (under some others it does hover at 0.96, its loss rising in a third of the steps),
cross-entropy, which flattens, and Adam at a small rate, which is on its way.

    python case_studies/stability_audit.py
    python case_studies/stability_audit.py --seeds 1 --only Adam
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from claims import Claim, judge, write_claims
from digits_training import Criterion, later_half, ratios, train
from losscope.probes import Run
from losscope.viz.demo import half_squared_error, network

SOURCE = "Cohen et al. 2021 and 2022, arXiv 2103.00065, 2207.14484"


@dataclass(frozen=True)
class Case:
    """One way to train, and what its audit must say.

    Attributes:
        name: of the optimizer and its settings.
        steps: updates to make.
        build: the optimizer, from the network's parameters.
        hovers: bounds of the later half's median ratio, where the run stays at the edge.
        verdicts: what the audit may say where it hovers.
        ends: bounds of the last quarter's median ratio, where the run crosses the edge and falls back for good.
        activation: of the network.
        criterion: the loss.
        every: updates between two measurements.
    """

    name: str
    steps: int
    build: Callable[[Iterable[nn.Parameter]], Optimizer]
    hovers: tuple[float, float] | None = None
    verdicts: tuple[str, ...] = ("AT_EDGE",)
    ends: tuple[float, float] | None = None
    activation: type[nn.Module] = nn.Tanh
    criterion: Criterion = half_squared_error
    every: int = 25

    def model(self, seed: int = 0) -> nn.Module:
        """The network, initialised under a seed."""
        layers = (self.activation() if isinstance(layer, nn.Tanh) else layer for layer in network(seed))
        return nn.Sequential(*layers)

    def run(self, seed: int, steps: int | None = None, out: Path | None = None) -> Run:
        """Train under one seed."""
        model = self.model(seed)
        optimizer = self.build(model.parameters())
        return train(
            model, optimizer, steps=steps or self.steps, seed=seed, criterion=self.criterion, every=self.every, out=out
        )

    def check(self, run: Run) -> None:
        """Whether the run is as it must be.

        Raises:
            AssertionError: if not; it says what was found.
        """
        ratio, verdict = ratios(run), run.audit()["sharpness"].verdict
        if self.hovers:
            low, high = self.hovers
            assert low <= later_half(ratio) <= high, f"{self.name}: later-half median {later_half(ratio):.4f}"
            assert verdict in self.verdicts, f"{self.name}: {verdict}"
        elif self.ends:
            (low, high), last = self.ends, run.audit()["sharpness"].ratio
            assert max(ratio.values()) > 1, f"{self.name}: never crosses, largest ratio {max(ratio.values()):.4f}"
            assert last is not None and low <= last <= high, f"{self.name}: ends at {last}"
        else:
            assert verdict != "AT_EDGE", f"{self.name}: {verdict} at ratio {run.audit()['sharpness'].ratio}"


def gradient_descent(edge: float) -> Case:
    """At the rate whose threshold is ``edge``."""
    return Case(f"GD 2/{edge}", 6000, lambda p: SGD(p, lr=2 / edge), hovers=(0.98, 1.05))


AROUND = (0.93, 1.12)
CASES = (
    *(gradient_descent(edge) for edge in (10, 15, 20)),
    Case(
        "Nesterov",
        3000,
        lambda p: SGD(p, lr=3.8 / 2.8 / 20, momentum=0.9, nesterov=True),
        hovers=(0.98, 1.05),
        verdicts=("AT_EDGE", "NEAR_EDGE_NO_OSCILLATION"),  # it oscillates in bursts
    ),
    Case("Adam (0.9, 0.999)", 4000, lambda p: Adam(p, lr=1e-3), hovers=(0.93, 1.05)),
    Case("Adam (0.9, 0.99)", 2000, lambda p: Adam(p, lr=1e-3, betas=(0.9, 0.99)), hovers=(0.93, 1.05)),
    Case("Adam (0, 0.99)", 2000, lambda p: Adam(p, lr=3e-4, betas=(0.0, 0.99)), hovers=(1.0, 1.12)),
    Case("RMSprop", 2000, lambda p: RMSprop(p, lr=1e-4, alpha=0.99), hovers=(1.0, 1.12)),
    # Of these the band is not calibrated to a percent: that they hover at the threshold of their own is what is shown.
    Case("heavy ball 0.5", 3000, lambda p: SGD(p, lr=3 / 20, momentum=0.5), hovers=AROUND),
    Case("AdamW", 2000, lambda p: AdamW(p, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1), hovers=AROUND),
    Case(
        "NAdam",
        2000,
        lambda p: NAdam(p, lr=3.6e-4, betas=(0.9, 0.99)),
        hovers=AROUND,
        verdicts=("AT_EDGE", "INCONCLUSIVE"),  # its curvature jumps about: under one seed the bounds reach to 1.21
    ),
    Case("RMSprop, momentum 0.5", 2000, lambda p: RMSprop(p, lr=1.5e-4, momentum=0.5), hovers=AROUND),
    Case("Adagrad", 2000, lambda p: Adagrad(p, lr=1e-2), hovers=AROUND),
    Case("heavy ball", 3000, lambda p: SGD(p, lr=3.8 / 20, momentum=0.9), ends=(0.85, 1.0), every=10),
    Case("GD 2/20, ReLU", 6000, lambda p: SGD(p, lr=2 / 20), activation=nn.ReLU),
    Case("GD 2/20, cross-entropy", 6000, lambda p: SGD(p, lr=2 / 20), criterion=cross_entropy),
    Case("Adam 3e-4, first 1000", 1000, lambda p: Adam(p, lr=3e-4)),
)


def row(case: Case, seed: int, run: Run) -> str:
    """A line of the table."""
    ratio, line = ratios(run), run.audit()["sharpness"]
    return (
        f"{case.name:24} {seed:4} {line.threshold:9.5g} {line.formula:34}"
        f" {max(ratio.values()):7.3f} {later_half(ratio):7.3f} {line.ratio:7.3f}  {line.verdict} ({line.reason})"
    )


def judged(case: Case, runs: dict[int, Run]) -> Claim:
    """The case as a claim: where its later half hovers, where it ends, or that the audit does not call it AT_EDGE."""
    name = "".join(letter if letter.isalnum() or letter == "." else "_" for letter in case.name)
    late = {seed: later_half(ratios(run)) for seed, run in runs.items()}
    lines = {seed: run.audit()["sharpness"] for seed, run in runs.items()}
    verdicts = ", ".join(line.verdict for line in lines.values())
    if case.hovers:
        text, measured, band = f"{case.name} hovers at its threshold", late, case.hovers
    elif case.ends:
        text, band = f"{case.name} crosses its threshold and falls back", case.ends
        measured = {seed: line.ratio or math.nan for seed, line in lines.items()}
    else:
        text, band = f"{case.name} is not called AT_EDGE", (0.0, 0.0)
        measured = {seed: float(line.verdict == "AT_EDGE") for seed, line in lines.items()}
    return judge(name, text, SOURCE, measured, between=band, note=f"Verdicts of the audit: {verdicts}")


def main() -> None:
    """Train, print the table, check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--out", type=Path, help="folder for runs, and for claims that say what fails")
    options = parser.parse_args()
    print("                                                                             ratio: later")
    print("case                     seed threshold formula                            largest    half audited  verdict")
    failed, claims = [], []
    for case in (case for case in CASES if options.only in case.name):
        runs = {}
        for seed in range(options.seeds):
            out = options.out / f"{case.name} {seed}".replace("/", "_") if options.out else None
            runs[seed] = run = case.run(seed, out=out)
            print(row(case, seed, run), flush=True)
            try:
                case.check(run)
            except AssertionError as error:
                failed.append(f"{error} (seed {seed})")
        claims.append(judged(case, runs))
    if options.out:  # where the claims say which seeds are outside
        write_claims(options.out, "stability_audit", claims)
        print(*failed, sep="\n")
    else:
        assert not failed, "; ".join(failed)


if __name__ == "__main__":
    main()
