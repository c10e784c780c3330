"""What only an evaluation of the objective shows of a player."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from losscope.landscape import Objective
from losscope.landscape.isolation import LIVE
from losscope.landscape.stability import loss_family, outputs_per_sample

from .batchwise import batch_facts

__all__ = ["facts_of", "mode_matters"]


def facts_of(objective: Objective, batch_size: int | None = None) -> dict[str, Any]:
    """What the audit must know: how many batches and samples, outputs, which loss; if it shows.

    Where there are several ranks, the batches are this one's and the samples those of all.

    Args:
        objective: the objective.
        batch_size: of training, where it matters how the loss depends on that.
    """
    facts: dict[str, Any] = {"batches": len(objective.batches)}
    for name, observe in (("outputs", outputs_per_sample), ("loss_family", loss_family)):
        with contextlib.suppress(Exception):
            facts[name] = observe(objective.alone())
    with contextlib.suppress(Exception):  # batches that do not show it
        facts["samples"] = objective.samples
    with contextlib.suppress(Exception):  # or that cannot be cut
        facts |= batch_facts(objective.alone(), batch_size)
    return facts


def mode_matters(objective: Objective, at: Mapping[nn.Parameter, Tensor] | None) -> bool:
    """Whether training's own flags give another loss of the first batch, of any rank's.

    Args:
        objective: in the mode that is measured.
        at: parameter values to compare at; None for the live ones.
    """

    def own() -> bool:
        live = copy.copy(objective)
        live.mode, live._depth = LIVE, 0
        try:
            with torch.no_grad():
                with objective.isolated(at):
                    measured = objective.batch_loss(0)
                with live.isolated(at):
                    trained = live.batch_loss(0)
            return not torch.equal(measured, trained) and bool(torch.isfinite(trained))
        except Exception:
            return True  # e.g. batch statistics of a single sample

    return any(objective.ranks.gather(own))
