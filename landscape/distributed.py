"""Processes that hold the same weights and a part of the data each, and measure one objective together.

Every sum over the data is a sum over ranks of what each has found on its part (`Ranks.total`); what follows from
it, the vectors of a Krylov method included, is the same on all ranks, so that nothing else has to know of them.
What a rank decides by a clock or by its own data is agreed upon (`Ranks.gather`).

Before anything is exchanged the ranks tell each other what they are about to do, in a few bytes. One that has failed
tells so at that point, and all of them fail there, none waits for it; ranks that have come to do different things find
that out, instead of adding up what does not belong together.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from . import errors
from .errors import LosscopeError, RankError, SettingError

__all__ = ["ALONE", "Alone", "Ranks", "Whole", "data_parallel_part"]

T = TypeVar("T")

_TOTAL, _GATHER, _SHARE, _END = 1, 2, 3, 1000  # the outer end of two is the higher one
_NOTHING = 1 << 60


class Whole(NamedTuple):
    """What all ranks hold together.

    Attributes:
        weight: the sum of the batches' denominators.
        batches: how many.
        before: how many of them are those of earlier ranks.
        samples: how many; None where a batch does not show it.
    """

    weight: float
    batches: int
    before: int
    samples: int | None


class Alone:
    """One process with all the data: what `Ranks` does, where there is nobody to do it with.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
    """

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes for all."""
        return self.rank == 0

    @property
    def speaks(self) -> bool:
        """Whether this rank warns: rank 0 for all, and any that has lost contact."""
        return self.first

    def total(self, compute: Callable[[], Tensor]) -> Tensor:
        """The sum over ranks of what each computes, the same bits on all."""
        return compute()

    def gather(self, compute: Callable[[], T]) -> list[T]:
        """What each rank computes, in order; for small things that can be pickled."""
        return [compute()]

    def decide(self, compute: Callable[[], T]) -> T:
        """What rank 0 computes, for what depends on a clock."""
        return compute()

    def together(self) -> contextlib.AbstractContextManager[None]:
        """What fails in here on one rank fails on all, as this ends."""
        return contextlib.nullcontext()

    def share_buffers(self, module: nn.Module) -> None:
        """Overwrite the buffers with those of rank 0; inside an isolation, which puts them back."""

    def refuse_parts(self, what: str) -> None:
        """Refuse what is computed from the data outside of a sum over ranks, where this rank has a part of it."""

    def close(self) -> None:
        """Leave the group; what is asked of it afterwards fails."""


ALONE = Alone()


class Ranks(Alone):
    """The processes of a data-parallel training, as `torch.distributed` knows them.

    It makes a process group of its own, so that nothing here meddles with the training's collectives: creating it is
    a collective, to be done by all these ranks at the same point. On CPUs it is gloo; where CUDA is in use, what lies
    on a GPU is summed by NCCL, after the ranks have agreed on it over gloo. A rank that dies ends the others' calls
    with a `RankError`: gloo notices a connection that closes; one that hangs is waited for as long as ``timeout``.

    Args:
        group: the ranks; None for all of them. A new group is made of the same ranks.
        timeout: seconds to wait for a rank that does not come, which includes what it has still to compute.

    Raises:
        SettingError: if `torch.distributed` is not initialised, or the timeout is not positive.
        RankError: if not all ranks come to make the group.

    Example:
        >>> import tempfile, torch.distributed as dist
        >>> from losscope.landscape import Hessian, Objective, Ranks, top_eigenpairs
        >>> store = dist.FileStore(tempfile.mktemp(), 1)
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)  # torchrun starts several
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> shard = (torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.zeros(3, 1))  # of this rank
        >>> ranks = Ranks()
        >>> objective = Objective(model, shard, criterion=torch.nn.MSELoss(reduction="sum"), ranks=ranks)
        >>> top_eigenpairs(Hessian(objective), seed=0).values  # of all shards
        tensor([18.], dtype=torch.float64)
        >>> ranks.close()
        >>> dist.destroy_process_group()
    """

    def __init__(self, group: Any = None, *, timeout: float = 600.0) -> None:
        dist = torch.distributed
        if not dist.is_available() or not dist.is_initialized():
            raise SettingError("torch.distributed is not initialised: call init_process_group first (torchrun)")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise SettingError(f"timeout is a number of seconds above 0, got {timeout!r}")
        members = dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)
        if dist.get_rank() not in members:
            raise SettingError(f"rank {dist.get_rank()} is not in the group of ranks {members}")
        self.timeout = float(timeout)
        self.rank, self.size = members.index(dist.get_rank()), len(members)
        self._lost = ""
        self._depth, self._computing = 0, False
        on_gpus = "nccl" in str(dist.get_backend(group)) and torch.cuda.is_available()
        try:
            # A part of the world makes it without the others. Torch then names groups by their members: a name that a
            # destroyed group has had would find the old addresses, so that such a group is kept.
            self._of_part = len(members) < dist.get_world_size()
            self._group: Any = dist.new_group(
                members, timeout=datetime.timedelta(seconds=self.timeout),
                backend="cpu:gloo,cuda:nccl" if on_gpus else "gloo", use_local_synchronization=self._of_part,
            )  # fmt: skip
        except RuntimeError as error:
            raise RankError(
                f"not all of the {self.size} ranks came together ({errors.first_line(error)}); every rank must get "
                "here. To measure on one of them alone, pass the model that is not wrapped (model.module)"
            ) from error

    def __repr__(self) -> str:
        """Which of how many."""
        return f"Ranks({self.rank} of {self.size})"

    @property
    def speaks(self) -> bool:
        """Whether this rank warns: rank 0 for all, and any that has lost contact."""
        return self.first or bool(self._lost)

    # ------------------------------------------------------------------ what is asked of them

    def total(self, compute: Callable[[], Tensor]) -> Tensor:
        """The sum over ranks of what each computes, the same bits on all.

        Raises:
            RankError: if a rank failed or is gone, or the ranks have come to do different things. Where it failed
                with an error of losscope's or for want of memory, all fail with that kind.
        """
        part = self._own(_TOTAL, compute)
        self._check_same(_TOTAL, part.numel())
        # Of a block of vectors the memory's order: gloo takes contiguous tensors only.
        flat = part.detach() if part.is_contiguous() else part.detach().T.contiguous()
        self._collective(lambda: torch.distributed.all_reduce(flat, group=self._group))
        return flat if part.is_contiguous() else flat.T

    def gather(self, compute: Callable[[], T]) -> list[T]:
        """What each rank computes, in order.

        Raises:
            RankError: as `total`.
        """
        value = self._own(_GATHER, compute)
        self._check_same(_GATHER, 0)
        return self._everyones(value)

    def decide(self, compute: Callable[[], T]) -> T:
        """What rank 0 computes.

        Raises:
            RankError: as `total`.
        """
        return self.gather(lambda: compute() if self.first else None)[0]  # type: ignore[return-value]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails in here on one rank fails on all, as this ends: at the latest, since most fails in an exchange.

        Raises:
            RankError: as `total`.
        """
        failure: Exception | None = None
        self._depth += 1
        try:
            yield
        except Exception as error:
            failure = error
        finally:
            self._depth -= 1
        if failure is not None and self._lost:
            raise failure  # there is nobody to tell
        end = _END - self._depth
        # Others may still be about to exchange something: they learn that nobody else is, and come here too.
        while True:
            same, highest = self._meet(end, 0)
            if same:
                break
            if highest > end:
                raise RankError("another rank has failed outside of this") from failure
        self._raise_from(self._everyones(None if failure is None else _described(failure)), failure)

    def share_buffers(self, module: nn.Module) -> None:
        """Overwrite the buffers with those of rank 0, as data-parallel training does before a forward pass."""
        buffers = [b for b in module.buffers() if b.numel()]
        self._check_same(_SHARE, len(buffers))
        first = torch.distributed.get_global_rank(self._group, 0)
        for buffer in buffers:
            self._collective(lambda b=buffer: torch.distributed.broadcast(b, first, group=self._group))  # type: ignore[misc]

    def refuse_parts(self, what: str) -> None:
        """Refuse what is computed from the data outside of a sum over ranks, where this rank has a part of it.

        Raises:
            SettingError: where there are several ranks.
        """
        if self.size > 1 and not self._computing:
            raise SettingError(
                f"{what} needs more than sums over the data, which lies on {self.size} ranks; measure it on one rank, "
                "with all data, a module that is not wrapped, and no ranks"
            )

    def close(self) -> None:
        """Leave the group; what is asked of it afterwards fails."""
        kept = self._of_part and not self._lost
        self._lost = self._lost or "the group has been closed"
        group, self._group = self._group, None
        if group is not None and not kept:
            with contextlib.suppress(Exception):  # the training may have ended torch.distributed itself
                torch.distributed.destroy_process_group(group)

    # ------------------------------------------------------------------ how they agree

    def _own(self, kind: int, compute: Callable[[], T]) -> T:
        """This rank's part; where it fails, the others are told."""
        outer, self._computing = self._computing, True
        try:
            return compute()
        except Exception as error:
            self._computing = outer
            if not self._lost:
                with contextlib.suppress(RankError):
                    if self._meet(kind, 0, failed=True)[0]:
                        self._everyones(_described(error))
            raise
        finally:
            self._computing = outer

    def _check_same(self, kind: int, size: int) -> None:
        """All ranks are about to do the same; else none does.

        Raises:
            RankError: if one has failed, or does something else.
        """
        if not self._meet(kind, size)[0]:
            raise RankError("the ranks came to do different things, or one of them failed: this is given up on all")

    def _meet(self, kind: int, size: int, failed: bool = False) -> tuple[bool, int]:
        """Tell each other what comes next: whether it is the same, and the highest kind that somebody named."""
        mine = torch.tensor([kind, -kind, -_NOTHING if failed else size, -_NOTHING if failed else -size, int(failed)])
        self._collective(lambda: torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX, group=self._group))
        highest, lowest, largest, smallest, failures = mine.tolist()
        same = highest == -lowest and (bool(failures) or largest == -smallest)
        if same and failures and not failed:
            self._raise_from(self._everyones(None))
        return same, int(highest)

    def _everyones(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        self._collective(lambda: torch.distributed.all_gather_object(values, value, group=self._group))
        return values

    def _raise_from(self, told: list[_Failure | None], own: Exception | None = None) -> None:
        """Fail as the rank did that failed by itself; nothing where none has."""
        failed = [(rank, failure) for rank, failure in enumerate(told) if failure is not None]
        if not failed:
            return
        rank, first = next((f for f in failed if not f[1].passed_on), failed[0])
        if own is not None and (first.passed_on or first.message in _described(own).message):
            raise own
        error = _kind_of(first.kind)(f"rank {rank} failed: {first.message}")
        error.passed_on = True  # type: ignore[attr-defined]
        raise error from own

    def _collective(self, run: Callable[[], Any]) -> None:
        if self._lost:
            raise RankError(f"the ranks are not in contact any more: {self._lost}")
        try:
            run()
        except RuntimeError as error:
            # Of gloo's words the first sentence, without the line of its source.
            reason = self._lost = re.sub(r"^\[[^]]*\] ", "", errors.first_line(error)).partition(". ")[0]
            self.close()  # its connections too, so that nobody waits for this rank
            raise RankError(
                f"rank {self.rank} lost contact with the others, one has died or does not come: {reason}"
            ) from error


def data_parallel_part(model: nn.Module) -> tuple[nn.Module, Any]:
    """The module inside `DistributedDataParallel`, and its process group; the model and None where there is none.

    A wrapper of `torch.compile` around it is taken off too. What is measured must not pass through it: its forward
    pass gets it ready to add up gradients in the next backward pass, which is the training's.
    """
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        return inner.module, inner.process_group
    return model, None


class _Failure(NamedTuple):
    """What the other ranks are told of an error: its kind, what it says, and whether it was another rank's."""

    kind: str
    message: str
    passed_on: bool


def _described(error: Exception) -> _Failure:
    name = type(error).__name__
    passed_on = isinstance(error, RankError) or getattr(error, "passed_on", False)
    return _Failure(name, str(error) if passed_on else f"{name}: {error}", passed_on)


def _kind_of(name: str) -> type[Exception]:
    """The kind of error that the others raise, so that what is done about it is the same on all ranks."""
    kind = torch.OutOfMemoryError if name == "OutOfMemoryError" else getattr(errors, name, RankError)
    return kind if kind is torch.OutOfMemoryError or issubclass(kind, LosscopeError) else RankError
