"""Real trainings, watched by a probe that records what the checks of a run rest on, and cheaply."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from losscope.probes import Measurement, Needs, Probe, Run, Snapshot, watch
from losscope.probes.criterion import Assumption
from losscope.probes.preconditions import preconditions
from losscope.probes.window import last_part, observed
from losscope.viz.demo import digits, half_squared_error, network


class Observing(Probe):
    """Records as the stability probe does, without the curvature of mini-batches."""

    name = "stability"

    def __init__(self, draws: int = 40, every: Any = None) -> None:
        super().__init__(every)
        self.draws = draws

    def needs(self) -> Needs:
        return Needs(1, 1e-2, 200, training_gradient=True, midpoint=True)

    def measure(self, snapshot: Snapshot) -> Measurement:
        pairs, limit = snapshot.eigenpairs(), snapshot.threshold.value
        values: dict[str, float | None] = {
            "loss": snapshot.loss,
            "gradient_norm": snapshot.gradient_norm,
            "sharpness": float(pairs.values[0]),
            "sharpness_low": float(pairs.low[0]),
            "threshold": limit,
            "threshold_largest": snapshot.threshold.largest,
            "training_gradient_norm": snapshot.training_gradient_norm,
            "training_gradient_largest": snapshot.training_gradient_largest,
        }
        if (lowest := snapshot.lowest()) is not None:
            values["lowest"] = float(lowest.values[0])
        if (match := snapshot.gradient_match()) is not None:
            values["gradient_cosine"], values["gradient_scale"] = match
        if snapshot.batch_size is not None and snapshot.batch_size < snapshot.objective.samples:
            values |= self._squares(snapshot, snapshot.batch_size)
        return Measurement(float(pairs.values[0]) / limit if limit else None, values=values)

    def _squares(self, snapshot: Snapshot, size: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(snapshot.step)
        (x, y) = snapshot.objective.batches[0].content
        squares = []
        for _ in range(self.draws):
            chosen = torch.randperm(len(x), generator=generator)[:size]
            loss = snapshot.objective.batch_loss(0, (x[chosen], y[chosen]))
            squares.append(float(snapshot.objective.space.flatten(snapshot.objective.gradients(loss)).square().sum()))
        found = torch.tensor(squares)
        half = 2.02 * float(found.std()) / math.sqrt(self.draws)
        mean, loss = float(found.mean()), snapshot.loss
        index = {"s_mu": mean, "s_mu_low": mean - half, "s_mu_high": mean + half}
        return {
            "batch_gradient_square": mean,
            "minibatch_draws": float(self.draws),
            **{name: value / (2 * loss) for name, value in index.items()},
        }


def observed_run(
    *, size: int | None = None, steps: int = 200, every: int = 10, seed: int = 0, lr: float = 0.05,
    change: Callable[[nn.Module, int], None] | None = None, data: Callable[[Tensor, Tensor], Any] = lambda x, y: (x, y),
    loss: Callable[[Tensor, Tensor], Tensor] = half_squared_error, factor: float = 1.0,
    make: Callable[[Any], torch.optim.Optimizer] | None = None, prepare: Callable[[nn.Module], Any] = lambda m: m,
    **options: Any,
) -> Run:  # fmt: skip
    """Train the tanh network on 200 digits.

    Args:
        size: of mini-batches; None for all samples.
        steps: updates.
        every: measurements.
        seed: of network and order.
        lr: of SGD.
        change: called with the model and the step between backward and update, as clipping is.
        data: what is measured on, made of what is trained on.
        loss: what is trained on; the same is measured.
        factor: the loop's loss in units of it.
        make: the optimizer; SGD by default.
        prepare: what to do to the model before.
        **options: of watch.
    """
    x, y = digits(seed=seed, samples=200)
    model = prepare(network(seed=seed))
    parameter = next(model.parameters())
    x, y = x.to(parameter.dtype), y.to(parameter.dtype) if y.is_floating_point() else y
    optimizer = torch.optim.SGD(model.parameters(), lr=lr) if make is None else make(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    options = {"criterion": loss, "probes": [Observing()], "every": every, "batch_size": size or 200} | options
    with watch(model, optimizer, data=data(x, y), on_error="raise", **options) as run:
        for step in range(steps):
            chosen = slice(None) if size is None else torch.randperm(200, generator=generator)[:size]
            optimizer.zero_grad()
            value = loss(model(x[chosen]), y[chosen]) * factor
            value.backward()
            if change is not None:
                change(model, step)
            optimizer.step()
            run.log(loss=value)
    return run.run


def facts_and_window(run: Run) -> tuple[dict[str, Any], list[Any]]:
    """As the audit takes them."""
    everything = run.select("stability", ok=False)
    window = last_part([r for r in everything if r.status == "ok"])
    return observed(run.meta["players"]["model"], window, everything), window


def assumed(run: Run) -> dict[str, Assumption]:
    """The preconditions of a run by the first words of each."""
    facts, window = facts_and_window(run)
    return {a.text.split(" (")[0]: a for a in preconditions(run, "model", window, facts)}
