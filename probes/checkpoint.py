"""What a checkpoint of a training holds of its watching: where it stands, and what the next measurements start from.

Plain numbers, words, lists, dicts and tensors, which ``torch.load(..., weights_only=True)`` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from losscope.landscape import RunError, SettingError

if TYPE_CHECKING:
    from .budget import Budget
    from .follower import Follower
    from .verdicts import Verdicts

__all__ = ["Room", "is_plain", "packed", "stored", "unpack"]

VERSION = 1
"""Of the layout of a state; another one is refused."""

KIND = "losscope watch"

MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


class Room:
    """Bytes that warm starts may still take.

    Args:
        most: in all; None is no bound.
    """

    def __init__(self, most: int | None) -> None:
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
            raise SettingError(f"max_bytes must be a whole number of bytes, or None for no bound; got {most!r}")
        self._left = most

    def takes(self, content: Any) -> bool:
        """Whether all tensors in there fit, which is then counted."""
        size = _bytes(content)
        if self._left is None or size <= self._left:
            self._left = None if self._left is None else self._left - size
            return True
        return False


def stored(tensor: MaybeTensor) -> MaybeTensor:
    """A tensor as it is to be stored: without what its storage holds besides, which ``torch.save`` would write too."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    own = tensor.untyped_storage().nbytes() <= tensor.numel() * tensor.element_size()
    return tensor if own else tensor.clone()


def is_plain(content: Any) -> bool:
    """Whether this can be part of a state as it is."""
    if isinstance(content, Mapping):
        return type(content) is dict and all(is_plain(item) for pair in content.items() for item in pair)
    if isinstance(content, list | tuple):
        return type(content) in (list, tuple) and all(map(is_plain, content))
    return content is None or type(content) in (Tensor, int, float, bool, str)


def packed(
    meta: Mapping[str, Any], room: Room, followers: Mapping[str, Follower], budget: Budget, verdicts: Verdicts | None
) -> dict[str, Any]:
    """The state of a watch; see `losscope.probes.Watch.state_dict`."""
    return {
        "kind": KIND, "version": VERSION, "identity": meta["identity"], "probes": meta["probes"],
        "players": {name: follower.state_dict(room) for name, follower in followers.items()},
        "budget": budget.state_dict(), "verdicts": None if verdicts is None else verdicts.state_dict(),
    }  # fmt: skip


def unpack(
    state: Any, meta: Mapping[str, Any], followers: Mapping[str, Follower], budget: Budget, verdicts: Verdicts | None
) -> None:
    """Take up a state that `packed` gave.

    Raises:
        SettingError: if it is not the state of a watch.
        RunError: if it is of another version, other models or other probes.
    """
    if not isinstance(state, Mapping) or state.get("kind") != KIND:
        found = f"a dict of {', '.join(map(str, list(state)[:4]))}" if isinstance(state, Mapping) else repr(type(state))
        raise SettingError(f"load_state_dict takes what run.state_dict() gave; got {found}")
    if state.get("version") != VERSION:
        raise RunError(
            f"the state is of version {state.get('version')}, and this losscope reads version {VERSION}: go on "
            "without it, with watch(..., first_step=...)"
        )
    _check_same(state["identity"], meta["identity"])
    if sorted(state["probes"]) != sorted(meta["probes"]):
        there, here = (", ".join(content["probes"]) for content in (state, meta))
        raise RunError(f"the state is of probes {there}; this watch has {here}: pass the same ones")
    for name, follower in followers.items():
        follower.load_state_dict(state["players"][name])
    budget.load_state_dict(state["budget"])
    if verdicts is not None and state["verdicts"] is not None:
        verdicts.load_state_dict(state["verdicts"])


def _check_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Whether the players are the same, by what makes a run the same run."""
    if there.keys() != here.keys():
        raise RunError(f"the state is of players {', '.join(there)}; this watch has {', '.join(here)}")
    for name, own in here.items():
        differing = [f"{key} {there[name].get(key)}, not {own[key]}" for key in own if there[name].get(key) != own[key]]
        if differing:
            raise RunError(f"the state is of another {name!r}: {'; '.join(differing)}")


def _bytes(content: Any) -> int:
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(_bytes, content.values()))
    return sum(map(_bytes, content)) if isinstance(content, list | tuple) else 0
