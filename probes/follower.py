"""Following one player: when to measure, at which weights, and what to do when it fails."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from losscope.landscape import NonFiniteError, Objective
from losscope.landscape.stability import Threshold

from .agenda import Agenda
from .bars import bar
from .budget import Budget, Key
from .checkpoint import Room
from .expense import Expense, Peak, finish, release
from .guard import Guard, say
from .memory import Memory
from .midpoint import Midpoint, MidpointWatch
from .observed import facts_of, mode_matters
from .oscillation import OscillationWatch
from .player import Player
from .probe import Measurement, Needs, Probe
from .ranks import NOT_IN_PARTS
from .records import Record
from .run import Run
from .schedule import Schedule
from .seen import SeenCurvature
from .skipped import SkippedUpdates
from .snapshot import Snapshot
from .stray import StrayWrites
from .update import Update

__all__ = ["Follower"]


class Follower:
    """Measures one player at the due steps.

    Args:
        player: the player.
        objective: its checked objective.
        probes: the probes.
        schedule: the schedule of probes that have none of their own.
        emit: takes each record, with its arrays.
        tell: takes facts of the player that only a measurement reveals.
        budget: the run's budget of time.
        raise_errors: let exceptions of probes out.
        first_step: number of updates made before.
        seed: seed of all estimators.
    """

    def __init__(
        self,
        player: Player,
        objective: Objective,
        probes: Sequence[Probe],
        schedule: Schedule,
        *,
        emit: Callable[[Record, Mapping[str, Any]], None],
        tell: Callable[[str, dict[str, Any]], None],
        budget: Budget,
        raise_errors: bool,
        first_step: int,
        seed: int,
    ) -> None:
        self.player, self.objective, self.probes = player, objective, list(probes)
        self.step = first_step
        self._emit, self._tell, self._budget, self._seed = emit, tell, budget, seed
        self._judges = any(probe.name == "stability" for probe in self.probes)
        self.agenda = Agenda(player.name, self.probes, schedule, budget)
        self._memory, self._expense, self._late = Memory(), Expense(), dict[str, int]()
        self._chosen: list[Probe] = []
        self._copy: dict[nn.Parameter, Tensor] | None = None
        self._settings: tuple[float | None, Threshold] = (None, Threshold((), ""))
        self._oscillations: list[OscillationWatch] = []
        self._midpoint: MidpointWatch | None = None
        self._first_step, self._made = first_step, False
        self._skips, self._skips_told = SkippedUpdates(player.scaler), -1
        self._ranks = ranks = objective.ranks
        self.guarded = Guard(player.name, lambda: self.step, raise_errors=raise_errors, speaks=lambda: ranks.speaks)
        self._facts_told = self._modes_compared = False
        self._gradient: Tensor | None = None
        self._selection, self.stray = player.signature(), StrayWrites(player)
        self._outside = self._outside_versions()

    def recall(self, run: Run) -> None:
        """Let the probes take up what an earlier part of this run has left."""
        for probe in (probe for probe in self.probes if probe.name not in self._memory.kept):
            with self.guarded(probe.name):
                probe.recall(run, self.player.name, self._memory)

    def state_dict(self, room: Room) -> dict[str, Any]:
        """Where the player stands, and what its next measurements start from; see `Watch.state_dict`."""
        kept = {probe.name: probe.state_dict(self._memory, room) for probe in self.probes}
        state = {
            "step": self.step, "first_step": self._first_step, "made": self._made, "skips": self._skips.state_dict(),
            "agenda": self.agenda.state_dict(), "parameters": self.player.identity(self.objective),
            "memory": self._memory.state_dict(room), "kept": {name: k for name, k in kept.items() if k is not None},
        }  # fmt: skip
        begun = {"oscillations": [w.state_dict() for w in self._oscillations]}
        begun["midpoint"] = [] if self._midpoint is None else [self._midpoint.state_dict()]
        return state | {name: watches for name, watches in begun.items() if room.takes(watches)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; warm starts of other parameters than those that train now are left out."""
        self.step, self._first_step, self._made = state["step"], state["first_step"], state["made"]
        self._skips.load_state_dict(state["skips"])
        self.agenda.load_state_dict(state["agenda"])
        if state["parameters"] != self.player.identity(self.objective):
            return
        self._memory.load_state_dict(state["memory"], self.objective)
        for probe in self.probes:
            if probe.name in state["kept"]:
                probe.load_state_dict(state["kept"][probe.name], self._memory, self.objective)
        measured, moved = list(self.objective.parameters.values()), self.player.moved
        self._oscillations = [OscillationWatch.from_state(w, measured) for w in state.get("oscillations", ())]
        for watch in state.get("midpoint", ()):
            if [p.shape for p in moved] == [value.shape for value in watch["values"]]:
                self._midpoint = MidpointWatch.from_state(watch, moved)

    # ------------------------------------------------------------------ the life of an update

    def opened(self, closure: bool = False) -> None:
        """An update is about to happen: keep what it will overwrite, if a measurement is due."""
        self._follow(self._made)
        self._made = False
        with self.guarded("schedule"):
            if self._may_measure():
                charged = map(self.agenda.key, self._chosen)
                try:
                    with self._ranks.together(), self._budget.spending(*charged), torch.no_grad():
                        self._settings = (self.player.rate(), self.player.threshold())
                        self._notice_changes()
                        self._copy = {p: p.detach().clone() for p in self.player.moved}
                        self._gradient = None if closure or self.player.steps_off else self._training_gradient()
                except Exception as error:
                    self._copy = None  # of several ranks another one may have none: none measures
                    if self.guarded.raises:
                        raise
                    self._late = self.agenda.taken(self._chosen, self.step)
                    for probe in self._chosen:
                        self._failed(probe, error)

    def closed(self) -> None:
        """The update is done: measure at the weights before it, and count it."""
        at, self._copy = self._copy, None
        try:
            if at is not None:
                self.measure(self._chosen, at=at)
        finally:
            self._gradient = None
            self._made = True
            self.step += 1
            self.stray.explained()

    def skipped(self) -> None:
        """The optimizer was called for an update, and did nothing because of infinite gradients."""
        self._skips.told()

    def discard(self) -> None:
        """The update did not come about (an exception in the loop)."""
        self._copy = self._midpoint = None

    def measure_due(self) -> None:
        """Without hooks: the weights are those before the next update; measure at them what is due."""
        self._follow(made=False)  # whether one was made, only its loop knows
        with self.guarded("schedule"):
            if self._may_measure():
                self.measure_live(self._chosen)

    def measure_live(self, probes: Sequence[Probe]) -> list[Record]:
        """Measure at the present weights."""
        self._settings = (self.player.rate(), self.player.threshold())
        self.stray.explained()
        return self.measure(probes, at=None) if probes else []

    def flush(self) -> None:
        """Report oscillations that were not followed to the end, and the count of skipped updates."""
        self.agenda.close()
        with self.guarded("oscillation"):
            self._report(self._oscillations)
            self._oscillations = []
        with self.guarded("scaler"):
            self._skips.look(self._made)
            self._count_skips(last=True)
        self._midpoint = None

    def _may_measure(self) -> bool:
        """Whether a measurement is due, or was postponed, and the budget allows it."""
        self._chosen = []  # should the schedule fail
        self._chosen = self.agenda.now(self.step)
        return bool(self._chosen)

    def cost(self) -> dict[str, Any]:
        """What was postponed, what a gradient takes, and why the kernels were chosen."""
        return self._expense.facts | self.agenda.counts

    def _accounts_of(self, wanted: Callable[[Probe], bool]) -> list[Key]:
        """Where to charge what several probes may have asked for."""
        return [self.agenda.key(probe) for probe in self.probes if wanted(probe)]

    # ------------------------------------------------------------------ measuring

    def measure(self, probes: Sequence[Probe], at: Mapping[nn.Parameter, Tensor] | None) -> list[Record]:
        """Measure one snapshot with these probes; every one of them leaves a record."""
        records: list[Record] = []
        finish(self.objective.space.device)
        keys, self._late = map(self.agenda.key, probes), self.agenda.taken(probes, self.step)
        with self._budget.spending(*keys, measured=True) as spent, self._progress() as on_product:
            remaining = list(probes)
            made: Update | None = None
            try:
                with self._ranks.together():
                    if at is None:
                        self._notice_changes()
                    else:
                        made = Update(self.objective, at)
                    snapshot = self._snapshot(probes, on_product, made)
                    with snapshot.objective.isolated(at):
                        self._ranks.share_buffers(snapshot.model)
                        if not self._facts_told:
                            self._facts_told = True
                            batch_size = self.player.batch_size if self._judges else None
                            self._tell(self.player.name, facts_of(snapshot.objective, batch_size))
                        for probe in probes:
                            records.append(self._one(probe, snapshot))
                            spent[self.agenda.key(probe)] = records[-1].seconds
                            remaining.remove(probe)
                    self._expense.note(snapshot)
                    self._compare_modes(snapshot.objective, at)
                    self._watch_oscillation(snapshot, at)
                    self._watch_midpoint(snapshot, at)
            except Exception as error:
                if self.guarded.raises:
                    raise
                records += [self._failed(probe, error) for probe in remaining]
                if not remaining:
                    self.guarded.warn("snapshot", error)
            finally:
                if made is not None:
                    made.forget()
                release()
        return records

    def _snapshot(self, probes: Sequence[Probe], on_product: Callable[[int], object], made: Update | None) -> Snapshot:
        needs = Needs()
        for probe in probes:
            needs |= probe.needs()
        rate, threshold = self._settings
        return Snapshot(
            self.step, self.objective.snapshot(self.step), lr=rate, threshold=threshold,
            batch_size=self.player.batch_size, needs=needs, memory=self._memory, seen=self._seen(probes),
            training_gradient=self._gradient, made=made, skipped_updates=self._count_skips(),
            kernel=self.player.kernel, seed=self._seed, on_product=on_product,
        )  # fmt: skip

    def _seen(self, probes: Sequence[Probe]) -> SeenCurvature | None:
        """What the optimizer's step saw, if a probe asks; hooks measure after it, so that this is the step's own."""
        if not any(probe.needs().seen for probe in probes):
            return None
        seen = self.player.seen(self.objective)
        if facts := self.player.seen_facts(self.objective, seen):
            self._tell(self.player.name, facts)
        return seen

    def _one(self, probe: Probe, snapshot: Snapshot) -> Record:
        """One probe's record, already emitted; a failed one too says what it cost."""
        started, before, peak = time.perf_counter(), snapshot.matvecs, Peak(self.objective.space.device)

        if self._ranks.size > 1 and not probe.data_parallel:
            return self._record(probe, snapshot, status="skipped", reason=NOT_IN_PARTS)

        def cost() -> dict[str, Any]:
            products = snapshot.matvecs - before
            return {"seconds": time.perf_counter() - started, "matvecs": products, "memory": peak.bytes()}

        try:
            with self._ranks.together():
                if probe.evaluates and not math.isfinite(snapshot.loss):
                    raise NonFiniteError(f"the loss is {snapshot.loss}")
                measured = probe.measure(snapshot)
        except NonFiniteError as error:
            values = {"loss": snapshot.loss} if probe.evaluates else {}
            return self._record(probe, snapshot, status="nonfinite", reason=str(error), values=values, **cost())
        except Exception as error:
            record = self._failed(probe, error, snapshot, **cost())
            if self.guarded.raises:
                raise
            return record
        return self._record(probe, snapshot, measured, **cost())

    def _failed(self, probe: Probe, error: Exception, snapshot: Snapshot | None = None, **cost: Any) -> Record:
        self.guarded.warn(probe.name, error)
        return self._record(probe, snapshot, status="error", reason=f"{type(error).__name__}: {error}", **cost)

    def _record(
        self, probe: Probe, snapshot: Snapshot | None, measured: Measurement | None = None, **fields: Any
    ) -> Record:
        if measured is not None:
            fields |= {
                "value": measured.value, "low": measured.low, "high": measured.high, "unit": measured.unit,
                "kernel": measured.kernel, "reason": measured.reason, "values": dict(measured.values),
            }  # fmt: skip
        step, rate = (self.step, self._settings[0]) if snapshot is None else (snapshot.step, snapshot.lr)
        name, due = probe.name, self._late.get(probe.name)
        record = Record(step=step, player=self.player.name, probe=name, lr=rate, time=time.time(), due=due, **fields)
        self._emit(record, {} if measured is None else measured.arrays)
        return record

    # ------------------------------------------------------------------ facts and evidence

    def _training_gradient(self) -> Tensor | None:
        """The gradient the update is about to use, (n,); None where a probe does not want it or there is none."""
        wanted = any(probe.needs().training_gradient for probe in self._chosen)
        parameters = list(self.objective.parameters.values())
        grads = [p.grad for p in parameters]
        if not wanted or all(g is None for g in grads) or any(g is not None and g.is_sparse for g in grads):
            return None
        dense = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
        scales = [float(s) for o in self.player.optimizers if (s := getattr(o, "grad_scale", None)) is not None]
        flat = self.objective.space.flatten(dense)
        return flat / scales[0] if scales else flat if len(dense) > 1 else flat.clone()  # fused ones unscale later

    def _notice_changes(self) -> None:
        """Layers that were frozen, unfrozen or handed to the optimizer since; weights that somebody else moves."""
        if (selection := self.player.signature()) != self._selection:
            self.objective = self.player.objective(self._seed, self._ranks)
            self._selection = selection
            self._memory, self._midpoint = Memory(), None
            self._outside = self._outside_versions()
            facts = self.player.facts(self.objective)
            self._tell(self.player.name, {name: facts[name] for name in ("parameters", "covers_optimizer")})
        if (outside := self._outside_versions()) != self._outside:
            self._outside = outside
            self._tell(self.player.name, {"coupled": True})
        if formula := self._settings[1].formula:  # none while the rate warms up from zero
            self._tell(self.player.name, {"threshold_formula": formula})

    def _outside_versions(self) -> list[tuple[int, int]]:
        """Versions of the parameters the objective depends on and this player's optimizers do not move."""
        own = {id(p) for p in self.player.moved}
        modules = [self.objective.model, *self.objective.also]
        unique = {id(p): p for module in modules for p in module.parameters() if id(p) not in own}
        return [(key, p._version) for key, p in unique.items()]

    def _compare_modes(self, objective: Objective, at: Mapping[nn.Parameter, Tensor] | None) -> None:
        """Whether training's own flags give another loss than the mode that is measured."""
        if self._modes_compared:
            return
        self._modes_compared = True
        matters = mode_matters(objective, at)
        self._tell(self.player.name, {"mode_matters": matters})
        if matters and self._judges and self._ranks.speaks:
            say(
                f"losscope: {self.player.name!r} is measured in mode={objective.mode!r}, in which the model computes "
                'something else than in training; stability verdicts need mode="train"'
            )

    def _count_skips(self, last: bool = False) -> int | None:
        """Updates skipped so far; told when there are more, and beside the number of those made at the end."""
        count = None
        with self.guarded("scaler"):
            count = self._skips.read()
        if count is not None and (last or count != self._skips_told):
            self._skips_told = count
            self._tell(self.player.name, {"skipped_updates": count, "updates": self.step - self._first_step})
        return count

    # ------------------------------------------------------------------ what the next updates show

    def _follow(self, made: bool) -> None:
        """The weights are those before the next update: what was begun at a measurement goes on."""
        if self.player.scaler is not None:
            with self.guarded("scaler"):
                self._skips.look(made)
        if self._oscillations:
            accounts = self._accounts_of(lambda probe: probe.name == "stability")
            with self.guarded("oscillation"), self._budget.spending(*accounts):
                self._follow_oscillations()
        if self._midpoint is not None:
            with self.guarded("midpoint"):
                self._follow_midpoint()

    def _watch_midpoint(self, snapshot: Snapshot, at: Mapping[nn.Parameter, Tensor] | None) -> None:
        if not snapshot.needs.midpoint or self._midpoint is not None or not math.isfinite(snapshot.loss):
            return
        origin = {p: p.detach().clone() for p in self.player.moved} if at is None else at
        self._midpoint = MidpointWatch(self.step, origin, snapshot.loss, snapshot.needs)

    def _follow_midpoint(self) -> None:
        watch, self._midpoint = self._midpoint, None  # what fails is not tried again
        if watch is None or self.player.signature() != self._selection:
            return
        with self._budget.spending(*self._accounts_of(lambda probe: probe.needs().midpoint)):
            if watch.follow(self.step) and not watch.done:
                watch.settings = self.player.rate(), self.player.threshold()
            if watch.done:
                self._measure_midpoint(watch)
            else:
                self._midpoint = watch

    def _measure_midpoint(self, watch: MidpointWatch) -> None:
        probe = Midpoint(watch)
        needs, (rate, threshold) = probe.needs(), watch.settings
        with self._ranks.together(), self._progress() as on_product:
            snapshot = Snapshot(
                watch.step + 1, self.objective.snapshot(watch.step), lr=rate, threshold=threshold, needs=needs,
                memory=self._memory.beside(), seen=self.player.seen(self.objective) if needs.seen else None,
                kernel=self.player.kernel, seed=self._seed, on_product=on_product,
            )  # fmt: skip
            with snapshot.objective.isolated(watch.values):
                self._ranks.share_buffers(snapshot.model)
                self._one(probe, snapshot)

    def _watch_oscillation(self, snapshot: Snapshot, at: Mapping[nn.Parameter, Tensor] | None) -> None:
        if not self._judges or (direction := snapshot.direction()) is None:
            return
        with torch.no_grad():
            parameters = snapshot.objective.parameters.values()
            origin = {p: at[p] if at is not None and p in at else p.detach().clone() for p in parameters}
        self._oscillations.append(OscillationWatch(self.step, direction, origin))

    def _follow_oscillations(self) -> None:
        for watch in self._oscillations:
            watch.follow()
        self._report([w for w in self._oscillations if w.done])
        self._oscillations = [w for w in self._oscillations if not w.done]

    def _report(self, watches: Sequence[OscillationWatch]) -> None:
        for watch in watches:
            found = watch.result()
            if (flips := found["flips"]) is not None and (pairs := found["pairs"]):
                record = Record(
                    watch.step, self.player.name, "oscillation", value=flips / pairs, unit="share", values=found,
                    time=time.time(),
                )  # fmt: skip
                self._emit(record, {})

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Callable[[int], object]]:
        """A bar for measurements that take long."""
        with bar(f"losscope: step {self.step}", " products", silent=not self._ranks.speaks) as shown:
            yield shown.update
