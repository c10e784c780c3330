"""The libraries and kernels that are compared, each behind the same four functions."""

import contextlib
import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from measuring import short
from problems import CRITERION, Problem
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from losscope import landscape
from losscope.landscape import Hessian, Objective

KERNELS = ("retained", "batched", "compiled", "finite_difference")
PLAIN, PYHESSIAN, CURVLINOPS, OURS = "plain torch", "PyHessian", "curvlinops", "losscope"


class NotAvailable(Exception):
    """A library that is not installed, or a kernel that this version does not have."""


@contextlib.contextmanager
def failure_in(row: Any) -> Iterator[None]:
    """Keep what goes wrong for the row, in its ``failure``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (NotAvailable, ImportError) as error:
        row.failure = f"not available: {error}"
    except landscape.SettingError as error:
        missing = "kernel must be" in str(error)
        row.failure = f"{'not available' if missing else 'fails'}: {short(error)}"
    except Exception as error:
        row.failure = f"fails: {short(error)}"


def _same(x: Any) -> Any:
    return x


@dataclass
class Engine:
    """A product, ready to be timed.

    Attributes:
        product: from vectors in the library's own form to its own result.
        native: (n, k) -> the library's own form; not timed.
        flat: its own result -> (n, k); not timed.
        held: what surrounds a series of products.
        operator: the library's operator, for those who ask it something else.
    """

    product: Callable[[Any], Any]
    native: Callable[[Tensor], Any] = _same
    flat: Callable[[Any], Tensor] = _same
    held: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    operator: Any = None


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        package: whose.
        kernel: which of its engines.
        open: makes an `Engine` for a model of its own.
        math: whether attention is forced to torch's unfused form around everything it does.
    """

    package: str
    kernel: str
    open: Callable[[Problem, nn.Module], Engine]
    math: bool = False

    @property
    def name(self) -> str:
        return f"{self.package}: {self.kernel}" + (", unfused attention" if self.math else "")

    @property
    def ours(self) -> bool:
        return self.package == OURS

    @property
    def peer(self) -> bool:
        return not self.ours and self.kernel != "retained"

    def around(self) -> contextlib.AbstractContextManager[Any]:
        return sdpa_kernel(SDPBackend.MATH) if self.math else contextlib.nullcontext()

    @contextlib.contextmanager
    def engine(self, problem: Problem) -> Iterator[Engine]:
        """Open it on a copy of the problem's model, and leave no graph behind."""
        model = problem.fresh()
        with self.around():
            engine = self.open(problem, model)
        try:
            yield engine
        finally:
            model.zero_grad()  # PyHessian leaves a graph in .grad, a cycle that Python cannot collect


# --------------------------------------------------------------------------- plain torch


def _columns(model: nn.Module) -> tuple[Callable[[Tensor], list], Callable[[list], Tensor]]:
    """Between (n, k) and a list, one item per vector, of lists with one tensor per parameter."""
    parameters = list(model.parameters())
    numels = [p.numel() for p in parameters]

    def native(V: Tensor) -> list[list[Tensor]]:
        return [
            [piece.view_as(p) for piece, p in zip(v.split(numels), parameters, strict=True)] for v in V.T.contiguous()
        ]

    def flat(results: list) -> Tensor:
        return torch.stack([torch.cat([piece.detach().flatten() for piece in pieces]) for pieces in results], dim=1)

    return native, flat


def _gradients(problem: Problem, model: nn.Module) -> Iterator[tuple[Tensor, ...]]:
    """The gradient of every batch's part of the mean, each with its graph."""
    total = sum(len(y) for _, y in problem.batches)
    for x, y in problem.batches:
        loss = CRITERION(model(x), y) * (len(y) / total)
        yield torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


def _summed(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return parts[0] if len(parts) == 1 else tuple(sum(pieces) for pieces in zip(*parts, strict=True))


def plain_rebuilt(problem: Problem, model: nn.Module) -> Engine:
    """The textbook: forward, backward and double backward at every product."""
    parameters = list(model.parameters())

    def product(vectors: list) -> list:
        return [
            _summed([torch.autograd.grad(gradient, parameters, v) for gradient in _gradients(problem, model)])
            for v in vectors
        ]

    native, flat = _columns(model)
    return Engine(product, native, flat)


def plain_retained(problem: Problem, model: nn.Module) -> Engine:
    """The bare call on graphs that all stay in memory: the least that a double backward costs."""
    parameters = list(model.parameters())
    graphs = list(_gradients(problem, model))

    def product(vectors: list) -> list:
        return [
            _summed([torch.autograd.grad(gradient, parameters, v, retain_graph=True) for gradient in graphs])
            for v in vectors
        ]

    native, flat = _columns(model)
    return Engine(product, native, flat)


# --------------------------------------------------------------------------- libraries


def pyhessian_module() -> Any:
    """PyHessian, or `NotAvailable`."""
    try:
        import pyhessian
    except ImportError as error:
        raise NotAvailable("PyHessian is not installed") from error
    return pyhessian


def pyhessian_version() -> str:
    """Which PyHessian answers: what differs is whether ``density()`` uses a function that torch 2 still has."""
    try:
        source = inspect.getsource(pyhessian_module().hessian.density)
    except NotAvailable:
        return "not installed"
    return "HEAD" if "linalg.eig" in source else "0.1 of the registry"


def curvlinops_version() -> str:
    try:
        return importlib.metadata.version("curvlinops-for-pytorch")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def eigenthings_version() -> str:
    try:
        return importlib.metadata.version("hessian-eigenthings")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def pyhessian_object(problem: Problem, model: nn.Module) -> Any:
    """As its README says: one batch as ``data``, several as ``dataloader``."""
    cuda = problem.device.type == "cuda"
    data = {"data": problem.batches[0]} if len(problem.batches) == 1 else {"dataloader": problem.batches}
    return pyhessian_module().hessian(model, CRITERION, cuda=cuda, **data)


def pyhessian(problem: Problem, model: nn.Module) -> Engine:
    module = pyhessian_module()
    made = pyhessian_object(problem, model)

    def product(vectors: list) -> list:
        if made.full_dataset:
            return [made.dataloader_hv_product(v)[1] for v in vectors]
        return [module.utils.hessian_vector_product(made.gradsH, made.params, v) for v in vectors]

    native, flat = _columns(model)
    return Engine(product, native, flat, operator=made)


def curvlinops_operator(problem: Problem, model: nn.Module, kind: str = "HessianLinearOperator") -> Any:
    try:
        import curvlinops
    except ImportError as error:
        raise NotAvailable("curvlinops is not installed") from error
    parameters = [p for p in model.parameters() if p.requires_grad]
    newer = "params" in inspect.signature(curvlinops.HessianLinearOperator.__init__).parameters and (
        int(curvlinops_version().split(".")[0]) > 3
    )
    chosen = dict(model.named_parameters()) if newer else parameters
    return getattr(curvlinops, kind)(model, CRITERION, chosen, problem.batches)


def curvlinops(problem: Problem, model: nn.Module) -> Engine:
    operator = curvlinops_operator(problem, model)
    return Engine(lambda V: operator @ V, operator=operator)


def curvlinops_gauss_newton(problem: Problem, model: nn.Module) -> Engine:
    operator = curvlinops_operator(problem, model, "GGNLinearOperator")
    return Engine(lambda V: operator @ V, operator=operator)


# --------------------------------------------------------------------------- ours


def objective(problem: Problem, model: nn.Module) -> Objective:
    data = problem.batches[0] if len(problem.batches) == 1 else problem.batches
    return Objective(model, data, criterion=CRITERION)


def losscope_kernel(kernel: str) -> Callable[[Problem, nn.Module], Engine]:
    def opened(problem: Problem, model: nn.Module) -> Engine:
        try:
            operator = Hessian(objective(problem, model), kernel=kernel)
        except landscape.SettingError as error:
            if str(error).startswith("kernel must be"):
                raise NotAvailable("this version has no such kernel") from error
            raise
        return Engine(lambda V: operator @ V, held=operator.held, operator=operator)

    return opened


def losscope_gauss_newton(problem: Problem, model: nn.Module) -> Engine:
    if not hasattr(landscape, "GaussNewton"):
        raise NotAvailable("this version has no GaussNewton")
    operator = landscape.GaussNewton(objective(problem, model))
    return Engine(lambda V: operator @ V, held=operator.held, operator=operator)


def _with_unfused(made: list[Contender], problem: Problem) -> list[Contender]:
    """Where there is attention, peers run twice: as a user would call them, and with the unfused kernel forced."""
    if not problem.family.attention:
        return made
    out = []
    for contender in made:
        if contender.package in (PYHESSIAN, CURVLINOPS):
            out += [contender, Contender(contender.package, contender.kernel, contender.open, math=True)]
        else:
            out.append(Contender(contender.package, contender.kernel, contender.open, math=not contender.ours))
    return out


def hessian_contenders(problem: Problem) -> list[Contender]:
    peers = [
        Contender(PLAIN, "rebuilt", plain_rebuilt),
        Contender(PLAIN, "retained", plain_retained),
        Contender(PYHESSIAN, "Hessian", pyhessian),
        Contender(CURVLINOPS, "Hessian", curvlinops),
    ]
    return _with_unfused(peers, problem) + [Contender(OURS, kernel, losscope_kernel(kernel)) for kernel in KERNELS]


def gauss_newton_contenders(problem: Problem) -> list[Contender]:
    return [
        *_with_unfused([Contender(CURVLINOPS, "GGN", curvlinops_gauss_newton)], problem),
        Contender(OURS, "GaussNewton", losscope_gauss_newton),
    ]
