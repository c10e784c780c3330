"""Hugging Face's Trainer: a callback that watches its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from losscope.landscape import SettingError

from ..guard import say
from .binding import Binding
from .few_batches import few_batches
from .hugging_face import labels, logits, model_loss, tokens

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    message = 'this callback needs transformers: pip install "losscope[transformers]"'
    raise ModuleNotFoundError(message, name=error.name) from error

__all__ = ["WatchCallback", "model_loss", "tokens"]

_STATE = "losscope.pt"
_LOSSES = ("criterion", "loss_fn", "forward", "targets")


class WatchCallback(Binding, TrainerCallback):
    """Watches what a Hugging Face Trainer trains: ``Trainer(..., callbacks=[WatchCallback(out="runs/a")])``.

    Record t holds the weights before update t, as everywhere; the Trainer's ``state.global_step`` is t + 1 once it is
    made. (It also counts updates that a GradScaler skipped; records do not.) What the Trainer logs is recorded, and
    ``resume_from_checkpoint`` goes on with the run in ``out``: what the next measurements start from is kept as
    ``losscope.pt`` in the Trainer's checkpoints.

    The Trainer does not tell its callbacks when a training raises. The run is then closed, as failed, when the
    callback is dropped, when a training begins again, or when Python ends; at once, and with the reason, in
    ``with WatchCallback(...) as callback: trainer.train()``.

    Args:
        data: as for `losscope.probes.watch`. Default: four batches of the Trainer's size, at even distances in its
            training set; the Trainer's own loader is not touched.
        batch_size: samples behind one update. Default: what the Trainer's arguments make of batch size,
            accumulation and processes.
        **options: further ones of `losscope.probes.watch`, the objective's too. Where they name no loss, it is that
            of the model's own output, `model_loss`, weighted by `tokens`.

    Raises:
        SettingError: for options that are the Trainer's to say; when training begins, as `watch` does.

    Example:
        >>> from losscope.probes import Sharpness
        >>> from losscope.probes.integrations.transformers import WatchCallback
        >>> callback = WatchCallback(every=100, probes=[Sharpness()], mode="train")
    """

    def __init__(self, *, data: Any = None, batch_size: int | None = None, **options: Any) -> None:
        super().__init__("the Trainer", {"data": data, "batch_size": batch_size, **options})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Bind model, optimizer and data."""
        model, optimizer, options = kwargs["model"], kwargs["optimizer"], self.options
        derived: dict[str, Any] = {
            "batch_size": (state.train_batch_size or args.train_batch_size)
            * args.gradient_accumulation_steps
            * args.world_size,
            "scaler": getattr(optimizer, "scaler", None),
            "data_parallel": args.world_size > 1,  # the Trainer hands over what is inside DistributedDataParallel
        }
        if not any(name in options for name in _LOSSES):
            if args.label_smoothing_factor:
                raise SettingError(
                    "with label_smoothing_factor the Trainer's loss is not that of the model's output: pass loss_fn= "
                    "or criterion="
                )
            derived |= {"loss_fn": model_loss, "weight": tokens(model)}
        elif "criterion" in options:
            derived |= {"forward": logits, "targets": labels}
        if "data" not in options:
            derived["data"] = few_batches(kwargs["train_dataloader"], rank=args.process_index, ranks=args.world_size)
        kept = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / _STATE
        resumed = torch.load(kept, map_location="cpu", weights_only=True) if kept.exists() else None
        self.begin(model, optimizer, step=state.global_step, state=resumed, **derived)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Record what the Trainer logs."""
        self.note(state.global_step - 1, logs or {})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep beside the Trainer's checkpoint what the next measurements start from."""
        if (run := self.live) is None:
            return
        path = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}" / _STATE
        try:
            kept = run.state_dict()  # by all ranks
            if state.is_world_process_zero and path.parent.is_dir():
                torch.save(kept, path)
        except Exception as error:
            say(f"losscope: {path} cannot be written: {error}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the run."""
        self.close()

    state_key = "losscope"  # what follows is called by Lightning, which asks for this first

    def setup(self, *_: Any, **__: Any) -> NoReturn:
        """Say that this is not Lightning's.

        Raises:
            SettingError: always.
        """
        raise SettingError(
            "this WatchCallback is that of Hugging Face's Trainer; for Lightning: from "
            "losscope.probes.integrations.lightning import WatchCallback"
        )

    def on_exception(self, *_: Any, **__: Any) -> None:
        """Let the error of `setup` out."""
