"""Products with the Hessian against dense float64 Hessians that share no code with the package."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from custom_functions import Once
from factorisation import DeepProduct
from landscape_cases import (
    CASES,
    Checkpointed,
    LanguageModel,
    build,
    dense_hessian,
    flat,
    labelled,
    mlp,
    reference,
    selected,
)
from losscope.landscape import DoubleBackwardError, Hessian, Objective

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative distance of each column, the largest of them."""
    found = found.to(torch.float64)
    scale = expected.norm(dim=0).clamp(min=1e-3 * float(expected.norm(dim=0).max()))
    return float(((found - expected).norm(dim=0) / scale).max())


def probes(n: int, k: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["double", "single"])
@pytest.mark.parametrize("name", CASES)
def test_products_match_the_dense_hessian(name: str, dtype: torch.dtype) -> None:
    _, _, H = reference(name)
    operator = Hessian(build(name, dtype).objective())
    assert operator.shape == tuple(H.shape)
    V = probes(len(H), 4, dtype)
    expected = H @ V.double()
    assert expected.abs().max() > 0
    assert distance(operator @ V, expected) <= TOLERANCE[dtype]
    assert distance((operator @ V[:, 1])[:, None], expected[:, 1:2]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_match_the_handwritten_loss(name: str) -> None:
    value, gradient, _ = reference(name)
    objective = build(name).objective()
    assert objective.value() == pytest.approx(value, rel=1e-12)
    for found_value, found_gradient in (objective.value_and_gradient(), Hessian(objective).value_and_gradient()):
        assert found_value == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(found_gradient, gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["mlp_cross_entropy", "uneven_batches", "multi_output_regression"])
def test_products_match_torch_func(name: str) -> None:
    """A third opinion, on the oracle too: forward over reverse mode by ``torch.func``."""
    setup = build(name)
    names, shapes = zip(*[(n, p.shape) for n, p in setup.model.named_parameters()], strict=True)
    sizes = [shape.numel() for shape in shapes]

    def total(theta: Tensor) -> Tensor:
        pieces = [piece.view(shape) for piece, shape in zip(theta.split(sizes), shapes, strict=True)]
        weights = dict(zip(names, pieces, strict=True))
        return setup.total(lambda x: functional_call(setup.model, weights, (x,)), setup.data)

    H = torch.func.hessian(total)(flat(setup.model.parameters()).detach())
    assert distance(Hessian(setup.objective()) @ torch.eye(len(H), dtype=H.dtype), H) <= 1e-12


def test_batches_of_any_size_are_one_objective() -> None:
    model, (x, y) = mlp(4, 5, 3).double(), labelled([9])[0]
    x = x.double()
    V = probes(sum(p.numel() for p in model.parameters()), 3)
    whole = Hessian(Objective(model, (x, y), criterion=nn.CrossEntropyLoss())) @ V
    for size in (1, 4, 8):
        cut = list(zip(x.split(size), y.split(size), strict=True))
        assert distance(Hessian(Objective(model, cut, criterion=nn.CrossEntropyLoss())) @ V, whole) <= 1e-12


def test_weight_by_token_and_by_sample_differ() -> None:
    """The padding must matter in these cases, or they would not test the weights."""
    setup = build("token_weights_loss_fn")
    V = probes(setup.objective().space.size, 1)
    by_sample = Hessian(setup.objective(weight=lambda b: len(b["labels"]))) @ V
    assert distance(by_sample, Hessian(setup.objective()) @ V) > 1e-2


def test_modes_of_batchnorm_differ() -> None:
    batchnorms = [reference(f"batchnorm_{mode}")[2] for mode in ("eval", "train")]
    assert distance(*batchnorms) > 1e-2


# --------------------------------------------------------------------------- symmetry and dropout


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("sizes", [[8], [5, 3]], ids=["one batch", "two batches"])
def test_dropout_in_train_mode_is_one_symmetric_operator(sizes: list[int]) -> None:
    model = WithDropout().double()
    data = [(x.double(), y) for x, y in labelled(sizes)]
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss(), mode="train", seed=3)
    operator = Hessian(objective)
    U, V = probes(objective.space.size, 2).split(1, dim=1)
    HV, HU = operator @ V, operator @ U
    assert torch.equal(operator @ V, HV)  # the same mask again, whatever the global stream did
    torch.rand(3)
    assert torch.equal(Hessian(objective) @ V, HV)
    assert float(U.T @ HV) == pytest.approx(float(V.T @ HU), rel=1e-12)
    # It is the derivative of the gradient that the objective shows, so the masks agree there too.
    step = 1e-5
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            moved = copy.deepcopy(model)
            torch.nn.utils.vector_to_parameters(flat(model.parameters()) + sign * step * V[:, 0], moved.parameters())
            ends.append(Objective(moved, data, criterion=nn.CrossEntropyLoss(), mode="train", seed=3).gradient())
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), HV[:, 0], rtol=1e-6, atol=1e-8)


def test_dropout_masks_follow_the_seed() -> None:
    model = WithDropout().double()
    (x, y) = labelled([8])[0]
    values = {
        seed: Objective(model, (x.double(), y), criterion=nn.CrossEntropyLoss(), mode="train", seed=seed).value()
        for seed in (0, 1)
    }
    assert values[0] != values[1]


@pytest.mark.parametrize("name", ["lstm", "batchnorm_train", "transformer_encoder_layer"])
def test_operator_is_symmetric(name: str) -> None:
    operator = Hessian(build(name).objective())
    U, V = probes(operator.shape[0], 6).split(3, dim=1)
    torch.testing.assert_close(U.T @ (operator @ V), (V.T @ (operator @ U)).T, rtol=1e-11, atol=1e-13)


# --------------------------------------------------------------------------- selection of parameters


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.first(x).tanh())


SELECTIONS = {
    "pattern": (lambda m: "layers.*.weight", ["layers.0.weight", "layers.2.weight"]),
    "module": (lambda m: m.layers, ["layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"]),
    "parameter": (lambda m: m.first.bias, ["first.bias"]),
    "predicate": (lambda m: lambda name, p: p.ndim == 1, ["first.bias", "layers.0.bias", "layers.2.bias"]),
    "list": (lambda m: ["first.*", m.layers[2]], ["first.weight", "first.bias", "layers.2.weight", "layers.2.bias"]),
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selected_parameters_give_the_block_of_the_dense_hessian(selection: str) -> None:
    model, data = Nested().double(), [(x.double(), y) for x, y in labelled([6, 3])]
    params, expected_names = SELECTIONS[selection]
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss(), params=params(model))
    assert list(objective.space.names) == expected_names
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    H = dense_hessian(nn.functional.cross_entropy(model(x), y), selected(model))
    inside = flat([torch.full_like(p, name in expected_names) for name, p in model.named_parameters()]).bool()
    block = H[inside][:, inside]
    assert distance(Hessian(objective) @ torch.eye(len(block), dtype=block.dtype), block) <= 1e-12


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_a_tied_parameter_goes_by_either_name(name: str) -> None:
    objective = Objective(LanguageModel(), {}, loss_fn=lambda m, b: m.head.weight.sum(), params=name)
    assert objective.space.names == ("embed.weight",)


# --------------------------------------------------------------------------- wrappers


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("called_before", [False, True])
def test_compiled_modules_are_differentiated_twice(backend: str, called_before: bool) -> None:
    setup = build("uneven_batches")
    H = reference("uneven_batches")[2]
    compiled = torch.compile(setup.model, backend=backend)
    if called_before:
        compiled(setup.data[0][0]).sum().backward()
    V = probes(len(H), 2)
    found = Hessian(Objective(compiled, setup.data, criterion=nn.CrossEntropyLoss())) @ V
    assert distance(found, H @ V) <= 1e-12


def test_compiled_in_place_modules_are_differentiated_twice() -> None:
    setup = build("uneven_batches")
    H = reference("uneven_batches")[2]
    setup.model.compile(backend="aot_eager")
    setup.model(setup.data[0][0]).sum().backward()
    V = probes(len(H), 2)
    assert distance(Hessian(setup.objective()) @ V, H @ V) <= 1e-12


def test_reentrant_checkpointing_is_differentiated_twice() -> None:
    model = Checkpointed(use_reentrant=True)
    operator = Hessian(Objective(model, labelled([4]), criterion=nn.CrossEntropyLoss()))
    found = operator @ torch.ones(operator.shape[0])
    model.use_reentrant = False
    assert torch.equal(found, Hessian(operator.objective) @ torch.ones(operator.shape[0]))


@pytest.mark.parametrize("after", [lambda x: x, torch.square], ids=["linear", "curved"])
def test_operations_without_a_second_derivative_are_refused_by_name(after: Callable[[Tensor], Tensor]) -> None:
    """Torch itself is silent about both, and leaves their part out of the second derivative."""
    model = nn.Linear(2, 1)
    objective = Objective(model, [torch.ones(3, 2)], loss_fn=lambda m, x: after(Once.apply(m(x))).mean())
    operator = Hessian(objective, "retained")
    with pytest.raises(DoubleBackwardError, match="differentiate twice through Once"):
        operator @ torch.ones(3)


def test_fused_kernels_without_a_second_derivative_are_refused_with_advice() -> None:
    """The loss forces a fused attention kernel, whatever was arranged for it."""

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return nn.functional.scaled_dot_product_attention(model(x), model(x), model(x)).square().mean()

    operator = Hessian(Objective(nn.Linear(4, 4), [torch.ones(2, 1, 3, 4)], loss_fn=loss_fn, weight=len), "retained")
    with pytest.raises(DoubleBackwardError, match=r"differentiate twice, in the loss .*plain operations in its place"):
        operator @ torch.ones(20)


# --------------------------------------------------------------------------- scale, repetition, staleness


@pytest.mark.parametrize("name", ["mlp_cross_entropy", "uneven_batches"])
def test_scaling_the_loss_scales_value_gradient_and_products(name: str) -> None:
    setup, c = build(name), 37.5
    criterion = nn.CrossEntropyLoss()
    one, many = setup.objective(), setup.objective(criterion=lambda out, y: c * criterion(out, y))
    V = probes(one.space.size, 2)
    assert many.value() == pytest.approx(c * one.value(), rel=1e-13)
    torch.testing.assert_close(many.gradient(), c * one.gradient(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(Hessian(many) @ V, c * (Hessian(one) @ V), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sizes", [[6], [4, 2]])
def test_a_linear_loss_has_no_curvature(sizes: list[int]) -> None:
    model = nn.Linear(4, 1)
    objective = Objective(model, labelled(sizes), loss_fn=lambda m, b: m(b[0]).mean())
    assert torch.equal(Hessian(objective) @ torch.ones(5, 3), torch.zeros(5, 3))
    assert objective.gradient().abs().max() > 0


@pytest.mark.parametrize("name", ["mlp_cross_entropy", "uneven_batches"])
def test_constructing_twice_equals_once(name: str) -> None:
    setup = build(name)
    V = probes(setup.objective().space.size, 2)
    first = Hessian(setup.objective())
    before = first @ V
    second = Hessian(setup.objective())
    assert torch.equal(second @ V, before)
    assert torch.equal(first @ V, before)
    assert all(p.grad is None for p in setup.model.parameters())


def _in_place(p: nn.Parameter) -> None:
    with torch.no_grad():
        p.mul_(1.5)


def _through_data(p: nn.Parameter) -> None:
    p.data.mul_(1.5)


def _replaced_data(p: nn.Parameter) -> None:
    p.data = p.data * 1.5


@pytest.mark.parametrize(
    ("change", "selection"),
    [
        (_in_place, None),
        (_through_data, None),
        (_replaced_data, None),
        (_in_place, "0.*"),
        (_replaced_data, "0.*"),
    ],
)
def test_the_operator_follows_the_parameters(change: Callable[[nn.Parameter], None], selection: str | None) -> None:
    """Also when the parameter that changed is not among those selected, and however the selected were written."""
    setup = build("mlp_cross_entropy")
    operator = Hessian(setup.objective(params=selection))
    V = probes(operator.shape[0], 1)
    before = operator @ V
    change(setup.model[2].weight)
    expected = Hessian(setup.objective(params=selection)) @ V
    assert distance(expected, before) > 1e-2
    assert torch.equal(operator @ V, expected)


def test_products_at_other_values_than_the_live_ones() -> None:
    setup = build("mlp_cross_entropy")
    objective = setup.objective()
    operator = Hessian(objective)
    V = probes(operator.shape[0], 2)
    live = operator @ V
    moved = copy.deepcopy(setup.model)
    with torch.no_grad():
        for p in moved.parameters():
            p.mul_(1.5)
    at = dict(zip(setup.model.parameters(), [p.detach() for p in moved.parameters()], strict=True))
    with objective.isolated(at=at):
        there = operator @ V
    assert torch.equal(operator @ V, live)
    assert torch.equal(there, Hessian(Objective(moved, setup.data, criterion=nn.CrossEntropyLoss())) @ V)


def test_unflatten_undoes_flatten() -> None:
    model = DeepProduct([torch.randn(3, 2), torch.randn(4, 3)])
    space = Objective(model, [torch.ones(1)], loss_fn=lambda m, b: m().sum()).space
    vector = torch.randn(space.size)
    assert torch.equal(space.flatten(space.unflatten(vector)), vector)
    assert [tuple(t.shape) for t in space.unflatten(vector)] == [(3, 2), (4, 3)]


class _FinelyRounded(nn.Module):
    """Fake quantisation that knows float32 only, as torch's observers do: its gradient is a staircase."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        w = self.linear.weight
        return x @ (w + (torch.round(100 * w) / 100 - w).detach()).T.tanh()


def test_what_could_not_be_told_is_noted_with_the_reason() -> None:
    torch.manual_seed(0)
    H = Hessian(Objective(_FinelyRounded(), (torch.randn(8, 4), torch.randn(8, 3)), criterion=nn.MSELoss()))
    _ = H @ torch.randn(H.shape[0])
    assert H.note.startswith("unverified: differences of the gradient do not settle (v'Hv by double backward is ")
    plain = Hessian(Objective(nn.Linear(4, 3), (torch.randn(8, 4), torch.randn(8, 3)), criterion=nn.MSELoss()))
    _ = plain @ torch.randn(plain.shape[0])
    assert plain.note == ""
