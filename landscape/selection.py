"""Which parameters of a model are the variables."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import ParameterError, SettingError

__all__ = ["checked_modules", "select_parameters", "selector"]


def select_parameters(model: nn.Module, params: Any = None) -> dict[str, nn.Parameter]:
    """The chosen parameters that require gradients, by name; a tied one appears once.

    Raises:
        SettingError: if ``params`` is not a selection.
        ParameterError: if nothing is selected, or the selection cannot be measured.
    """
    named = dict(model.named_parameters())
    if params is None:
        chosen = {n: p for n, p in named.items() if p.requires_grad}
    else:
        accepts = selector(params)
        accepted = {id(p) for n, p in model.named_parameters(remove_duplicate=False) if accepts(n, p)}
        chosen = {n: p for n, p in named.items() if id(p) in accepted}
        unfit = [n for n, p in chosen.items() if not (p.is_floating_point() or p.is_complex())]
        if unfit:
            raise ParameterError(f"parameters must be floating-point, {unfit[0]} is {chosen[unfit[0]].dtype}")
        chosen = {n: p for n, p in chosen.items() if p.requires_grad}
    if not chosen:
        given = type(params).__name__ if isinstance(params, Tensor | nn.Module) else repr(params)
        what = "" if params is None else f" and matches params={given}"
        names = ", ".join([*list(named)[:4], *(["..."] if len(named) > 4 else [])])
        raise ParameterError(f"no parameter that requires gradients{what}; the model has {len(named)}: {names}")
    for name, p in chosen.items():
        if is_lazy(p):
            raise ParameterError(f"parameter {name} is not initialised yet; run one forward pass first")
    devices = {str(p.device) for p in chosen.values()}
    if len(devices) > 1:
        raise ParameterError(
            f"the selected parameters are on several devices ({', '.join(sorted(devices))}); select those of one "
            "device with params=, or move the model"
        )
    return chosen


def selector(params: Any) -> Callable[[str, nn.Parameter], bool]:
    """What decides whether a parameter is selected.

    Raises:
        SettingError: if ``params`` is not a selection.
    """
    if isinstance(params, str):
        return lambda name, _: fnmatch.fnmatchcase(name, params)
    if isinstance(params, nn.Module):
        inside = {id(p) for p in params.parameters()}
        return lambda _, p: id(p) in inside
    if isinstance(params, nn.Parameter):
        return lambda _, p: p is params
    if callable(params):
        return lambda name, p: bool(params(name, p))
    if isinstance(params, Iterable) and not isinstance(params, Tensor):
        selectors = [selector(item) for item in params]
        return lambda name, p: any(accepts(name, p) for accepts in selectors)
    raise SettingError(
        "params must be a name pattern, a module, a parameter, a predicate (name, parameter) -> bool, or a list of "
        f"these; got {type(params).__name__}"
    )


def checked_modules(also: Any) -> list[nn.Module]:
    """Modules that are given one by one or in a list.

    Raises:
        SettingError: if something else is among them.
    """
    modules = [also] if isinstance(also, nn.Module) or not isinstance(also, Iterable) else list(also)
    for module in modules:
        if not isinstance(module, nn.Module):
            raise SettingError(f"also= takes modules, got {type(module).__name__}")
    return modules
