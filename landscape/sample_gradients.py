"""The gradients of single samples, or of small batches of them: a block at a time, vectorised where that is right."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .batches import tensors_of
from .errors import LosscopeError, LossError, NonFiniteError, SettingError, first_line
from .groups import lengths_of
from .kernels.graphs import default_memory
from .minibatch_forms import OneByOne, Together, Wanted
from .objective import Objective

__all__ = ["SampleGradients", "per_sample_gradients"]

_MOST = 128  # batches in one vectorised pass: beyond it the time for each stays, and memory grows
_COMPARED = 2  # with one by one: with one alone, numbers drawn outside of torch could be the same
_ROUNDINGS = 4.0  # that the two may differ by
_COPIES = 4  # of a gradient that a batch takes in a pass: parameters, gradient by tensor and as a row, a product
_GRAPHS = 32  # times its data: what the graph of a batch is taken to need
_MEAN = 1e-3  # relative to a gradient's length: how close the mean must come to the objective's gradient


class SampleGradients:
    """Gradients of given batches of samples, in blocks that fit into memory; iterate as often as needed.

    They are kept where all of them fit, and otherwise computed anew at each iteration. Batches are evaluated many at a
    time where that agrees with one by one, to rounding, on the first of them; else one by one.

    Args:
        objective: the loss on all samples; each batch of its data must show its samples in its first dimension.
        chosen: (K, B) positions of the samples of each batch, in all batches of the data laid end to end.
        memory: bytes that a block, or all gradients where they are kept, may take; None for `default_memory`.

    Attributes:
        engine: ``"together"`` or ``"one by one"``, as they are evaluated.
        reason: why they are not evaluated together; empty where they are.

    Raises:
        DataError: if batches cannot be cut into samples.
        SettingError: if samples have weights.
    """

    def __init__(self, objective: Objective, chosen: Tensor, *, memory: int | None = None) -> None:
        self.objective, self.chosen = objective, chosen
        self.lengths = lengths_of(objective)
        wanted = Wanted(objective, self.lengths, products=False)
        self._alone, self._together = OneByOne(wanted), Together(wanted)
        self._memory = default_memory(objective.space.device) if memory is None else memory
        # a batch's loss estimates the objective's mean; a sum does when scaled up
        self._scale = sum(self.lengths) / chosen.shape[1] if objective.loss.summed else 1.0
        self.engine, self.reason = Together.name, ""
        self._width: int | None = None
        self._kept: list[Tensor] | None = None

    def __len__(self) -> int:
        """K."""
        return len(self.chosen)

    def __iter__(self) -> Iterator[Tensor]:
        """Blocks (k, n) of all gradients in order, in the dtype and on the device of the space.

        Raises:
            NonFiniteError: if one is NaN or infinite.
            LossError: if a sample alone cannot be evaluated, as with batch statistics.
        """
        if self._kept is not None:
            yield from self._kept
            return
        space = self.objective.space
        keeps = len(self) * space.size * space.dtype.itemsize <= self._memory
        kept: list[Tensor] = []
        with self.objective.isolated():
            for block in self._blocks():
                if keeps:
                    kept.append(block)
                yield block
        if keeps:
            self._kept = kept

    def _blocks(self) -> Iterator[Tensor]:
        first = 0
        width = self._fitting() if self._width is None else self._width
        while first < len(self):
            some = self.chosen[first : first + width]
            try:
                block = self._checked(self._block(some, first))
            except torch.OutOfMemoryError:
                if width == 1:
                    raise
                width = width // 2
                continue
            self._width = width
            yield block
            first += len(some)

    def _block(self, some: Tensor, first: int) -> Tensor:
        """Together where that may be trusted; tried on the first."""
        if self.engine == OneByOne.name:
            return self._each(some, first)
        try:
            found = self._together.gradients(some)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # batch statistics, dropout, control flow that depends on data, custom functions
            return self._one_by_one(some, first, first_line(error))
        if self._width is None and not self._agrees(found, some):
            return self._one_by_one(some, first, "evaluated together they are not what they are one by one")
        return found

    def _one_by_one(self, some: Tensor, first: int, reason: str) -> Tensor:
        self.engine, self.reason = OneByOne.name, reason
        return self._each(some, first)

    def _each(self, some: Tensor, first: int) -> Tensor:
        try:
            return self._alone.gradients(some, first)
        except (LosscopeError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if some.shape[1] > 1:
                raise
            raise LossError(
                f"a sample alone has no loss here: {first_line(error)}. Batch statistics and losses that compare "
                "samples need several; take the noise of mini-batches as training draws them: minibatch_noise"
            ) from error

    def _agrees(self, found: Tensor, some: Tensor) -> bool:
        """To rounding, in units of the longest."""
        few = self._alone.gradients(some[:_COMPARED], 0)
        scale = few.norm(dim=1).max()
        return bool(((found[: len(few)] - few).norm(dim=1) <= _ROUNDINGS * self.objective.space.rounding * scale).all())

    def _checked(self, block: Tensor) -> Tensor:
        if not bool(block.isfinite().all()):
            raise NonFiniteError("the gradient of a sample is NaN or infinite: the loss overflows here")
        return block if self._scale == 1.0 else self._scale * block

    def _fitting(self) -> int:
        """Batches in a pass, by what they take: copies of the parameters' size, and graphs of about the data's."""
        space = self.objective.space
        content = sum(t.nbytes for batch in self.objective.batches for t in tensors_of(batch.content))
        each = _COPIES * space.size * space.dtype.itemsize + _GRAPHS * content * self.chosen.shape[1] / sum(
            self.lengths
        )
        return max(1, min(_MOST, int(self._memory // each)))


def per_sample_gradients(
    objective: Objective, *, samples: Tensor | None = None, memory: int | None = None
) -> SampleGradients:
    r"""The gradients :math:`g_i` of the samples' own losses, whose mean is the objective's gradient.

    Iterating gives blocks ``(k, n)``, in the order of the data; for a loss that is a sum, :math:`g_i` is N times that
    of the sample, so that the mean is the gradient all the same; not so with targets that are ignored or have class
    weights, of which a sample alone keeps none. The vectorised evaluation is checked against
    one sample at a time on the first, and given up where it differs or where torch refuses it.

    Args:
        objective: the loss on all samples.
        samples: (K,) positions of those that are wanted, in all batches laid end to end; None for all of them.
        memory: bytes that a block, or all of them where they are kept for the next iteration, may take; None for a
            quarter of a GPU's free memory, 256 MiB on a CPU.

    Raises:
        DataError: if batches cannot be cut into samples.
        SettingError: if samples have weights, or positions are not in the data.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.sample_gradients import per_sample_gradients
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> torch.nn.init.zeros_(model.weight)
        Parameter containing:
        tensor([[0., 0.]], requires_grad=True)
        >>> data = (torch.eye(2), torch.tensor([[1.0], [2.0]]))
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss())
        >>> torch.cat(list(per_sample_gradients(objective)))  # -2 y_i x_i
        tensor([[-2.,  0.],
                [ 0., -4.]])
    """
    n = sum(lengths_of(objective))
    if samples is None:
        samples = torch.arange(n)
    elif samples.ndim != 1 or len(samples) == 0 or not bool(((samples >= 0) & (samples < n)).all()):
        raise SettingError(
            f"samples must be a vector of positions from 0 to {n - 1}, got one of shape {tuple(samples.shape)}"
        )
    return SampleGradients(objective, samples.cpu()[:, None], memory=memory)


def refuse_another_mean(apart: Tensor, length: float) -> None:
    """Refuse samples whose gradients do not average to the objective's.

    Args:
        apart: (n,) mean of the gradients less the objective's.
        length: root mean square of their lengths.

    Raises:
        LossError: if it is another one.
    """
    distance = float(apart.norm())
    if distance > _MEAN * length or (length == 0 and distance > 0):
        raise LossError(
            f"the gradients of single samples do not average to the loss's gradient: they differ by {distance:.3g} "
            f"where a sample's has length {length:.3g}. A sample's part in the loss depends on the others: batch "
            'statistics or dropout (try mode="eval" or "train_frozen"), targets that are ignored or weighted, a loss '
            "that compares samples; for these take the noise of mini-batches as training draws them: minibatch_noise"
        )
