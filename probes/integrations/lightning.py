"""Lightning: a callback that watches a Trainer's training."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor, nn

from losscope.landscape import SettingError

from ..player import Player
from .binding import Binding
from .few_batches import few_batches

__all__ = ["WatchCallback"]

# One package under two names, with classes of their own: that of the Trainer the script has imported.
_NAMES = ("pytorch_lightning", "lightning.pytorch")
if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    try:
        chosen = _NAMES[0] if _NAMES[0] in sys.modules and _NAMES[1] not in sys.modules else _NAMES[1]
        try:
            Callback = importlib.import_module(chosen).Callback
        except ModuleNotFoundError:
            Callback = importlib.import_module(_NAMES[0]).Callback
    except ModuleNotFoundError as error:
        message = 'this callback needs lightning: pip install "losscope[lightning]"'
        raise ModuleNotFoundError(message, name=error.name) from error


class WatchCallback(Binding, Callback):
    """Watches what Lightning trains: ``Trainer(callbacks=[WatchCallback(criterion=nn.CrossEntropyLoss())])``.

    Pass the loss as to `losscope.probes.watch`: ``criterion`` for (inputs, targets) batches, on what the module's
    ``forward`` gives, or ``loss_fn(module, batch)``. Its ``training_step`` is never called: it logs, and may keep what
    it sees. The loss it gives is recorded every ``log_every_n_steps`` updates. Checkpoints hold what the next
    measurements start from, and ``fit(ckpt_path=...)`` goes on with the run in ``out``.

    Args:
        data: as for `losscope.probes.watch`. Default: four batches at even distances in the data set of the training's
            only loader, which is not touched.
        batch_size: samples behind one update. Default: what the loader and the Trainer make of batch size,
            accumulation and processes.
        players: for a module with several optimizers, a function ``(module, optimizers) -> players``; data, losses and
            batch sizes are theirs.
        **options: further ones of `losscope.probes.watch`, the objective's too.

    Raises:
        SettingError: for options that are the Trainer's to say; when training begins, as `watch` does, and if there
            are several optimizers or none, or no loss.

    Example:
        >>> from torch import nn
        >>> from losscope.probes import Player, Sharpness
        >>> from losscope.probes.integrations.lightning import WatchCallback
        >>> callback = WatchCallback(criterion=nn.CrossEntropyLoss(), every=100, probes=[Sharpness()])
        >>> def both(module, optimizers):
        ...     g, d = optimizers
        ...     return [Player("generator", module.generator, g, noise, loss_fn=module.fooled, also=[module.critic]),
        ...             Player("critic", module.critic, d, images, loss_fn=module.told, also=[module.generator])]
        >>> callback = WatchCallback(players=both, every=100)
    """

    def __init__(
        self,
        *,
        data: Any = None,
        batch_size: int | None = None,
        players: Callable[[nn.Module, Sequence[Any]], Sequence[Player]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__("Lightning's Trainer", {"data": data, "batch_size": batch_size, **options})
        self._players = players
        self._state: Mapping[str, Any] | None = None
        self._logged = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Bind the module, its optimizers and the data; after the sanity check and the loading of a checkpoint."""
        optimizers, state = list(trainer.optimizers), self._state
        self._state = None
        derived: dict[str, Any] = {"data_parallel": trainer.world_size > 1}
        steps = trainer.global_step // max(len(optimizers), 1)  # Lightning counts the steps of all optimizers
        if self._players is not None:
            self._logged = self.begin(self._players(pl_module, optimizers), step=steps, state=state, **derived).steps
            return
        if len(optimizers) != 1:
            raise SettingError(
                f"{type(pl_module).__name__} has {len(optimizers)} optimizers; pass players=lambda module, optimizers: "
                "[Player(name, model, optimizer, data, loss_fn=...), ...], with a list of optimizers where several "
                "move one model"
            )
        if not {"criterion", "loss_fn"} & self.options.keys():
            raise SettingError(
                "pass criterion= for (inputs, targets) batches, or loss_fn=lambda module, batch: ..., what "
                "training_step computes, without its self.log"
            )
        derived |= {"scaler": getattr(trainer.precision_plugin, "scaler", None)}
        loader = trainer.train_dataloader
        if "data" not in self.options:
            derived["data"] = few_batches(loader, rank=trainer.global_rank, ranks=trainer.world_size)
        if isinstance(size := getattr(loader, "batch_size", None), int):
            derived["batch_size"] = size * trainer.accumulate_grad_batches * trainer.world_size
        self._logged = self.begin(pl_module, optimizers[0], step=steps, state=state, **derived).steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the loss that ``training_step`` gave, at Lightning's own cadence."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if (run := self.live) is None or run.steps == self._logged or not isinstance(loss, Tensor) or loss.numel() != 1:
            return
        self._logged = run.steps
        if run.steps % trainer.log_every_n_steps == 0:
            self.note(run.steps - 1, {"loss": float(loss)})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the run."""
        self.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the run as failed."""
        self.close(exception)

    def state_dict(self) -> dict[str, Any]:
        """What the next measurements start from, for Lightning's checkpoint."""
        return {} if self.live is None else self.live.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's part until training begins."""
        self._state = state_dict

    def on_init_end(self, *_: Any, **__: Any) -> NoReturn:
        """Hugging Face's Trainer calls this.

        Raises:
            SettingError: always.
        """
        raise SettingError(
            "this WatchCallback is Lightning's; for Hugging Face's Trainer: from "
            "losscope.probes.integrations.transformers import WatchCallback"
        )
