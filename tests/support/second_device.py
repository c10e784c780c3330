"""The device ``second``, which is the host's memory and refuses what a GPU refuses: see `second_device.cpp`.

Importing it compiles that, in some twenty seconds, and is for a process of its own: torch takes it for the machine's
accelerator from then on.
"""

import types
from pathlib import Path
from typing import Any

import torch
from torch.utils.cpp_extension import load

_SOURCE = Path(__file__).with_suffix(".cpp")


def begin(build: Path) -> Any:
    """Make the device known; gives what counts its copies."""
    extension = load("second_device", [str(_SOURCE)], build_directory=str(build), extra_cflags=["-O0", "-w"])
    torch.utils.rename_privateuse1_backend("second")
    torch._register_device_module("second", _module(extension))
    torch.utils.generate_methods_for_privateuse1_backend()
    return extension


def _module(extension: Any) -> types.ModuleType:
    """What ``torch.second`` has, of what ``torch.cuda`` has."""
    module, generator = types.ModuleType("torch.second"), extension.default_generator()
    module.__dict__.update(
        is_available=lambda: True,
        is_initialized=lambda: True,
        _lazy_init=lambda: None,
        _is_in_bad_fork=lambda: False,
        device_count=lambda: 1,
        current_device=lambda: 0,
        synchronize=lambda device=None: None,
        manual_seed=generator.manual_seed,
        manual_seed_all=generator.manual_seed,
        get_rng_state=lambda device=None: generator.get_state(),
        set_rng_state=lambda state, device=None: generator.set_state(state),
        get_amp_supported_dtype=lambda: [torch.bfloat16],
    )
    return module
