"""Operators made from others: preconditioned, restricted to some parameters, one block per layer; and a diagonal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ParameterError, SettingError
from .objective import Objective
from .operators import SymmetricOperator, as_operator
from .selection import selector
from .space import ParameterSpace, VectorSpace, named

__all__ = ["BlockDiagonal", "Diagonal", "Preconditioned", "Restricted"]


class _Made(SymmetricOperator):
    """An operator made from one other."""

    def __init__(self, A: Any) -> None:
        self.operator = as_operator(A)
        self.parts = (self.operator,)
        self.psd = self.operator.psd
        self.space = self.operator.space

    @property
    def kernel(self) -> str:  # type: ignore[override]
        """The engine of the operator inside."""
        return self.operator.kernel


# --------------------------------------------------------------------------- preconditioning


class Preconditioned(_Made):
    r"""The curvature an optimiser with a diagonal preconditioner sees, :math:`D^{-1/2} A D^{-1/2}`.

    Adam divides the gradient by :math:`D = \sqrt{\hat v} + \epsilon`; its stability is decided by the
    eigenvalues of :math:`D^{-1} A` (Cohen et al., "Adaptive gradient methods at the edge of stability",
    2022). They are those of this symmetric form, and an eigenvector v of it gives :math:`u = D^{-1/2} v`
    with :math:`A u = \lambda D u` and, for orthonormal v, :math:`U^T D U = I`.

    Args:
        A: a symmetric operator, or what `top_eigenpairs` takes as one.
        diagonal: D, all entries positive: a tensor (n,), a mapping from the parameters' names to tensors of
            their shapes (or single numbers), or a sequence of such tensors in the parameters' order.

    Raises:
        SettingError: if the diagonal has another size or parameters, or an entry that is not positive and
            finite; it names which.

    Example:
        >>> import torch
        >>> from losscope.landscape import Preconditioned
        >>> D = torch.tensor([4.0, 1.0])
        >>> P = Preconditioned(torch.diag(torch.tensor([8.0, 3.0])), D)
        >>> P @ torch.eye(2)
        tensor([[2., 0.],
                [0., 3.]])
    """

    def __init__(self, A: Any, diagonal: Tensor | Mapping[str, Tensor] | Sequence[Tensor]) -> None:
        super().__init__(A)
        D = _checked_diagonal(diagonal, self.space)
        self._root = D.sqrt().to(self.space.dtype)[:, None]
        self._inverse_root = D.rsqrt().to(self.space.dtype)[:, None]

    @property
    def diagonal(self) -> Tensor:
        """D, (n,)."""
        return self._root[:, 0].square()

    def product(self, V: Tensor) -> Tensor:
        """D^-1/2 A D^-1/2 V, (n, k) -> (n, k)."""
        scaled = self._inverse_root * V
        return torch.mul(self.operator.product(scaled), self._inverse_root, out=scaled)

    def block_products(self, V: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        """Products of the preconditioned blocks; see `SymmetricOperator.block_products`."""
        scaled = self._inverse_root * V
        return torch.mul(self.operator.block_products(scaled, groups), self._inverse_root, out=scaled)

    def to_parameters(self, V: Tensor) -> Tensor:
        """D^-1/2 V: eigenvectors of this operator as directions of the parameters, (n,) or (n, k).

        For an eigenpair of this operator it gives u with A u = lambda D u, of length 1 in the norm u'D u.
        """
        return V * (self._inverse_root if V.ndim == 2 else self._inverse_root[:, 0])

    def from_parameters(self, U: Tensor) -> Tensor:
        """D^1/2 U, the inverse of `to_parameters`: directions of the parameters, say of a warm start."""
        return U * (self._root if U.ndim == 2 else self._root[:, 0])


def _checked_diagonal(diagonal: Any, space: VectorSpace) -> Tensor:
    """The diagonal (n,) in float64, all entries positive and finite."""
    if isinstance(diagonal, Tensor):
        if diagonal.shape != (space.size,):
            raise SettingError(
                f"diagonal must have shape ({space.size},), got {tuple(diagonal.shape)}; for one tensor per parameter "
                "pass a mapping from names or a list"
            )
        flat = diagonal
    else:
        flat = torch.cat([t.reshape(-1) for t in _one_per_parameter(diagonal, space)])
    flat = flat.detach().to(space.device, torch.float64)
    least, most = torch.aminmax(flat)
    if not (float(least) > 0 and float(most) < math.inf):  # NaN is neither
        bad = (~(torch.isfinite(flat) & (flat > 0))).nonzero().flatten()
        raise SettingError(
            f"diagonal must be positive and finite, {_entry(int(bad[0]), space)} is {float(flat[bad[0]])} "
            f"({len(bad)} such of {space.size}); add the optimiser's eps, or restrict the operator"
        )
    return flat


def _one_per_parameter(diagonal: Any, space: VectorSpace) -> list[Tensor]:
    space = named(space)
    if isinstance(diagonal, Mapping):
        missing = [name for name in space.names if name not in diagonal]
        unknown = [name for name in diagonal if name not in space.names]
        if missing or unknown:
            what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which is not among the parameters"
            raise SettingError(f"diagonal {what}; give one tensor for each of {', '.join(space.names)}")
        pieces = [diagonal[name] for name in space.names]
    elif isinstance(diagonal, Sequence):
        pieces = list(diagonal)
        if len(pieces) != len(space.names):
            raise SettingError(f"diagonal has {len(pieces)} tensors for {len(space.names)} parameters")
    else:
        raise SettingError(
            f"diagonal must be a tensor ({space.size},), a mapping from names, or a list; got {type(diagonal).__name__}"
        )
    return [_of_shape(piece, name, space) for piece, name in zip(pieces, space.names, strict=True)]


def _of_shape(piece: Any, name: str, space: ParameterSpace) -> Tensor:
    shape = space.shapes[space.names.index(name)]
    tensor = torch.as_tensor(piece, device=space.device)
    if tensor.ndim == 0:
        return tensor.expand(shape)
    if tensor.shape != shape:
        raise SettingError(f"diagonal of {name} must have shape {shape}, got {tuple(tensor.shape)}")
    return tensor


def _entry(index: int, space: VectorSpace) -> str:
    """Entry ``index`` of a vector in words: the parameter it belongs to, and where in it."""
    if isinstance(space, ParameterSpace):
        for name, numel in zip(space.names, space.numels, strict=True):
            if index < numel:
                return f"entry {index} of {name}"
            index -= numel
    return f"entry {index}"


class Diagonal(SymmetricOperator):
    """The matrix whose entries besides the diagonal are zero, as of a weight decay that differs between parameters.

    Args:
        values: one number for each of the parameters, by their names in the space.
        space: theirs.
    """

    kernel = "diagonal"

    def __init__(self, values: Mapping[str, float], space: VectorSpace) -> None:
        self.space = named(space)
        pieces = [torch.full((n,), values[name]) for name, n in zip(self.space.names, self.space.numels, strict=True)]
        self._values = torch.cat(pieces).to(self.space.device, self.space.dtype)[:, None]
        self.psd = all(value >= 0 for value in values.values())

    def product(self, V: Tensor) -> Tensor:
        """Each row times its number, (n, k) -> (n, k)."""
        return self._values * V

    def block_products(self, V: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        """The same of the groups' rows; see `SymmetricOperator.block_products`."""
        out = torch.zeros_like(V)
        for group in groups:
            for rows in named(self.space).rows(group):
                out[rows] = self._values[rows] * V[rows]
        return out


# --------------------------------------------------------------------------- blocks


class Restricted(_Made):
    """The principal submatrix of some of the parameters: how the loss curves when the others stand still.

    Args:
        A: an operator over a model's parameters.
        params: which of them, as in `Objective`: a name pattern, a module, a parameter, a predicate
            ``(name, parameter) -> bool``, or a list of these.

    Attributes:
        space: the space of the selected parameters.
        positions: where they are among those of A.

    Raises:
        ParameterError: if none of A's parameters is selected.
        SettingError: if A knows of no parameters, or ``params`` is not a selection.

    Example:
        >>> import torch
        >>> from losscope.landscape import Hessian, Objective
        >>> model = torch.nn.Linear(2, 1)
        >>> data = (torch.diag(torch.tensor([1.0, 2.0])), torch.zeros(2, 1))
        >>> H = Hessian(Objective(model, data, criterion=torch.nn.MSELoss(reduction="sum")))
        >>> H.restricted("weight") @ torch.eye(2)  # without the bias
        tensor([[2., 0.],
                [0., 8.]])
    """

    def __init__(self, A: Any, params: Any) -> None:
        super().__init__(A)
        self.positions = _selected(self.operator, params)
        whole = named(self.operator.space)
        self._rows = whole.rows(self.positions)
        self.space = whole.subspace(self.positions)

    def product(self, V: Tensor) -> Tensor:
        """A_ll V, (n_l, k) -> (n_l, k)."""
        return self._inside(self.operator.block_products(self._padded(V), [self.positions]))

    def block_products(self, V: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        """Products of blocks within this one; see `SymmetricOperator.block_products`."""
        outer = [[self.positions[i] for i in group] for group in groups]
        return self._inside(self.operator.block_products(self._padded(V), outer))

    def _padded(self, V: Tensor) -> Tensor:
        padded = torch.zeros(V.shape[1], self.operator.space.size, dtype=V.dtype, device=V.device).T
        for rows, piece in zip(self._rows, V.split([r.stop - r.start for r in self._rows]), strict=True):
            padded[rows] = piece
        return padded

    def _inside(self, V: Tensor) -> Tensor:
        return _taken(V, self._rows)


class BlockDiagonal(_Made):
    """The diagonal blocks of an operator: the curvature of every layer by itself, in one call.

    ``B @ V`` multiplies each block with its own part of V at the cost of much less than one full product per
    block, where the operator's kernel shares the graph among them.

    Args:
        A: an operator over a model's parameters.
        groups: a mapping from names to selections as in `Restricted`, disjoint. Default: one group for each
            module that has parameters of its own, by its name. Parameters in no group have products of zero.

    Attributes:
        blocks: the blocks as operators, by name.

    Raises:
        ParameterError: if a group selects nothing, or two select the same parameter.
        SettingError: if A knows of no parameters, or ``groups`` is no such mapping.

    Example:
        >>> import torch
        >>> from losscope.landscape import BlockDiagonal, Hessian, Objective, top_eigenpairs
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> data = (torch.eye(2), torch.zeros(2, 1))
        >>> layers = BlockDiagonal(Hessian(Objective(model, data, criterion=torch.nn.MSELoss())))
        >>> {name: block.shape for name, block in layers.blocks.items()}
        {'0': (9, 9), '2': (4, 4)}
    """

    def __init__(self, A: Any, groups: Mapping[str, Any] | None = None) -> None:
        super().__init__(A)
        names = named(self.operator.space).names
        if groups is None:
            groups = _by_module(names)
        if not isinstance(groups, Mapping) or not groups:
            raise SettingError(f"groups must map names to selections of parameters, got {groups!r}")
        self.blocks = {name: Restricted(self.operator, selection) for name, selection in groups.items()}
        owner: dict[int, str] = {}
        for name, block in self.blocks.items():
            for i in block.positions:
                if i in owner:
                    raise ParameterError(f"groups must be disjoint: {names[i]} is in {owner[i]!r} and in {name!r}")
                owner[i] = name
        self._groups = [block.positions for block in self.blocks.values()]

    def product(self, V: Tensor) -> Tensor:
        """A_ll v_l in the rows of each group l, (n, k) -> (n, k)."""
        return self.operator.block_products(V, self._groups)

    def products(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The products of some of the blocks, together: each block's (n_l, k_l) vectors by its name, in and out.

        Raises:
            SettingError: if there is no block of a name, or its vectors have another length.
        """
        unknown = [name for name in vectors if name not in self.blocks]
        if unknown or not vectors:
            raise SettingError(f"no block is called {unknown}; there are {list(self.blocks)}")
        for name, V in vectors.items():
            if V.shape[0] != self.blocks[name].space.size:
                raise SettingError(
                    f"block {name!r} has {self.blocks[name].space.size} entries, its vectors {V.shape[0]}"
                )
        found: dict[str, list[Tensor]] = {name: [] for name in vectors}
        start = 0
        for stop in sorted({V.shape[1] for V in vectors.values()}):  # so that no block has zeros multiplied
            some = {name: V[:, start:stop] for name, V in vectors.items() if V.shape[1] >= stop}
            for name, product in self._together(some, stop - start).items():
                found[name].append(product)
            start = stop
        return {name: pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1) for name, pieces in found.items()}

    def _together(self, vectors: dict[str, Tensor], width: int) -> dict[str, Tensor]:
        """The products of some blocks, each with as many vectors."""
        together = torch.zeros(width, self.space.size, dtype=self.space.dtype, device=self.space.device).T
        for name, V in vectors.items():
            rows_of = self.blocks[name]._rows
            for rows, piece in zip(rows_of, V.split([r.stop - r.start for r in rows_of]), strict=True):
                together[rows] = piece
        out = self.operator.block_products(together, [self.blocks[name].positions for name in vectors])
        return {name: _taken(out, self.blocks[name]._rows) for name in vectors}

    def split(self, V: Tensor) -> dict[str, Tensor]:
        """Each group's part of vectors (n,) or (n, k), by the group's name.

        Raises:
            SettingError: if V has another length.
        """
        if V.ndim not in (1, 2) or V.shape[0] != self.space.size:
            raise SettingError(f"expected shape ({self.space.size},) or ({self.space.size}, k), got {tuple(V.shape)}")
        return {name: _taken(V, block._rows) for name, block in self.blocks.items()}


def _taken(V: Tensor, rows: list[slice]) -> Tensor:
    return V[rows[0]] if len(rows) == 1 else torch.cat([V[r] for r in rows])


def _by_module(names: Sequence[str]) -> dict[str, Any]:
    """The parameters of each module, by the module's name as in ``named_modules`` ("" for the model itself)."""
    owned: dict[str, set[str]] = {}
    for name in names:
        owned.setdefault(name.rpartition(".")[0], set()).add(name)
    return {owner: lambda name, _, members=members: name in members for owner, members in owned.items()}


def _selected(A: SymmetricOperator, params: Any) -> list[int]:
    """Positions of the selected parameters among those of A."""
    names, objective = named(A.space).names, _objective_of(A)
    if objective is None:  # another library's: the shapes are known, the values are not
        shapes = named(A.space).shapes
        ours = {n: nn.Parameter(torch.empty(s, device="meta")) for n, s in zip(names, shapes, strict=True)}
        everyone: Iterable[tuple[str, nn.Parameter]] = ours.items()
    else:  # a tied parameter goes by each of its names
        ours, everyone = objective.parameters, objective.model.named_parameters(remove_duplicate=False)
    accepts = selector(params)
    accepted = {id(p) for name, p in everyone if accepts(name, p)}
    positions = [i for i, name in enumerate(names) if id(ours[name]) in accepted]
    if not positions:
        given = type(params).__name__ if isinstance(params, Tensor | nn.Module) or callable(params) else repr(params)
        raise ParameterError(f"{given} selects none of the operator's parameters: {', '.join(names)}")
    return positions


def _objective_of(A: SymmetricOperator) -> Objective | None:
    found = getattr(A, "objective", None)
    if isinstance(found, Objective):
        return found
    return next((objective for part in A.parts if (objective := _objective_of(part)) is not None), None)
