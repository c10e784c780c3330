"""A player: one model, the optimizer(s) that move it, and the objective it is measured on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from losscope.landscape import DataError, Hessian, LosscopeError, Objective, ParameterError, SettingError
from losscope.landscape.batches import is_one_shot
from losscope.landscape.distributed import ALONE, Alone
from losscope.landscape.optimizer_rules import rule_for
from losscope.landscape.stability import Threshold, stability_threshold
from losscope.landscape.step_metric import rates_differ

from .rates import is_wrong
from .seen import SeenCurvature, seen_by, why_unseen
from .skipped import checked_scaler
from .steps import deciding, steps_off, unwrapped

__all__ = ["Player"]


@dataclass(frozen=True)
class Player:
    """One model of a run; pass several to `watch` where several are trained together (a game).

    Attributes:
        name: its name in the records.
        model: the module.
        optimizer: the optimizer that moves it, or a list where several do.
        data: batches to measure on; see `Objective`.
        batch_size: samples behind one update (times accumulation and ranks); None where not known.
        criterion: see `Objective`, as for all that follow.
        forward: see `Objective`.
        targets: see `Objective`.
        loss_fn: see `Objective`.
        weight: see `Objective`.
        params: see `Objective`; default: those the optimizer moves.
        mode: see `Objective`.
        also: further modules the loss uses, e.g. the other player's.
        kernel: how curvature products are computed; see `losscope.landscape.Hessian`.
        scaler: the `torch.amp.GradScaler` of the loop, so that the updates it skips are counted. Where it finds
            infinite gradients it does not call the optimizer, and its scale alone shows that; without it only the
            skips of optimizers that unscale by themselves (``fused=True``) are seen.
    """

    name: str
    model: nn.Module
    optimizer: Optimizer | Sequence[Optimizer]
    data: Any
    batch_size: int | None = None
    criterion: Callable[..., Tensor] | None = None
    forward: Callable[..., Any] | None = None
    targets: Callable[..., Any] | None = None
    loss_fn: Callable[..., Tensor] | None = None
    weight: Callable[..., Any] | None = None
    params: Any = None
    mode: str = "eval"
    also: Iterable[nn.Module] = ()
    kernel: str = "auto"
    scaler: Any = None

    @functools.cached_property
    def optimizers(self) -> list[Optimizer]:
        """Its optimizers, unwrapped."""
        return [unwrapped(o) for o in self._given]

    @property
    def steps_off(self) -> bool:
        """Whether an optimizer takes its gradient elsewhere than at the weights, as SAM does."""
        return any(steps_off(o) for o in self._given)

    @property
    def _given(self) -> Sequence[Any]:
        return self.optimizer if isinstance(self.optimizer, list | tuple) else [self.optimizer]

    @property
    def moved(self) -> list[nn.Parameter]:
        """All parameters its optimizers move, each once."""
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        return list({id(p): p for group in groups for p in group["params"]}.values())

    def checked_objective(self, seed: int, ranks: Alone = ALONE) -> Objective:
        """The objective, after everything that can be refused beforehand has been.

        Raises:
            SettingError: for options that mean nothing, an optimizer without a learning rate, and finite differences
                in half precision.
            DataError: if the data cannot be read again and again, or is empty.
            ParameterError: if there is nothing to measure.
            LossError: if the loss is not a scalar connected to the parameters.
        """
        batch = self.batch_size
        if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
            raise SettingError(f"batch_size must be a positive integer, got {batch!r}")
        if self.data is None:
            raise SettingError("pass data=, the batches to measure on (a DataLoader, a list, or one (inputs, targets))")
        if is_one_shot(self.data):
            raise DataError(
                f"data is a one-shot {type(self.data).__name__}, which can be read once only; every measurement reads "
                "it: pass a list of batches or a DataLoader"
            )
        if not self.optimizers or not all(hasattr(o, "param_groups") for o in self.optimizers):
            kind = type(self.optimizer).__name__
            raise SettingError(f"optimizer must be a torch.optim.Optimizer or a list of them, got {kind}")
        for given in map(deciding, self._given):
            if rule_for(given) is not None and any(group.get("lr") is None for group in given.param_groups):
                raise SettingError(
                    f"the learning rate of {type(given).__name__} is None: set lr in its param_groups to a number"
                )
        checked_scaler(self.scaler)
        objective = self.objective(seed, ranks)
        Hessian(objective, self.kernel)
        try:
            with contextlib.suppress(torch.OutOfMemoryError):  # the first measurement will tell; the training may fit
                objective.check()
        except LosscopeError:
            raise
        except Exception as error:
            error.add_note(f"losscope: this is how the loss of {self.name!r} fails on the first batch of data=")
            raise
        return objective

    def objective(self, seed: int, ranks: Alone = ALONE) -> Objective:
        """The objective of the parameters that are selected now, on the data of all ranks."""
        return Objective(
            self.model, self.data, criterion=self.criterion, forward=self.forward, targets=self.targets,
            loss_fn=self.loss_fn, weight=self.weight, params=self._selection(), mode=self.mode, also=self.also,
            seed=seed, ranks=ranks,
        )  # fmt: skip

    def signature(self) -> tuple[tuple[int, bool], ...]:
        """Which parameters are moved and train; changes where layers are frozen, unfrozen or added."""
        own = [(id(p), p.requires_grad) for p in self.model.parameters()]
        return (*own, *((id(p), p.requires_grad) for p in self.moved))

    def _selection(self) -> Any:
        if self.params is not None:
            return self.params
        moved = {id(p) for p in self.moved}
        own = [p for p in self.model.parameters() if p.requires_grad]
        if own and not any(id(p) in moved for p in own):
            raise ParameterError(
                f"the optimizer of {self.name!r} moves none of the model's {len(own)} trainable parameters; is it the "
                "optimizer of another model?"
            )
        return (lambda _, p: id(p) in moved) if own else None

    def rate(self) -> float | None:
        """The learning rate, None where parameter groups or optimizers differ, or say nothing of one.

        Where they differ and one's is negative or not finite, that one: it decides what becomes of the loss.
        """
        rates = self._rates()
        wrong = min(filter(is_wrong, rates), default=None)
        return rates.pop() if len(rates) == 1 else wrong

    def _rates(self) -> set[float]:
        groups = (group for o in self.optimizers for group in o.param_groups if group["params"])
        return {float(rate) for group in groups if (rate := group.get("lr")) is not None}

    def threshold(self) -> Threshold:
        """The stability threshold of the Hessian's eigenvalues at the present settings."""
        found, name = self._limits(), type(deciding(self._given[0])).__name__
        if found.preconditioned:
            return Threshold((), "", self._elsewhere())
        if found.perturbed and not self._is_whole():
            return Threshold((), "", f"that of {name} takes the gradient of all that it moves: leave out params=")
        return found

    def seen(self, objective: Objective) -> SeenCurvature | None:
        """What the only optimizer's last step saw of the curvature, where it divides by something."""
        return seen_by(deciding(self._given[0]), objective) if len(self.optimizers) == 1 else None

    def seen_facts(self, objective: Objective, seen: SeenCurvature | None) -> dict[str, Any]:
        """What the audit is told of what the optimizer saw, or why there is nothing of it to see."""
        if seen is not None:
            folded = rates_differ(deciding(self._given[0]))
            facts = {"seen_formula": _formula(seen.threshold, folded=folded), "preconditioned": True, "folded": folded}
            facts["unused"] = list(seen.unused)
            return facts | ({"threshold_reason": self._elsewhere()} if self._limits().preconditioned else {})
        reason = why_unseen(deciding(self._given[0]), objective) if len(self.optimizers) == 1 else ""
        told: dict[str, Any] = {"threshold_reason": reason} if reason else {}
        if any(map(is_wrong, rates := self._rates())):  # ascent of some groups beside descent of others may be stable
            told["all_climb"] = max(rates) < 0
        return told

    def _elsewhere(self) -> str:
        """Why the Hessian's eigenvalues have no threshold where the optimizer divides by something."""
        return f"that of {type(deciding(self._given[0])).__name__} is one of P^-1 H: see the audit"

    def _limits(self) -> Threshold:
        """Of whatever the only optimizer's step sees."""
        if len(self.optimizers) > 1:
            return Threshold((), "", "several optimizers move this objective")
        return stability_threshold(deciding(self._given[0]))

    def _is_whole(self) -> bool:
        """Whether all that the optimizer moves is measured."""
        own = {id(p) for p in self.model.parameters()}
        return self.params is None and all(id(p) in own for p in self.moved if p.requires_grad)

    def identity(self, objective: Objective) -> dict[str, Any]:
        """What must agree for a run to be the same run when it is resumed."""
        space = objective.space
        described = repr(list(zip(space.names, space.shapes, strict=True)))
        digest = hashlib.sha256(described.encode()).hexdigest()[:16]
        return {"model": type(self.model).__name__, "parameters": space.size, "digest": digest}

    def facts(self, objective: Objective) -> dict[str, Any]:
        """What is known of the player before anything is measured."""
        threshold = self.threshold()
        divides = self._limits().preconditioned
        folded = len(self.optimizers) == 1 and rates_differ(deciding(self._given[0]))
        selected = {id(p) for p in objective.parameters.values()}
        groups = [group for o in self.optimizers for group in o.param_groups]
        return {
            "model": type(self.model).__name__,
            "parameters": objective.space.size,
            "optimizer": ", ".join(_name(deciding(o)) for o in self._given),
            "optimizers": len(self.optimizers),
            "lr": self.rate(),
            "momentum": max((float(g.get("momentum") or 0) for g in groups), default=0.0),
            "weight_decay": max((float(g.get("weight_decay") or 0) for g in groups), default=0.0),
            "scaled": checked_scaler(self.scaler) is not None,
            "threshold_formula": threshold.formula,
            "threshold_reason": "" if threshold.perturbed else threshold.reason,
            "divides": divides,
            "preconditioned": divides or folded,
            "folded": folded,
            "perturbed": bool(threshold.perturbed),
            "batch_size": self.batch_size,
            "mode": self.mode,
            "kernel": self.kernel,
            "summed": objective.loss.summed,
            "covers_optimizer": all(id(p) in selected for p in self.moved if p.requires_grad),
            "dtype": str(objective.space.dtype).removeprefix("torch."),
            "weights_dtype": str(max(objective.space.dtypes, key=lambda d: torch.finfo(d).eps)).removeprefix("torch."),
            "device": str(objective.space.device),
        }


def _formula(threshold: Threshold, *, folded: bool) -> str:
    return f"{threshold.formula} of the strictest group" if folded else threshold.formula


def _name(optimizer: Any) -> str:
    """Of its class, and of what it wraps."""
    name, base = type(optimizer).__name__, unwrapped(optimizer)
    return name if base is optimizer else f"{name}({_name(base)})"
