"""What torch.compile and data-parallel wrappers put before every name of a model."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["wrapper_prefix"]

_WRAPPERS = ("_orig_mod.", "module.")


def wrapper_prefix(names: Collection[str]) -> str:
    """What stands before all of these names of tensors; nothing where only some have it, as a child called module.

    Example:
        >>> from losscope.landscape.wrappers import wrapper_prefix
        >>> wrapper_prefix(["module._orig_mod.0.weight", "module._orig_mod.0.bias"])
        'module._orig_mod.'
        >>> wrapper_prefix(["module.weight", "head.weight"])
        ''
    """
    found = ""
    while names and (more := [w for w in _WRAPPERS if all(name.startswith(found + w) for name in names)]):
        found += more[0]
    return found
