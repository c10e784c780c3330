"""A plane of the loss against a loop that loads a state dict at every point, in turns.

    python benchmarks/planes.py [--device cuda] [--threads 1] [--repeats 5] [--only digits] [--points 51]

The loop is what one writes by hand: at every point a state dict of the origin plus the two directions, taken with their
coordinates, `load_state_dict`, a forward pass without gradients over all batches, and the loss as a number. A plane
counts with everything around it (isolation, the trial of both engines, its report), but without the quadratic model,
which the loop does not have. Medians over interleaved rounds.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import machine, timed
from problems import problems
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import Objective, plane
from losscope.landscape.surface import Axis, Plane, random_direction

RESULTS = Path(__file__).parent / "results"
CRITERION = nn.CrossEntropyLoss()
CLOSE = 1e-5  # relative: the plane's values against the loop's


@dataclass(frozen=True)
class Case:
    """A model on batches, and how many points along each axis of its plane."""

    key: str
    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    points: int

    @property
    def title(self) -> str:
        return f"{self.key}, {sum(len(x) for x, _ in self.batches)} samples"


def digits_mlp(device: torch.device) -> nn.Module:
    """64-50-50-10, tanh, after a few steps of training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10)).to(device)
    x, y = digits(1797, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        CRITERION(model(x), y).backward()
        optimizer.step()
    return model


def digits(samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images[:samples] / 8 - 1, dtype=torch.float32), torch.tensor(labels[:samples])
    return x.to(device), y.to(device)


def cases(device: torch.device, points: int, only: str) -> list[Case]:
    """Those whose title contains ``only``; the ResNet-20 on a coarser grid on a CPU, where a point takes long."""
    mlp, (x, y) = digits_mlp(device), digits(1797, device)
    coarse = points if device.type == "cuda" else max(3, points // 5)
    resnet = next(p for p in problems(device, ("resnet-512",)) if p.key == "resnet-512")
    found = [
        Case("digits MLP", mlp, [digits(128, device)], points),
        Case("digits MLP", mlp, [(x, y)], points),
        Case("digits MLP in batches of 128", mlp, list(zip(x.split(128), y.split(128), strict=True)), points // 2),
        Case("ResNet-20", resnet.model, resnet.batches, coarse),
    ]
    return [case for case in found if only in case.title]


def by_hand(model: nn.Module, batches: list[tuple[Tensor, Tensor]], axes: tuple[Axis, Axis], x: Tensor) -> Tensor:
    """The loop: (Gy, Gx) losses."""
    names = [name for name, _ in model.named_parameters()]
    origin = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = [origin[name].numel() for name in names]
    first, second = (
        {n: v.view_as(origin[n]) for n, v in zip(names, axis.vector.split(sizes), strict=True)} for axis in axes
    )
    samples = sum(len(labels) for _, labels in batches)
    losses = []
    with torch.no_grad():
        for b in x.tolist():
            for a in x.tolist():
                model.load_state_dict(origin | {n: origin[n] + a * first[n] + b * second[n] for n in names})
                loss = sum(len(labels) * F.cross_entropy(model(inputs), labels) for inputs, labels in batches)
                losses.append(float(loss) / samples)
    model.load_state_dict(origin)
    return torch.tensor(losses, dtype=torch.float64).view(len(x), len(x))


def row(case: Case, repeats: int, device: torch.device) -> str:
    """One line of the table."""
    objective = Objective(case.model, case.batches, criterion=CRITERION)
    axes = random_direction(objective, seed=0), random_direction(objective, seed=1)
    found: dict[str, Plane] = {}
    x = plane(objective, axes, points=case.points, model=False).x  # and what a first call takes is not counted
    hand = copy.deepcopy(case.model).eval()

    def drawn(engine: str) -> Callable[[], None]:
        def draw() -> None:
            found[engine] = plane(objective, axes, points=x, model=False, engine=engine)

        return draw

    engines = ("auto", "one by one")
    seconds: dict[str, list[float]] = {name: [] for name in ("by hand", *engines)}
    expected = torch.empty(0)

    def loop() -> None:
        nonlocal expected
        expected = by_hand(hand, case.batches, axes, x)

    for _ in range(repeats):
        seconds["by hand"].append(timed(loop, device))
        for engine in engines:
            seconds[engine].append(timed(drawn(engine), device))
    loss = found["auto"].loss
    assert torch.allclose(loss, expected, rtol=CLOSE, atol=0), case.title
    ratios = {e: [a / b for a, b in zip(seconds["by hand"], seconds[e], strict=True)] for e in engines}
    each = {name: 1e3 * statistics.median(s) / loss.numel() for name, s in seconds.items()}
    spread = f"{min(ratios['auto']):.2f} to {max(ratios['auto']):.2f}"
    return (
        f"| {case.title} | {len(x)} x {len(x)} | {each['by hand']:.3g} | {each['auto']:.3g} | "
        f"{statistics.median(ratios['auto']):.2f} ({spread}) | {statistics.median(ratios['one by one']):.2f} | "
        f"{found['auto'].engine} |"
    )


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--points", type=int, default=51)
    parser.add_argument("--only", default="", help="a word of the titles")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    lines = [
        "| problem | points | by hand, ms a point | plane, ms a point | times as fast | one by one | engine |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [row(case, arguments.repeats, device) for case in cases(device, arguments.points, arguments.only)]
    text = f"Planes of the loss over two filter-normalised directions. {machine(device)}.\n\n" + "\n".join(lines) + "\n"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"planes-{device.type}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
