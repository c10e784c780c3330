"""What layers that keep running statistics (BatchNorm) use away from the point where those were gathered.

Running statistics belong to the weights that they were gathered at. Between two networks, or along a random
direction, they are those of other activations, and the loss there is mostly a statement about the mismatch:
averaged weights need their own (Izmailov et al. 2018, arXiv:1803.05407, section 3.2), and a barrier between aligned
networks shrinks with them (Jordan et al. 2022, arXiv:2211.08403).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LossError, ParameterError, SettingError
from ..objective import Objective
from ..reach import all_modules

__all__ = ["STATISTICS", "normalisation_layers", "resolved_statistics", "statistics_at"]

STATISTICS = ("kept", "recomputed", "frozen")
"""How normalisation layers take their statistics at a point; see `statistics_at`."""

_Seen = tuple[str, int, Tensor]  # layer, values per channel, (2, C) their mean and variance


@contextlib.contextmanager
def statistics_at(objective: Objective, how: str, *, source: Objective | None = None) -> Iterator[str]:
    r"""Inside, normalisation layers have the statistics that ``how`` says for where the parameters are now.

    - ``"kept"``: as the objective's mode has it. In mode ``"eval"`` the running statistics of the model serve at
      every point, in ``"train"`` each batch is normalised by its own.
    - ``"recomputed"``: running statistics are computed anew in one pass over the data, and then the objective's mode
      holds. Each is the mean of what the layer saw in each of its calls, weighted by the values per channel in it:

      .. math:: \mu = \sum_b \frac{n_b}{n} \mu_b, \qquad \sigma^2 = \sum_b \frac{n_b}{n} \sigma_b^2

      With even batches this is what ``torch.optim.swa_utils.update_bn`` computes; there, the samples of a small last
      batch count for more. During the pass those layers normalise by the batch, and everything else (dropout) is as
      in evaluation. A layer that the pass does not reach keeps its statistics.
    - ``"frozen"``: running statistics are used and not updated, even where the objective's mode is ``"train"``.

    Layers are torch's (``BatchNorm1d/2d/3d``, ``SyncBatchNorm``, ``InstanceNorm`` that tracks) and what derives from
    them, with running statistics, in the model; not in other modules that the loss uses, whose weights do not move.
    Afterwards, whatever happens, the model is as before, to the bit.

    Args:
        objective: the objective, in its isolation or not; the parameters may stand elsewhere.
        how: one of `STATISTICS`.
        source: an objective of the same model whose data the statistics are recomputed from, for losses on test
            data with the statistics of training data; default: ``objective``.

    Yields:
        What is to be known of them; mostly empty.

    Raises:
        SettingError: if ``how`` is none of these, or there are scripted layers to recompute.
        ParameterError: if a layer is not initialised yet.
        LossError: if no batch gives a layer more than one value per channel.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import statistics_at
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1))
        >>> data = (torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss())
        >>> with statistics_at(objective, "recomputed"):
        ...     print(model[0].running_mean, model[0].running_var)
        tensor([2.]) tensor([2.])
        >>> model[0].running_mean
        tensor([0.])
    """
    resolved, note = resolved_statistics(objective, how)
    layers = normalisation_layers(objective)
    with objective.isolated():
        before = [(layer, layer.training, dict(layer._buffers)) for layer in layers.values()]
        try:
            if resolved == "frozen":
                for layer in layers.values():
                    layer.training = False
            elif resolved == "recomputed" and not all(layer.training for layer in layers.values()):
                left_out = _recompute(objective if source is None else source, layers)
                note = "; ".join(filter(None, (note, left_out)))
            yield note
        finally:
            for layer, training, buffers in before:
                layer.training = training
                layer._buffers.update(buffers)


def resolved_statistics(objective: Objective, how: str) -> tuple[str, str]:
    """What ``how`` comes to for this model (``"kept"`` where there is nothing to recompute or freeze), and a note.

    Raises:
        SettingError: if ``how`` is not one of `STATISTICS`, or there are scripted layers to recompute.
        ParameterError: if a layer is not initialised yet.
    """
    if how not in STATISTICS:
        raise SettingError(f"statistics must be one of {', '.join(map(repr, STATISTICS))}; got {how!r}")
    if how == "kept":
        return how, ""
    scripted = [n for n, m in objective.model.named_modules() if _is_scripted_layer(m)]
    if scripted:
        raise SettingError(
            f"statistics={how!r} cannot reach into the scripted layer {scripted[0]}: measure the model before it is "
            "scripted, or use statistics='kept'"
        )
    layers = normalisation_layers(objective)
    if not layers:
        return "kept", f"no layer of the model keeps running statistics, so {how!r} makes no difference"
    if how == "recomputed" and objective.mode == "train":
        with objective.isolated():
            if all(layer.training for layer in layers.values()):
                return "kept", "in mode 'train' layers normalise by the batch: their running statistics are not used"
    return how, ""


def normalisation_layers(objective: Objective) -> dict[str, nn.modules.batchnorm._NormBase]:
    """The layers of the model that keep running statistics, by name; a shared one under its first.

    Raises:
        ParameterError: if one of them is not initialised yet.
    """
    found = {}
    for name, module in objective.model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            if is_lazy(module.running_mean):
                raise ParameterError(f"layer {name} is not initialised yet; run one forward pass first")
            found[name] = module
    return found


def _is_scripted_layer(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) and getattr(module, "running_mean", None) is not None


def _recompute(objective: Objective, layers: dict[str, nn.modules.batchnorm._NormBase]) -> str:
    """Give the layers the statistics of one pass over the data; returns what is to be known of it."""
    left_out, counts, sums = 0, dict.fromkeys(layers, 0), dict[str, Tensor]()
    with objective.isolated():
        for index in range(len(objective.batches)):
            seen = _statistics_of(objective, index, layers)
            left_out += seen is None
            for name, count, found in seen or ():
                term = count * (found if found.device.type == "mps" else found.double())  # mps has no float64
                sums[name] = sums[name] + term if name in sums else term
                counts[name] += count
    if not sums and left_out:
        raise LossError(
            "statistics cannot be recomputed: every batch gives a normalisation layer one value per channel, which "
            "has no variance; take larger batches"
        )
    for name, total in sums.items():
        mean, variance = (total / counts[name]).to(layers[name].running_mean.dtype)  # type: ignore[union-attr]
        layers[name]._buffers.update(running_mean=mean, running_var=variance)
    notes = (
        [f"{left_out} of {len(objective.batches)} batches hold one sample, which has no variance"] if left_out else []
    )
    if unseen := [name for name in layers if name not in sums]:
        notes.append(
            f"{len(unseen)} of {len(layers)} layers keep their statistics, since they are not called: {unseen[0]}"
        )
    return "; ".join(notes)


class _NoVarianceError(Exception):
    """A layer met a single value per channel."""


def _statistics_of(
    objective: Objective, index: int, layers: dict[str, nn.modules.batchnorm._NormBase]
) -> list[_Seen] | None:
    """What each call of each layer saw in one batch; None where a batch of one sample has no variance.

    Flags, hooks and attributes are set on the stand-ins of the evaluation, which puts the real ones back.
    """
    seen: list[_Seen] = []
    with objective.evaluation(index) as batch:
        for module in all_modules([objective.model]):
            if not isinstance(module, torch.jit.ScriptModule):
                module.training = False
        for name, layer in layers.items():
            _watch(name, layer, seen)
        try:
            objective.loss(objective.model, batch)
        except _NoVarianceError:
            return None
    return seen


def _watch(name: str, layer: nn.modules.batchnorm._NormBase, seen: list[_Seen]) -> None:
    """With a momentum of 1, what a layer keeps after a call is what it saw in that call."""
    layer.training, layer.track_running_stats, layer.momentum = True, True, 1.0

    # Of the module that is called, which nn.DataParallel makes copies of.
    def fresh(module: Any, inputs: tuple[Tensor, ...]) -> None:
        if inputs and inputs[0].numel() == module.num_features:
            raise _NoVarianceError
        module.reset_running_stats()

    def keep(module: Any, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        count = outputs.numel() // module.num_features
        seen.append((name, count, torch.stack([module.running_mean, module.running_var])))

    layer.register_forward_pre_hook(fresh)
    layer.register_forward_hook(keep)
