"""Where records go besides the run folder: TensorBoard, Weights & Biases, or any function of a record."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from losscope.landscape import SettingError

from .records import Record
from .run import Run

__all__ = ["TensorBoard", "WandB", "export", "numbers"]

Sink = Callable[[Record], object]
"""A function of a `Record`; where it has a method ``close()`` that is called at the end."""


def numbers(record: Record) -> dict[str, float]:
    """Every number of a record by name: value, low, high, lr, what it cost, and its further values.

    Example:
        >>> from losscope.probes import Record
        >>> from losscope.probes.sinks import numbers
        >>> numbers(Record(5, "model", "log", lr=0.1, values={"loss": 2.0}))
        {'lr': 0.1, 'loss': 2.0}
    """
    cost = {"matvecs": record.matvecs, "seconds": record.seconds} if record.seconds or record.matvecs else {}
    own = {"value": record.value, "low": record.low, "high": record.high, "lr": record.lr, **cost}
    further = {f"values.{name}" if name in own else name: value for name, value in record.values.items()}
    return {name: float(value) for name, value in (own | further).items() if value is not None}


def _tag(record: Record, name: str) -> str:
    return f"losscope/{record.player}/{record.probe}/{name}"


def _failure(record: Record) -> str | None:
    return None if record.status == "ok" else f"{record.status}: {record.reason}"


class TensorBoard:
    """Scalars ``losscope/<player>/<probe>/<name>`` at the record's step, in single precision as TensorBoard keeps them.

    Measurements are flushed at once; what `Watch.log` records when the writer does. Failed ones leave a text
    ``.../status``.

    Args:
        log_dir: folder for the event files, or a ``torch.utils.tensorboard.SummaryWriter``, which stays open.
        **options: of the ``SummaryWriter``, e.g. ``purge_step`` when returning to an earlier checkpoint.

    Raises:
        ImportError: if tensorboard is not installed.
        SettingError: for options of a writer that is there already.

    Example:
        >>> from losscope.probes import TensorBoard
        >>> import tempfile
        >>> sink = TensorBoard(tempfile.mkdtemp())  # watch(..., sinks=[sink])
    """

    def __init__(self, log_dir: Any, **options: Any) -> None:
        self._own = isinstance(log_dir, str | Path)
        if not self._own and (options or not hasattr(log_dir, "add_scalar")):
            raise SettingError(
                f"TensorBoard takes a folder, or a SummaryWriter without further options; got {type(log_dir).__name__}"
                f"{' with ' + ', '.join(options) if options else ''}"
            )
        self._make = _summary_writer(str(log_dir), options) if self._own else None
        self._writer = None if self._own else log_dir

    def __call__(self, record: Record) -> None:
        """Write one record."""
        if self._writer is None and self._make is not None:  # not before: a rank that writes nothing leaves no file
            self._writer = self._make()
        assert self._writer is not None
        for name, number in numbers(record).items():
            self._writer.add_scalar(_tag(record, name), number, record.step)
        if (failure := _failure(record)) is not None:
            self._writer.add_text(_tag(record, "status"), failure, record.step)
        if record.probe != "log":
            self._writer.flush()

    def close(self) -> None:
        """Write out what is left."""
        if self._writer is not None:
            self._writer.flush()
            if self._own:
                self._writer.close()


def _summary_writer(log_dir: str, options: dict[str, Any]) -> Callable[[], Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'TensorBoard needs tensorboard: pip install "losscope[tensorboard]"', name=error.name
        ) from error
    return partial(SummaryWriter, log_dir, **options)


class WandB:
    """Numbers ``losscope/<player>/<probe>/<name>`` in the history of a Weights & Biases run.

    The records of a probe are drawn over ``losscope/<player>/<probe>/step``, their own step. W&B's counter is moved
    to the record's step where it is behind and never back, so that what the loop logs with ``step=`` keeps its place.
    Failed ones leave a text ``.../status``.

    Args:
        run: what ``wandb.init()`` gave; default: the run that is active. It is not finished with the watch.

    Raises:
        ImportError: if wandb is not installed.
        SettingError: if there is no run.

    Example:
        >>> from losscope.probes import WandB
        >>> WandB(object())
        Traceback (most recent call last):
        losscope.landscape.errors.SettingError: WandB takes the run that wandb.init() gave, got object
    """

    def __init__(self, run: Any = None) -> None:
        run = _active_run() if run is None else run
        if not all(hasattr(run, name) for name in ("log", "step", "define_metric")):
            raise SettingError(f"WandB takes the run that wandb.init() gave, got {type(run).__name__}")
        self._run = run
        self._rows: dict[tuple[str, str], int] = {}

    def __call__(self, record: Record) -> None:
        """Add one record to the history."""
        which = (record.player, record.probe)
        if which not in self._rows:
            self._run.define_metric(_tag(record, "*"), step_metric=_tag(record, "step"))
        content: dict[str, Any] = {_tag(record, name): number for name, number in numbers(record).items()}
        content[_tag(record, "step")] = record.step
        if (failure := _failure(record)) is not None:
            content[_tag(record, "status")] = failure
        row = max(int(self._run.step), record.step)
        if self._rows.get(which) == row:  # the row holds an earlier record of this probe
            row += 1
        self._rows[which] = row
        self._run.log(content, step=row)


def _active_run() -> Any:
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('WandB needs wandb: pip install "losscope[wandb]"', name=error.name) from error
    if wandb.run is None:
        raise SettingError("there is no active W&B run: call wandb.init() first, or pass its run: WandB(run)")
    return wandb.run


def export(run: Run | str | Path, *sinks: Sink) -> int:
    """Hand all records of a run to sinks, in order of step, and close them.

    Args:
        run: a run, or its folder.
        *sinks: where to.

    Returns:
        The number of records.

    Raises:
        RunError: if the folder is not a run.

    Example:
        >>> from losscope.probes import Record, Run, export
        >>> run = Run.from_records({"players": {"model": {}}}, [Record(0, "model", "log", values={"loss": 1.0})])
        >>> export(run, lambda record: print(record.step, record.values))
        0 {'loss': 1.0}
        1
    """
    records = sorted((run if isinstance(run, Run) else Run(run)).records, key=lambda record: record.step)
    for sink in sinks:
        for record in records:
            sink(record)
        if callable(close := getattr(sink, "close", None)):
            close()
    return len(records)
