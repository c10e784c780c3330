"""Jacobians of single samples: the derivatives of each sample's outputs by some of the parameters.

Where every use of a parameter is seen in the layers, one backward pass serves all samples of a batch
(`kernels.layer_jacobians`); other parameters (of a recurrent layer, used by hand, shared in unseen ways) are left to
backward passes of one sample at a time. Which way a parameter goes is tried: the Jacobians must add up to the
gradient of a random combination of all outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .batches import describe, map_tensors, tensors_of, without_weights
from .complex_parts import as_real
from .errors import LossError, NonFiniteError
from .kernels.layer_jacobians import Call, LayerJacobians, Scratch, Shape, bytes_held, shape_of, watched_layers
from .objective import Objective
from .space import generator_for
from .tangent_positions import Factors, joined

__all__ = ["MixedSamples", "PositionsChanged", "SampleJacobians", "sample_outputs"]

_AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-4}
_TRIED = 4
"""Samples, and rows of outputs, that the trial looks at."""
_BESIDE = 16
"""Samples, these included, among which their outputs must be the same."""


class MixedSamples(Exception):
    """A sample's outputs depend on the other samples of its batch, or on its place in it."""


class PositionsChanged(Exception):
    """A weight is used at more or fewer positions of some samples than it was of the first, or not for all of them."""


def sample_outputs(
    objective: Objective, content: Any, index: int, watching: AbstractContextManager[Any] | None = None
) -> tuple[Tensor, int]:
    """The outputs for the samples of a batch, (n, C) with their graph, and n; call it inside the isolation.

    Args:
        objective: whose outputs.
        content: of the batch, or a part of it.
        index: which batch it is of.
        watching: entered around the model's call, where hooks that keep something are otherwise left out.

    Raises:
        LossError: if the objective has a ``loss_fn``, or the outputs are not one tensor with an equal part for each.
    """
    samples = samples_in(content)
    with objective.evaluation(index, content) as batch, watching or nullcontext():
        outputs = objective.loss.outputs(objective.model, batch)
    found = [t for t in tensors_of(outputs) if t.is_floating_point() and t.requires_grad]
    if len(found) != 1 or found[0].numel() % samples:
        raise LossError(
            "the tangent kernel is one of a single floating-point tensor of outputs, with as many entries for each of "
            f"the {samples} samples; these are {describe(outputs)}: let forward= return that tensor (the logits)"
        )
    return found[0].reshape(samples, -1), samples


def samples_in(content: Any) -> int:
    """Number of samples in a batch: the first dimension of the first of its tensors, which are the inputs.

    Raises:
        LossError: if there is none.
    """
    for tensor in tensors_of(without_weights(content)):
        if tensor.ndim and len(tensor):
            return len(tensor)
    raise LossError(f"no samples are seen in the batch ({describe(content)}); let its first tensor be the inputs")


class SampleJacobians:
    """The rows ``E J_i`` of samples i, with J_i (C, n_theta) and E (k, C).

    Args:
        objective: whose outputs and parameters.
        rows: E; the unit matrix for all outputs.

    Attributes:
        alone: positions of the parameters that the layers do not account for.
        shapes: of the weights whose derivatives are sums over positions, by position.

    Raises:
        MixedSamples: if samples have no outputs of their own.
        NonFiniteError: if outputs are NaN or infinite.
    """

    def __init__(self, objective: Objective, rows: Tensor) -> None:
        self.objective, self.rows = objective, rows
        self._ids = {id(p): i for i, p in enumerate(objective.parameters.values())}
        self._parameters = list(objective.parameters.values())
        self.alone = {i for i, p in enumerate(self._parameters) if p.is_complex()}  # layers' rules are of real ones
        self._scratch = Scratch()
        self._tried = False
        self._try()
        self._tried = True
        self._positions = self._seen_positions()
        self.shapes = {i: shape for i, calls in self._positions.items() if (shape := joined(calls)) is not None}

    def of(self, index: int, some: slice, rows: slice, group: Sequence[int]) -> dict[int, Tensor]:
        """The Jacobians of some samples of a batch, (m, k, numel) by the position of the parameter.

        Args:
            index: which batch.
            some: which of its samples.
            rows: which of E's rows.
            group: positions of the parameters.
        """
        m, k = some.stop - some.start, len(self.rows[rows])
        parts = {i: as_real(self._parameters[i]) for i in group}
        found = {i: part.new_zeros(m, k, part.numel()) for i, part in parts.items()}
        self.write(index, some, rows, found)
        return found

    def write(
        self, index: int, some: slice, rows: slice, into: Mapping[int, Tensor],
        factors: Mapping[int, Factors] | None = None,
    ) -> None:  # fmt: skip
        """Add them to tensors (m, k, numel) that are 0; of weights with a `shape`, keep what they are made of."""
        content = cut(self.objective.batches[index].content, some)
        together = {i: J for i, J in into.items() if i not in self.alone}
        if together or factors:
            self._together(index, content, rows, together, factors or {})
        if left := {i: J for i, J in into.items() if i in self.alone}:
            self._one_by_one(index, content, rows, left)

    def bytes_of_sample(self, rows: int, factored: Collection[int] = ()) -> int:
        """About what one sample takes while its Jacobians are made, besides these.

        Args:
            rows: outputs that are differentiated.
            factored: positions of the weights of which factors are kept.
        """
        saved = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.nbytes if tensor.ndim else 0
            return tensor.detach()  # itself it would keep its graph alive for good: a cycle through C++

        content = cut(self.objective.batches[0].content, slice(0, 1))
        calls: list[Call] = []
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            sample_outputs(self.objective, content, 0, watched_layers(self.objective.model, set(self._ids), calls))
        weights = sum(p.nbytes for module in (self.objective.model,) for p in module.parameters())
        elsewhere = {id(self._parameters[i]) for i in factored}
        back = [call.shape.numel() * call.x.element_size() for call in calls]
        held = sum(bytes_held(call, rows, elsewhere) for call in calls)
        unfolded = max((_patch_bytes(call.module, call.shape.numel()) for call in calls), default=0)
        return max(saved - weights, sum(back)) + 2 * sum(back) + held + unfolded

    # ------------------------------------------------------------------ two ways

    def _together(
        self, index: int, content: Any, rows: slice, into: Mapping[int, Tensor], factors: Mapping[int, Factors]
    ) -> None:
        """By one backward pass for each row over all samples, and what the layers have seen."""
        by_id = {id(self._parameters[i]): J for i, J in into.items()}
        calls: list[Call] = []
        watching = watched_layers(self.objective.model, {*by_id, *(id(self._parameters[i]) for i in factors)}, calls)
        outputs, samples = sample_outputs(self.objective, content, index, watching)
        if self._tried and any(n % samples for call in calls for n in (call.x.shape[0], call.shape[0])):
            self.alone = set(range(len(self._parameters)))  # a layer gets some of the samples, as an expert does
            raise PositionsChanged
        kept = self._by_call(calls, samples, factors)
        if not calls:
            return
        k = len(self.rows[rows])
        layers = [
            LayerJacobians(call, samples, k, by_id, own, self._scratch) for call, own in zip(calls, kept, strict=True)
        ]
        self._scratch.start(sum(layer.wanted[0] for layer in layers) + max(layer.wanted[1] for layer in layers))
        for row, backs in enumerate(self._backward(outputs, [call.edge for call in calls], rows)):
            for layer, b in zip(layers, backs, strict=True):
                layer.add(row, b)
        for layer in layers:
            layer.finish()

    def _by_call(
        self, calls: list[Call], samples: int, factors: Mapping[int, Factors]
    ) -> list[dict[int, tuple[Tensor, Tensor, bool]]]:
        """Room for what each call of the layers adds to factors, one call's positions after the other's."""
        kept: list[dict[int, tuple[Tensor, Tensor, bool]]] = [{} for _ in calls]
        for i, found in factors.items():
            own = [j for j, call in enumerate(calls) if _owns(call, self._parameters[i])]
            shapes = [shape_of(calls[j], samples) for j in own]
            if shapes != self._positions[i]:
                raise PositionsChanged
            start = 0
            for j, shape in zip(own, shapes, strict=True):
                assert shape is not None
                part = slice(start, start + shape.positions)
                a = found.a if found.imaged else found.a[:, part]  # an image is that of one call
                kept[j][id(self._parameters[i])] = a, found.b[:, part], found.imaged
                start = part.stop
        return kept

    def _backward(self, outputs: Tensor, edges: list[Any], rows: slice) -> Iterator[tuple[Tensor, ...]]:
        """The derivatives of each row's outputs by the edges, one row after the other."""
        for row in self.rows[rows]:
            yield torch.autograd.grad(
                [outputs], edges, [row.to(outputs.dtype).expand_as(outputs)], retain_graph=True, allow_unused=True,
                materialize_grads=True,
            )  # fmt: skip

    def _one_by_one(self, index: int, content: Any, rows: slice, into: Mapping[int, Tensor]) -> None:
        """By backward passes of a single sample."""
        chosen = [self._parameters[i] for i in into]
        for sample in range(samples_in(content)):
            outputs, _ = sample_outputs(self.objective, cut(content, slice(sample, sample + 1)), index)
            for row, backs in enumerate(self._backward(outputs, chosen, rows)):
                for J, b in zip(into.values(), backs, strict=True):
                    J[sample, row] = as_real(b).flatten()

    # ------------------------------------------------------------------ which way

    def _try(self) -> None:
        """Find the parameters that the layers do not account for, on the last samples: those after others."""
        objective = self.objective
        whole = objective.batches[0].content
        count = samples_in(whole)
        some, rows = slice(max(0, count - _TRIED), count), slice(0, _TRIED)
        everything = list(range(len(self._parameters)))
        expected, weights, outputs = self._combined(whole, some, rows)
        self._refuse_mixed(whole, outputs)
        try:
            found = self.of(0, some, rows, everything)
        except Exception:
            found = {}
            for i in everything:
                try:
                    found |= self.of(0, some, rows, [i])
                except Exception:  # a foreign layer may fail in any way when it is called by itself
                    self.alone.add(i)
        self.alone |= {i for i, J in found.items() if not _adds_up(J, weights, expected[i], expected)}
        if self.alone:
            left = sorted(self.alone)
            found = self.of(0, some, rows, left)
            if not all(_adds_up(found[i], weights, expected[i], expected) for i in left):
                raise MixedSamples("the outputs of single samples are not those of the batch")

    def _seen_positions(self) -> dict[int, list[Shape | None]]:
        """Of every parameter that the layers account for, how each call uses it on the first sample."""
        content = cut(self.objective.batches[0].content, slice(0, 1))
        calls: list[Call] = []
        watching = watched_layers(self.objective.model, set(self._ids), calls)
        _, samples = sample_outputs(self.objective, content, 0, watching)
        seen: dict[int, list[Shape | None]] = {}
        for i, p in enumerate(self._parameters):
            if i not in self.alone:
                weight = [(call, call.module._parameters.get("weight") is p) for call in calls if _owns(call, p)]
                seen[i] = [shape_of(call, samples) if it_is else None for call, it_is in weight]
        return seen

    def _combined(self, whole: Any, some: slice, rows: slice) -> tuple[list[Tensor], Tensor, Tensor]:
        """The gradient of ``sum w_ik (E f)_ik``, w (m, k), and the outputs (m, C)."""
        outputs, samples = sample_outputs(self.objective, cut(whole, some), 0)
        if not bool(torch.isfinite(outputs).all()):
            raise NonFiniteError("the model's outputs are NaN or infinite, so that they have no tangent kernel")
        E = self.rows[rows].to(outputs)
        weights = torch.randn(samples, len(E), generator=generator_for(0, E.device), device=E.device).to(outputs)
        value = (weights * (outputs @ E.T)).sum()
        found = torch.autograd.grad(value, self._parameters, allow_unused=True, materialize_grads=True)
        return [as_real(g) for g in found], weights, outputs.detach()

    def _refuse_mixed(self, whole: Any, outputs: Tensor) -> None:
        """Compare the outputs of a few samples with what they are in their batch."""
        count = samples_in(whole)
        if len(outputs) == count:
            beside = outputs
            outputs = sample_outputs(self.objective, cut(whole, slice(count // 2, count)), 0)[0].detach()
        else:
            beside = sample_outputs(self.objective, cut(whole, slice(max(0, count - _BESIDE), count)), 0)[0].detach()
        beside = beside[len(beside) - len(outputs) :]
        if not float((beside - outputs).norm()) <= _tolerance(outputs) * float(beside.norm()):
            raise MixedSamples("the outputs of a sample depend on the others in its batch")


def _owns(call: Call, parameter: Tensor) -> bool:
    return any(p is parameter for p in call.module._parameters.values())


def cut(content: Any, some: slice) -> Any:
    """Some samples of a batch, in every tensor with as many."""
    content = without_weights(content)
    samples = samples_in(content)
    return map_tensors(content, lambda t: t[some] if t.ndim and len(t) == samples else t)


def _adds_up(J: Tensor, weights: Tensor, expected: Tensor, all_expected: list[Tensor]) -> bool:
    combined = torch.einsum("mk,mki->i", weights.to(J.dtype), J)
    scale = max(float(expected.norm()), 1e-3 * max(float(g.norm()) for g in all_expected))
    return float((combined - expected.reshape(-1)).norm()) <= _tolerance(J) * scale


def _tolerance(tensor: Tensor) -> float:
    return _AGREEMENT.get(tensor.dtype, 5e-2)


def _patch_bytes(module: Any, entries: int) -> int:
    """What the patches of a convolution take, of a sample."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim < 3:
        return 0
    return int(2 * entries // weight.shape[0] * weight[0].numel() * weight.element_size())
