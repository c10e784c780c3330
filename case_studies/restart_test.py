"""The verdict put to the test: a run at the edge cannot bear a larger learning rate, one far below it can.

Training is stopped at checkpoints, and the audit of the run so far says where it is. Each checkpoint is restarted twice
for 200 steps, at the rate it had and at 1.2 times that rate (the edge test of Andreyev and Beneventano, arXiv
2412.20553). Where the audit said AT_EDGE the largest loss must be at least 1.4 times that of the restart at the old
rate; where it said BELOW_EDGE, at a ratio under 0.7, less than 1.05 times within 50 steps, after which sharpening may
have brought the edge near. Nine in ten of each kind must come out as predicted. This is a test for optimizers without
a preconditioner: Adam and RMSprop rescale their steps to the larger rate, and their loss may rise by a percent only.

    python case_studies/restart_test.py
    python case_studies/restart_test.py --seeds 1 --only GD
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims import Claim, judge, write_claims
from digits_training import train
from losscope.probes import Watch
from losscope.viz.demo import digits
from stability_audit import CASES, Case, gradient_descent

FASTER, STEPS, SOON = 1.2, 200, 50
SOURCE = "Andreyev & Beneventano 2024, arXiv 2412.20553"
SPIKE, CALM, LOW = 1.4, 1.05, 0.7
RUNS = (gradient_descent(20), gradient_descent(40), *(case for case in CASES if case.name == "Nesterov"))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run after so many steps: where its audit says it is, and what it takes to go on from there."""

    case: Case
    seed: int
    step: int
    verdict: str
    ratio: float
    model: dict[str, Any]
    optimizer: dict[str, Any]

    @property
    def kind(self) -> str | None:
        """``"at the edge"``, ``"far below"``, or None where nothing is predicted."""
        if self.verdict == "AT_EDGE":
            return "at the edge"
        return "far below" if self.verdict == "BELOW_EDGE" and self.ratio < LOW else None

    def losses(self, times: float, steps: int) -> list[float]:
        """Restarted with this multiple of the rate: the loss before each update and after the last."""
        x, y = digits(self.seed)
        model = self.case.model()
        model.load_state_dict(self.model)
        optimizer = self.case.build(model.parameters())
        optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        for group in optimizer.param_groups:
            group["lr"] *= times
        found = []
        for _ in range(steps + 1):
            optimizer.zero_grad()
            loss = self.case.criterion(model(x), y)
            found.append(loss.item())
            loss.backward()
            optimizer.step()
        return found

    def rise(self) -> float:
        """The largest loss at the larger rate, in units of the largest at the old one."""
        within = STEPS if self.kind == "at the edge" else SOON
        faster, same = (max(self.losses(times, within)) for times in (FASTER, 1.0))
        return faster / same if math.isfinite(faster) else math.inf

    def predicted(self, rise: float) -> bool:
        """Whether that is what its kind predicts."""
        return rise >= SPIKE if self.kind == "at the edge" else rise < CALM


def checkpoints(case: Case, seed: int, steps: int = 2000, every: int = 250) -> list[Checkpoint]:
    """Train, and audit the run so far every so many steps."""
    model = case.model(seed)
    optimizer = case.build(model.parameters())
    found = []

    def keep(made: int, live: Watch) -> None:
        if made % every == 0:
            line = live.run.audit()["sharpness"]
            ratio = math.nan if line.ratio is None else line.ratio
            state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            found.append(Checkpoint(case, seed, made, line.verdict, ratio, *state))

    train(model, optimizer, steps=steps, seed=seed, criterion=case.criterion, after=keep)
    return found


def judged(kind: str, outcomes: dict[int, list[bool]]) -> Claim:
    """The claim that restarts of one kind come out as predicted, with the share of each seed's checkpoints."""
    does = f"rises {SPIKE} times or more" if kind == "at the edge" else f"rises less than {CALM} times at first"
    shares = {seed: sum(found) / len(found) for seed, found in outcomes.items()}
    return judge(
        kind.replace(" ", "_"), f"Restarted {kind} at {FASTER} times the rate, the loss {does}", SOURCE, shares,
        between=(0.9, 1.0), predicted="nine in ten checkpoints of each seed",
        note=f"{sum(map(len, outcomes.values()))} checkpoints",
    )  # fmt: skip


def main() -> None:
    """Train, restart, print a line for each checkpoint, check the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--out", type=Path, help="folder for claims.json; default: none is written")
    options = parser.parse_args()
    outcomes: dict[str, dict[int, list[bool]]] = {"at the edge": {}, "far below": {}}
    print("case                    seed   step  ratio  verdict                        rise")
    for case in (case for case in RUNS if options.only in case.name):
        for seed in range(options.seeds):
            for checkpoint in checkpoints(case, seed):
                said = f"{case.name:22} {seed:5} {checkpoint.step:6}  {checkpoint.ratio:.3f}  {checkpoint.verdict:24}"
                if checkpoint.kind is None:
                    print(said.rstrip())
                    continue
                rise = checkpoint.rise()
                right = checkpoint.predicted(rise)
                outcomes[checkpoint.kind].setdefault(seed, []).append(right)
                print(f"{said} {rise:10.3f}{'' if right else '  not as predicted'}", flush=True)
    if options.out:
        write_claims(options.out, "restart_test", [judged(kind, found) for kind, found in outcomes.items() if found])
    every = {kind: [right for some in found.values() for right in some] for kind, found in outcomes.items()}
    for kind, found in every.items():
        print(f"{kind}: {sum(found)} of {len(found)} as predicted")
    for kind, found in every.items():
        assert len(found) >= 10, f"only {len(found)} checkpoints {kind}"
        assert sum(found) >= 0.9 * len(found), f"{kind}: {sum(found)} of {len(found)} as predicted"


if __name__ == "__main__":
    main()
