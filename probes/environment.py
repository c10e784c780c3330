"""Versions, machine and repository state: what one wants to know of a run a year later."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from typing import Any

import torch

__all__ = ["describe_environment"]


def describe_environment() -> dict[str, Any]:
    """Versions, platform and the git state of the working directory, for ``meta.json``."""
    return {
        "versions": {
            "losscope": _version("losscope"),
            "torch": torch.__version__,
            "numpy": _version("numpy"),
            "python": platform.python_version(),
        },
        "platform": {"system": platform.platform(), "accelerator": _accelerator()},
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _accelerator() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
