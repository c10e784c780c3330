"""The players of one run: one for a model that is trained alone, several for a game."""

from __future__ import annotations

from typing import Any

from losscope.landscape import SettingError

from .player import Player
from .steps import is_watched

__all__ = ["check_hookable", "check_unwatched", "checked_players", "is_coupled"]


def checked_players(given: Any) -> list[Player]:
    """Players with distinct names.

    Raises:
        SettingError: if they are none, or two have the same name.
    """
    players = list(given) if isinstance(given, list | tuple) else [given]
    if not players or not all(isinstance(p, Player) for p in players):
        found = ", ".join(type(p).__name__ for p in players) or "an empty list"
        raise SettingError(
            "the first argument must be a torch.nn.Module or a list of Player(name, model, optimizer, data); got "
            f"{found}"
        )
    names = [p.name for p in players]
    if len(set(names)) < len(names):
        raise SettingError(f"players must have distinct names, got {', '.join(names)}")
    return players


def is_coupled(player: Player, objective: Any, players: list[Player]) -> bool:
    """Whether another player's optimizer moves parameters this objective depends on."""
    modules = [objective.model, *objective.also]
    reached = {id(p) for module in modules for p in module.parameters()}
    return any(id(p) in reached for other in players if other is not player for p in other.moved)


def check_hookable(players: list[Player]) -> None:
    """Refuse optimizers that hooks cannot follow.

    Raises:
        SettingError: if there is one.
    """
    for player in players:
        for optimizer in player.optimizers:
            if not hasattr(optimizer, "register_step_post_hook"):
                raise SettingError(
                    f'{type(optimizer).__name__} takes no step hooks; pass drive="manual" and call run.step() after '
                    "each update"
                )


def check_unwatched(players: list[Player]) -> None:
    """Refuse optimizers that another watch follows at the moment.

    Raises:
        SettingError: if there is one.
    """
    for player in players:
        for optimizer in player.optimizers:
            if is_watched(optimizer):
                raise SettingError(
                    f"another watch is following the {type(optimizer).__name__} of {player.name!r} already: give one "
                    "watch all probes (each may have its own every=), or several players with this optimizer, one for "
                    "each set of data"
                )
