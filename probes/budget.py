"""A bound on the share of wall-clock time that watching may take, and the account of what it took."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from losscope.landscape import SettingError
from losscope.landscape.distributed import ALONE, Alone

__all__ = ["Account", "Budget", "Key"]

Key = tuple[str, str]
"""A player's name and a probe's."""

_LATER = 0.1
"""Of the first measurement, what the second one is taken to need: graphs, trials and cold starts are over."""

_WHILE_IN_DEBT = 0.75
"""Of the share, what may be spent while what the beginning took is still being paid off, with the rest."""


@dataclass
class Account:
    """What one probe of one player took.

    Attributes:
        seconds: in all, with its part of what measurements take besides (copies, isolation, writing).
        first: of these, its first measurement: graphs, the trial of kernels, compilation, cold starts. That says little
            of what the next one will take.
        made: how many measurements.
        before: of the seconds, those that were spent before the parts were last dealt out.
    """

    seconds: float = 0.0
    first: float = 0.0
    made: int = 0
    before: float = 0.0

    @property
    def recent(self) -> float:
        """Seconds since the parts were dealt out."""
        return self.seconds - self.before

    @property
    def expected(self) -> float:
        """Seconds that the next measurement will take: the mean of those after the first, or a guess."""
        return (self.seconds - self.first) / (self.made - 1) if self.made > 1 else self.first * _LATER

    def charge(self, seconds: float, *, measured: bool) -> None:
        """Count seconds, and a measurement."""
        self.seconds += seconds
        self.made += measured
        if self.made <= 1:
            self.first += seconds


class Budget:
    """Counts the time spent on measuring, and says what may be measured now.

    At any time the share is that of the whole time so far, so that a schedule which is sparse at first may be denser
    later. Every probe has an equal part of it for itself, and what others leave: a costly one cannot starve a cheap
    one. The first measurement of a probe is always made, and as it takes unusually long it is paid off slowly: three
    quarters of the share go on meanwhile. A schedule that needs less than these is not stretched by it, unless the
    first takes more than ten times as long as the others; then the second may wait.

    Args:
        share: at most this share of the wall-clock time; None is no bound.

    Attributes:
        spent: seconds of measuring.
        accounts: by player and probe.
        told: whether it has been said that schedules are stretched, or another rank says it.

    Raises:
        SettingError: if ``share`` is not in (0, 1].
    """

    def __init__(self, share: float | None) -> None:
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
            raise SettingError(f"budget is a share of the wall-clock time in (0, 1], e.g. 0.05; got {share!r}")
        self.share = share
        self.spent = 0.0
        self.accounts: dict[Key, Account] = {}
        self.told = False
        self.ranks: Alone = ALONE
        self._dealt = 0.0
        self._started = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._started

    def share_among(self, ranks: Alone) -> None:
        """Let rank 0 decide, by its clock, and speak for all."""
        self.ranks, self.told = ranks, self.told or not ranks.first

    def start(self) -> None:
        """The loop begins now: what came before is not its time, unless a checkpoint was loaded."""
        if not self.spent:
            self._started = time.perf_counter()

    def allowed(self, due: Sequence[Key]) -> list[Key]:
        """Those of the due that may be measured now.

        This is the only decision that depends on a clock: of several ranks the first one decides.
        """
        return list(due) if self.share is None else self.ranks.decide(lambda: self._affordable(due, self.share or 1.0))

    def _affordable(self, due: Sequence[Key], share: float) -> list[Key]:
        total = self.total
        self._deal(due, total)
        part = share / len(self.accounts) * (total - self._dealt)
        may = [key for key in due if self._has_own(key, part)]
        asked = sum(self.accounts[key].expected for key in may)
        first = sum(account.first for account in self.accounts.values())
        for key in sorted(set(due) - set(may), key=lambda key: self.accounts[key].recent):
            asked += self.accounts[key].expected
            if not _can_pay(asked, self.spent, first, share * total):
                break  # what others leave is put aside for the one that has had least
            may.append(key)
        return [key for key in due if key in may]

    def _has_own(self, key: Key, part: float) -> bool:
        """Whether it is the first, or its own part can pay it."""
        own = self.accounts[key]
        return not own.made or _can_pay(own.expected, own.recent, max(own.first - own.before, 0.0), part)

    def _deal(self, due: Sequence[Key], total: float) -> None:
        """With a probe that is due for the first time, equal parts are dealt out anew, from now on."""
        if new := [key for key in due if key not in self.accounts]:
            self._dealt = total
            for account in self.accounts.values():
                account.before = account.seconds
            self.accounts |= {key: Account() for key in new}

    def spending(self, *keys: Key, measured: bool = False) -> contextlib.AbstractContextManager[dict[Key, float]]:
        """Count the time spent inside, for these probes.

        Returns:
            A context that gives where to note the seconds of each; what is not noted they share evenly.
        """
        return _Spending(self, keys, measured)

    def charge(self, seconds: float, keys: Sequence[Key], noted: Mapping[Key, float], *, measured: bool) -> None:
        """Count seconds that were spent for some probes, of which those noted are of one alone."""
        self.spent += seconds
        shared = max(seconds - sum(noted.values()), 0.0) / max(len(keys), 1)
        for key in keys:
            if (account := self.accounts.get(key)) is None:
                account = self.accounts[key] = Account()
            account.charge(noted.get(key, 0.0) + shared, measured=measured)

    def state_dict(self) -> dict[str, Any]:
        """Seconds spent and seconds in all, for a checkpoint."""
        accounts = [[*key, *dataclasses.astuple(account)] for key, account in self.accounts.items()]
        return {"spent": self.spent, "total": self.total, "dealt": self._dealt, "accounts": accounts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from a checkpoint: the time in between is nobody's."""
        self.spent = float(state["spent"])
        self._started = time.perf_counter() - float(state["total"])
        self._dealt = float(state.get("dealt", 0.0))
        self.accounts = {(player, probe): Account(*own) for player, probe, *own in state.get("accounts", ())}


class _Spending:
    """A context that charges a budget with the time in it; no generator, as it is entered at many updates."""

    __slots__ = ("_budget", "_keys", "_measured", "_noted", "_started")

    def __init__(self, budget: Budget, keys: Sequence[Key], measured: bool) -> None:
        self._budget, self._keys, self._measured = budget, keys, measured

    def __enter__(self) -> dict[Key, float]:
        self._noted: dict[Key, float] = {}
        self._started = time.perf_counter()
        return self._noted

    def __exit__(self, *raised: object) -> None:
        seconds = time.perf_counter() - self._started
        self._budget.charge(seconds, self._keys, self._noted, measured=self._measured)


def _can_pay(price: float, spent: float, first: float, allowance: float) -> bool:
    """Whether the allowance covers all that was spent, or its greater part what was spent since the beginning."""
    return price + spent <= allowance or price + spent - first <= _WHILE_IN_DEBT * allowance
