"""A data-parallel training that is watched: who measures together, and that all were asked for the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from losscope.landscape import RankError, Ranks, SettingError
from losscope.landscape.distributed import ALONE, Alone, data_parallel_part

from .player import Player
from .probe import Probe

__all__ = ["NOT_IN_PARTS", "check_same", "described", "joined"]

NOT_IN_PARTS = "it takes the data apart, and every rank holds a part; measure it on one rank: model.module and all data"
"""Why a probe is skipped where ranks measure together."""


def joined(players: Sequence[Player], data_parallel: Any) -> tuple[list[Player], Alone]:
    """The players with their modules taken out of `DistributedDataParallel`, and the ranks that measure together.

    Args:
        players: as they were given.
        data_parallel: ``"auto"``: together where a module is wrapped, each rank for itself where none is. True:
            together in any case, for loops that add up gradients by themselves. False: each for itself. Or `Ranks`.

    Raises:
        SettingError: if ``data_parallel`` means nothing, or modules are trained by different ranks.
        RankError: if not all ranks come together.
    """
    if not isinstance(data_parallel, bool | Alone) and data_parallel != "auto":
        raise SettingError(f'data_parallel must be "auto", True, False or Ranks, got {data_parallel!r}')
    parts = [data_parallel_part(player.model) for player in players]
    groups = [group for _, group in parts if group is not None]
    inner = [dataclasses.replace(player, model=part) for player, (part, _) in zip(players, parts, strict=True)]
    if isinstance(data_parallel, Alone):
        return inner, data_parallel
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    if data_parallel is True and not started:
        raise SettingError("data_parallel=True, and torch.distributed is not initialised: start the loop with torchrun")
    if data_parallel is False or not started or (data_parallel == "auto" and not groups):
        return inner, ALONE
    members = {tuple(torch.distributed.get_process_group_ranks(group)) for group in groups}
    if len(members) > 1:
        raise SettingError(f"the players are trained by different ranks: {sorted(members)}; watch them one by one")
    alone = len(next(iter(members))) == 1 if members else torch.distributed.get_world_size() == 1
    return inner, ALONE if alone else Ranks(groups[0] if groups else None)


def described(players: Sequence[Player], probes: Sequence[Probe], **options: Any) -> dict[str, Any]:
    """What all ranks must have been asked for, in plain words and numbers."""
    found = {name: _plain(value) for name, value in options.items()}
    found["probes"] = ", ".join(f"{probe.name}({_settings(probe)})" for probe in probes)
    for player in players:
        fields = ("batch_size", "kernel", "mode", "params")
        asked = {name: _plain(getattr(player, name)) for name in fields}
        found[f"options of {player.name!r}"] = asked | {"optimizers": [type(o).__name__ for o in player.optimizers]}
        found[f"parameters of {player.name!r}"] = [(n, tuple(p.shape)) for n, p in player.model.named_parameters()]
        found[f"weights of {player.name!r}"] = math.sqrt(
            sum(float(p.detach().double().square().sum()) for p in player.moved)
        )
    return found


def check_same(ranks: Alone, own: Mapping[str, Any]) -> None:
    """Refuse, on all ranks, what was not asked for alike.

    Raises:
        SettingError: naming the first difference.
        RankError: if their weights differ.
    """
    everyones = ranks.gather(lambda: dict(own))
    for rank, other in enumerate(everyones):
        for name in {**everyones[0], **other}:
            first, second = everyones[0].get(name), other.get(name)
            if isinstance(first, float) and isinstance(second, float):
                if not math.isclose(first, second, rel_tol=1e-6) and not math.isnan(first) and not math.isnan(second):
                    raise RankError(f"{name} differ: they have norm {first:.9g} on rank 0, {second:.9g} on rank {rank}")
            elif first != second:
                raise SettingError(
                    f"every rank must watch alike; {name}: {first!r} on rank 0, {second!r} on rank {rank}"
                )


def _settings(probe: Probe) -> str:
    kept = {name: _plain(value) for name, value in vars(probe).items() if not name.startswith("_")}
    return ", ".join(f"{name}={value!r}" for name, value in kept.items())


def _plain(value: Any) -> Any:
    """A value that can be sent and compared; a function or module by its name."""
    if value is None or isinstance(value, bool | int | float | str):
        return str(value) if isinstance(value, float) else value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [_plain(v) for v in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    return getattr(value, "__qualname__", type(value).__name__)
