"""Several processes in one torch.distributed group on this machine, and the small problems they share."""

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 53


def on_ranks(function: Callable[..., Any], size: int, *args: Any, lost: int = 0, timeout: float = 90.0) -> list[Any]:
    """What ``function(rank, *args)`` returns in each of ``size`` processes; None where it was killed, as ``lost`` are.

    The processes are forked from one that has imported torch, and meet in a file: tests side by side need no ports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "losscope.probes"])
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(theirs, str(Path(folder, "meet")), rank, size, function, args))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            ends = time.monotonic() + timeout
            found = [_received(pipe, ends) for pipe in pipes]
        finally:
            for process in processes:
                process.join(5)
                process.kill()
    failures = [f"rank {rank}: {what[1]}" for rank, what in enumerate(found) if what is not None and what[0]]
    assert not failures, "\n".join(failures)
    assert found.count(None) == lost, f"{found.count(None)} of {size} processes gave no answer in {timeout} s"
    return [None if what is None else what[1] for what in found]


def _received(pipe: Connection, ends: float) -> tuple[bool, Any] | None:
    try:
        return pipe.recv() if pipe.poll(max(ends - time.monotonic(), 0.0)) else None
    except EOFError:
        return None


def _run(pipe: Connection, meet: str, rank: int, size: int, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=size)
    try:
        pipe.send((False, function(rank, *args)))
    except Exception:
        pipe.send((True, traceback.format_exc()))


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A net of 99 parameters, the same on all ranks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)


def samples(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """All the data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 6, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(3, (SAMPLES,), generator=generator)


def shard(rank: int, size: int, dtype: torch.dtype = torch.float64, length: int = 5) -> list[tuple[Tensor, Tensor]]:
    """The batches of one rank: parts of different sizes, with an uneven last batch each."""
    cuts = (torch.linspace(0, 1, size + 1) ** 1.5 * SAMPLES).long().tolist()
    x, y = samples(dtype)
    own = slice(cuts[rank], cuts[rank + 1])
    return list(zip(x[own].split(length), y[own].split(length), strict=True))
