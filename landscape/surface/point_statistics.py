"""The running statistics of normalisation layers that belong to weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..elsewhere import elsewhere
from ..objective import Objective
from .batch_statistics import normalisation_layers, statistics_at

__all__ = ["statistics_for"]


def statistics_for(objective: Objective, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """What a pass over the objective's data at other parameters gathers, by the buffers' names.

    Args:
        objective: model and data.
        values: one tensor per parameter, in their order.

    Raises:
        LossError: if no batch gives a layer more than one value per channel.
        SettingError: if there are scripted layers.
    """
    found = {}
    with torch.inference_mode(False):
        values = [value.clone() if value.is_inference() else value for value in values]
    with elsewhere(objective, values), statistics_at(objective, "recomputed"):
        for name, layer in normalisation_layers(objective).items():
            for key in ("running_mean", "running_var"):
                value = layer._buffers[key]
                if value is not None:
                    found[f"{name}.{key}".lstrip(".")] = value.detach().clone()
    return found
