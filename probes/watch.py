"""The context manager around a training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from losscope.landscape import SettingError
from losscope.landscape.distributed import Alone

from .budget import Budget
from .checkpoint import Room, packed, unpack
from .cost import Cost, cost, spent_by
from .environment import describe_environment
from .follower import Follower
from .guard import say
from .options import check_options, checked_number, checked_step
from .outlets import Outlets
from .player import Player
from .players import check_hookable, check_unwatched, checked_players, is_coupled
from .probe import Probe, as_probes
from .ranks import check_same, described, joined
from .recorder import Recorder, now, resumes, steps_done
from .records import SCHEMA_VERSION, Record
from .run import Run, ShownAsRun
from .schedule import as_schedule
from .sharpness import Sharpness
from .stability import Stability
from .steps import UpdateHooks, outside_of_inference
from .trace import Trace
from .verdicts import Verdict, Verdicts

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Watch", "watch"]


def watch(
    model: nn.Module | Sequence[Player],
    optimizer: Any = None,
    *,
    data: Any = None,
    probes: Iterable[Any] | None = None,
    every: Any = 50,
    out: str | Path | None = None,
    batch_size: int | None = None,
    drive: str = "hooks",
    on_error: str = "warn",
    on_verdict: Callable[[Verdict], object] | None = None,
    budget: float | None = None,
    kernel: str = "auto",
    resume: bool = False,
    first_step: int | None = None,
    seed: int = 0,
    data_parallel: Any = "auto",
    sinks: Any = (),
    **objective: Any,
) -> Watch:
    """Watch a training loop: measure its loss surface as it goes, without changing a bit of it.

    Use it as a context manager around the loop. Record t holds the weights *before* update t and the
    learning rate that update used. A failing measurement is recorded and warned about once; the loop
    goes on.

    Args:
        model: the model, or a list of `Player` for several that are trained together.
        optimizer: its optimizer, or a list where several move it; hooks on it drive the measuring.
        data: batches to measure on: a DataLoader, a list of batches, or one (inputs, targets).
        probes: what to measure: probes, or functions ``snapshot -> dict``. Default: `Sharpness`,
            `Trace`, `Stability`.
        every: when: an integer, explicit steps, or a callable ``step -> bool``. Probes may have their own.
        out: folder to write the run to; None keeps it in memory, with the arrays of its records.
        batch_size: samples behind one update of the training (times accumulation and ranks). The
            stability of mini-batch training cannot be judged without.
        drive: ``"hooks"``; ``"manual"`` for loops that hooks cannot follow: call ``run.step()`` after
            every update.
        on_error: ``"warn"``, or ``"raise"`` to let exceptions of probes out.
        on_verdict: called with a `Verdict` when a measurement of `Stability` changes the verdict of a criterion
            over the last five measurements, once the update is complete: it may log, lower
            ``param_groups[i]["lr"]``, or raise to stop. Its exceptions come out of ``optimizer.step()`` unchanged,
            whatever ``on_error`` says; the run is then recorded as failed, unless they are caught within the context.
        budget: at most this share of wall-clock time for measuring; due measurements are postponed.
        kernel: how curvature products are computed: ``"auto"``, ``"retained"``, ``"batched"``, ``"compiled"`` or
            ``"finite_difference"``; see `losscope.landscape.Hessian`. Only ``"auto"`` checks that double
            backward is the derivative of the gradient.
        resume: append to the run in ``out``.
        first_step: number of updates made before (after loading a checkpoint). Default: 0, or when
            resuming one past the last recorded step.
        seed: seeds every estimator; the global random streams are never touched.
        data_parallel: whether the ranks of `torch.distributed` measure together, each on its own ``data``: ``"auto"``
            does for a model in `DistributedDataParallel`, and leaves each rank to itself else; True, False, or `Ranks`.
            Together, every rank calls `watch` and its methods alike, and rank 0 alone writes and warns.
        sinks: functions of a `Record` that get every one, e.g. ``[TensorBoard("logs")]``; see `losscope.probes.sinks`.
        **objective: ``criterion``, ``forward``, ``targets``, ``loss_fn``, ``weight``, ``params``, ``mode``,
            ``also``: see `losscope.landscape.Objective`. ``params`` defaults to what the optimizer moves. And
            ``scaler``, the loop's GradScaler: without it the updates that it skips are not counted; see `Player`.

    Returns:
        The live object: ``run.log(...)``, ``run.measure_now()``, ``run.run``.

    Raises:
        SettingError: for options that mean nothing, and for finite differences in half precision.
        DataError: if the data is empty or can be read once only.
        ParameterError: if there is nothing to measure.
        LossError: if the loss is not a scalar connected to the parameters.
        RunError: if ``out`` holds another run.
        RankError: if not all ranks come, or their weights differ.

    Example:
        >>> import torch
        >>> from losscope.probes import Sharpness, watch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.eye(2), torch.ones(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> half = lambda out, target: ((out - target) ** 2).mean() / 2
        >>> with watch(model, optimizer, data=(x, y), criterion=half, every=5, probes=[Sharpness()]) as run:
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         loss = half(model(x), y)
        ...         loss.backward()
        ...         optimizer.step()
        ...         run.log(loss=loss)
        >>> [(r.step, round(r.value, 4)) for r in run.run.select("sharpness")]
        [(0, 0.5), (5, 0.5)]
    """
    if isinstance(model, nn.Module):
        if optimizer is None:
            raise SettingError("pass the optimizer: watch(model, optimizer, data=..., criterion=...)")
        known = {f.name for f in fields(Player)} - {"name", "model", "optimizer", "data", "batch_size", "kernel"}
        if unknown := set(objective) - known:
            raise SettingError(
                f"watch has no option {', '.join(sorted(unknown))}; of the objective: {', '.join(sorted(known))}"
            )
        players = [Player("model", model, optimizer, data, batch_size, kernel=kernel, **objective)]
    else:
        players = checked_players(model)
        if optimizer is not None or data is not None or batch_size is not None or kernel != "auto" or objective:
            raise SettingError(
                "with players, optimizer, data, batch_size, kernel and objective options belong to each Player"
            )
    players, ranks = joined(players, data_parallel)
    with ranks.together():  # what one rank refuses, all do
        check_options(drive, on_error, on_verdict, first_step, seed, resume=resume, out=out)
        chosen = as_probes([Sharpness(), Trace(), Stability()] if probes is None else probes)
        return Watch(
            players, chosen, every, out=None if out is None else Path(out), manual=drive == "manual",
            raise_errors=on_error == "raise", budget=Budget(budget), resume=resume, first_step=first_step, seed=seed,
            on_verdict=on_verdict, ranks=ranks, outlets=Outlets(sinks),
        )  # fmt: skip


class Watch(ShownAsRun):
    """A training loop being watched; made by `watch`, used as a context manager."""

    def __init__(
        self, players: list[Player], probes: list[Probe], every: Any, *, out: Path | None, manual: bool,
        raise_errors: bool, budget: Budget, resume: bool, first_step: int | None, seed: int,
        on_verdict: Callable[[Verdict], object] | None, ranks: Alone, outlets: Outlets,
    ) -> None:  # fmt: skip
        schedule, seed = as_schedule(every), ranks.decide(lambda: seed)
        kept_arrays = ranks.decide(lambda: out is None)
        out = out if ranks.first else None
        budget.share_among(ranks)
        objectives = {p.name: p.checked_objective(seed, ranks) for p in players}
        if ranks.size > 1:
            check_same(ranks, described(players, probes, every=every, manual=manual, share=budget.share, resume=resume))
        identity = {p.name: p.identity(objectives[p.name]) for p in players}
        self._resume = ranks.decide(lambda: resumes(out, identity, resume))
        if first_step is None:
            first_step = ranks.decide(lambda: steps_done(out) if self._resume and out is not None else 0)
        self._first_step, self._manual, self._budget = first_step, manual, budget
        self._state, self._loaded, self._ranks = "new", False, ranks
        self._verdicts = None if on_verdict is None else Verdicts(on_verdict, lambda: self._recorder.meta)
        self._followers = {
            p.name: Follower(
                p, objectives[p.name], probes, schedule, emit=self._emit, tell=self._tell, budget=budget,
                raise_errors=raise_errors, first_step=first_step, seed=seed,
            )
            for p in players
        }  # fmt: skip
        followers = self._followers.values()
        self._hooks = {
            p.name: UpdateHooks(p.optimizers, f.opened, partial(self._closed, f), f.skipped)
            for p, f in zip(players, followers, strict=True)
        }
        if not manual:
            check_hookable(players)
        facts = {p.name: p.facts(objectives[p.name]) for p in players}
        for player in players:
            facts[player.name]["coupled"] = is_coupled(player, objectives[player.name], players)
        earlier = ranks.decide(lambda: Run(out).meta if self._resume and out is not None else {})
        for name, known in (earlier.get("players") or {}).items():  # what only a measurement shows, until the next one
            facts[name] = {**known, **facts[name]}
        meta: dict[str, Any] = {
            "v": SCHEMA_VERSION, "status": "running", "reason": None, "created": earlier.get("created") or now(),
            "finished": None,
            "identity": identity, "seed": seed, "first_step": first_step, "probes": [p.name for p in probes],
            "players": facts, **describe_environment(),
        }  # fmt: skip
        self._recorder = Recorder(out, meta, arrays=kept_arrays, outlets=outlets if ranks.first else None)

    # ------------------------------------------------------------------ context manager

    def __enter__(self) -> Self:
        """Open the run folder and attach to the optimizers."""
        if self._state != "new":
            raise SettingError("a watch can be entered once; call watch(...) again")
        with self._ranks.together():
            if not self._manual:
                check_unwatched([follower.player for follower in self._followers.values()])
            if self._resume:
                out = self._recorder.out
                self._recall(self._ranks.decide(lambda: None if out is None else Run(out)))
            self._recorder.open(resume=self._resume)
        self._state = "open"
        self._budget.start()
        if self._manual:
            for follower in self._followers.values():
                follower.measure_due()
        else:
            for hooks in self._hooks.values():
                hooks.attach()
        return self

    def _recall(self, earlier: Run | None) -> None:
        """Take up what an earlier part of this run has left."""
        assert earlier is not None
        if self._verdicts is not None and not self._loaded:
            self._verdicts.recall(r for r in earlier.records if r.step < self._first_step)
        if not self._loaded:
            self._budget.load_state_dict(dict(zip(("spent", "total"), spent_by(earlier), strict=True)))
        for follower in self._followers.values():
            follower.recall(earlier)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach and close the run, as failed if the loop raised; its exception comes out unchanged."""
        self._state = "closing"
        for hooks, follower in zip(self._hooks.values(), self._followers.values(), strict=True):
            if error is not None:
                follower.discard()
            hooks.detach()
            follower.flush()
        self._state = "closed"
        unseen = {n: f.stray.words(f.step - self._first_step, manual=self._manual) for n, f in self._followers.items()}
        for name, words in unseen.items():
            self._tell(name, {"unseen": words})
        self._recorder.close(
            status="finished" if error is None else "failed",
            reason=None if error is None else f"{type(error).__name__}: {error}", finished=now(),
            cost=self._cost(),
            steps={name: follower.step for name, follower in self._followers.items()},
        )  # fmt: skip
        for name, words in unseen.items() if error is None and self._ranks.speaks else ():
            if words:
                say(f"losscope: the weights of {name!r} were {words}; nothing of that was measured")
        self._ranks.close()
        if error is None:  # what was measured as the last round was closed
            self._judge(*self._followers.values())

    # ------------------------------------------------------------------ for the loop

    def log(self, *, step: int | None = None, player: str | None = None, **values: Any) -> None:
        """Record numbers beside the measurements, e.g. ``run.log(loss=loss)`` after ``optimizer.step()``.

        Args:
            step: the update they belong to; default: the last one made.
            player: whose; default: the first.
            **values: numbers or scalar tensors.

        Raises:
            SettingError: if a value is not a number, or the watch is not open.
        """
        self._check_open("log")
        follower = self._follower(player)
        numbers: dict[str, float | None] = {name: checked_number(name, value) for name, value in values.items()}
        step = max(self._made(follower) - 1, 0) if step is None else checked_step(step)
        rate = follower.player.rate()
        with self._budget.spending():
            self._emit(Record(step, follower.player.name, "log", lr=rate, values=numbers, time=time.time()), {})

    @outside_of_inference
    def step(self, player: str | None = None) -> None:
        """With ``drive="manual"``: an update has been made; measures if a measurement is due.

        Raises:
            SettingError: if hooks drive the run.
        """
        self._check_open("step")
        if not self._manual:
            raise SettingError('step() is for drive="manual"; with hooks the optimizer drives the run')
        follower = self._follower(player)
        follower.step += 1
        follower.stray.explained()
        follower.measure_due()
        self._judge(follower)

    @outside_of_inference
    def measure_now(self, player: str | None = None) -> list[Record]:
        """Measure with all probes at the present weights, whatever the schedule.

        Between two updates: where several optimizers take turns, this ends the round.

        Returns:
            The records, already written.
        """
        self._check_open("measure_now")
        follower = self._follower(player)
        self._hooks[follower.player.name].close()
        records = follower.measure_live(follower.probes)
        self._judge(follower)
        return records

    def state_dict(self, max_bytes: int | None = 256 << 20) -> dict[str, Any]:
        """What a checkpoint of the training needs for the watching to go on as if nothing had come between.

        Counters, postponed measurements, the budget's account, what was made of verdicts, and what the next
        measurements start from: eigenvectors, the trace's subspace, first and last tangent kernel, points of the
        trajectory, oscillations and midpoints that are being followed. Plain tensors, numbers, words, lists and dicts:
        ``torch.load(..., weights_only=True)`` reads it. The records are not in it: they are in ``out``. Like
        `measure_now`, this ends the round where several optimizers take turns.

        Args:
            max_bytes: of tensors, at most: an eigenvector is as large as the parameters, and the trace has up to eight.
                What does not fit begins afresh after loading, which costs products, once. None is no bound.

        Raises:
            SettingError: if the watch has not been entered, or ``max_bytes`` means nothing.

        Example:
            >>> import torch
            >>> from losscope.probes import Sharpness, watch
            >>> model, data = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.ones(2, 1))
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            >>> options = {"data": data, "criterion": torch.nn.MSELoss(), "every": 2, "probes": [Sharpness()]}
            >>> with watch(model, optimizer, **options) as run:
            ...     for _ in range(3):
            ...         optimizer.step()
            ...     checkpoint = run.state_dict()
            >>> again = watch(model, optimizer, **options)
            >>> again.load_state_dict(checkpoint)
            >>> with again:
            ...     for _ in range(3):
            ...         optimizer.step()
            >>> [record.step for record in again.run.select("sharpness")]
            [4]
        """
        if self._state not in ("open", "closed"):
            raise SettingError(f"state_dict() works from `with watch(...) as run:` on; this watch is {self._state}")
        room = Room(max_bytes)
        for hooks in self._hooks.values():
            hooks.close()
        return packed(self._recorder.meta, room, self._followers, self._budget, self._verdicts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with model, optimizer and scaler from the same checkpoint.

        Before the ``with``, or in it before the first update. With ``resume=True`` the run in ``out`` is appended to;
        what it holds of later steps is replaced as they are made again.

        Raises:
            SettingError: if it is not the state of a watch, or something was measured already.
            RunError: if it is of another version, of other models or of other probes.
        """
        begun = any(self._made(follower) > self._first_step for follower in self._followers.values())
        if self._state not in ("new", "open") or self._recorder.taken or begun:
            raise SettingError("load_state_dict() comes before the first update and measurement: call it before `with`")
        unpack(state, self._recorder.meta, self._followers, self._budget, self._verdicts)
        self._loaded = True
        self._recorder.meta["first_step"] = self.steps
        if self._state == "open":
            self._recorder.write_meta()

    @property
    def steps(self) -> int:
        """Updates made so far (of the first player)."""
        return self._made(self._follower(None))

    @property
    def run(self) -> Run:
        """The run so far, as a reader sees it."""
        return self._recorder.run

    def cost(self) -> Cost:
        """What every probe has cost so far; see `losscope.probes.Run.cost`."""
        return cost(self.run, self._cost() if self._state == "open" else None)

    # ------------------------------------------------------------------ verdicts

    def _closed(self, follower: Follower) -> None:
        """An update is complete: only now may a callback change settings, or raise."""
        follower.closed()
        if self._state == "open":
            self._judge(follower)

    def _judge(self, *followers: Follower) -> None:
        """Tell verdicts that changed; a failing audit is warned about, the callback's exceptions come out."""
        if self._verdicts is None:
            return
        for follower in followers:
            changed: list[Verdict] = []
            with follower.guarded("verdicts"), self._budget.spending():
                changed = self._verdicts.changes(follower.player.name)
            self._verdicts.tell(changed)

    # ------------------------------------------------------------------ inside

    def _emit(self, record: Record, arrays: Mapping[str, np.ndarray]) -> None:
        if self._verdicts is not None:
            self._verdicts.note(record)
        self._recorder.record(record, arrays)
        if self._recorder.taken.bit_count() == 1:  # seldom: so that a run which is killed says something of its cost
            self._recorder.meta["cost"] = self._cost()
            self._recorder.write_meta()

    def _cost(self) -> dict[str, Any]:
        """The account of the measuring, for the run's description."""
        return {
            "seconds_measuring": self._budget.spent, "seconds_total": self._budget.total, "budget": self._budget.share,
            "players": {name: follower.cost() for name, follower in self._followers.items()},
        }  # fmt: skip

    def _tell(self, player: str, facts: dict[str, Any]) -> None:
        self._recorder.tell(player, facts)

    def _follower(self, player: str | None) -> Follower:
        if player is None:
            return next(iter(self._followers.values()))
        if player not in self._followers:
            raise SettingError(f"there is no player {player!r}; there are {', '.join(self._followers)}")
        return self._followers[player]

    def _made(self, follower: Follower) -> int:
        """Updates made so far, with the one that an optimizer has begun and another may still join."""
        return follower.step + self._hooks[follower.player.name].under_way

    def _check_open(self, method: str) -> None:
        if self._state != "open":
            raise SettingError(f"{method}() works inside `with watch(...) as run:`; this watch is {self._state}")
