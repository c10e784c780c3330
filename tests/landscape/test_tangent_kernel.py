"""The tangent kernel: each form by each method against Jacobians made row by row in float64; against GaussNewton."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import GaussNewton, LossError, NonFiniteError, Objective, SettingError, tangent_kernel
from losscope.landscape.kernels import layer_jacobians
from losscope.landscape.tangent import EmpiricalKernel
from losscope.landscape.tangent_contraction import fewest_passes
from losscope.landscape.tangent_jacobians import SampleJacobians
from probe_cases import MODELS, everything

FORMS = ("full", "trace", "logits")


class Tied(nn.Module):
    """Integer inputs; an embedding that is the output layer as well, and a parameter that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(7, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.places = nn.Parameter(torch.randn(4, 5))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.embed(tokens) + self.places)).mean(dim=1))


class TiedByHand(Tied):
    """The same without the layer's being called, and a layer that is called twice."""

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.inner(torch.tanh(self.inner(self.embed(tokens) + self.places))))
        return F.linear(h.mean(dim=1), self.embed.weight)


def layers() -> nn.Module:
    """Convolutions of every kind, normalisations, operations in place."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", groups=2), nn.GELU(),
        nn.Conv2d(4, 6, (3, 2), stride=2, dilation=(1, 2), padding=1, padding_mode="circular"), nn.GroupNorm(2, 6),
        nn.ReLU(inplace=True), nn.ConvTranspose2d(6, 3, 2), nn.PReLU(3), nn.Flatten(2), nn.Conv1d(3, 4, 3, bias=False),
        nn.InstanceNorm1d(4, affine=True), nn.Flatten(), nn.LayerNorm(92), nn.Linear(92, 3),
    )  # fmt: skip


def batch_norms() -> nn.Module:
    """In eval mode, with statistics that are not those of a fresh layer."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.normal_(model[1].running_mean)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    name: (make, functools.partial(torch.randn, 6, *shape)) for name, (make, shape) in MODELS.items() if name != "fused"
}
CASES |= {
    "tied": (Tied, lambda: torch.randint(7, (6, 4))), "tied by hand": (TiedByHand, lambda: torch.randint(7, (6, 4))),
    "layers": (layers, lambda: torch.randn(6, 2, 7, 8)), "batch norms": (batch_norms, lambda: torch.randn(6, 6)),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, x = (make() for make in CASES[name])
    return model.double().eval(), x.double() if x.is_floating_point() else x


def objective(model: nn.Module, x: Tensor, sizes: tuple[int, ...] = (4, 2), **options) -> Objective:
    batches = [(part, torch.zeros(len(part))) for part in x.split(list(sizes))]
    return Objective(model, batches, criterion=lambda z, _: z.square().mean(), **options)


def dense(model: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """``J J'``, one backward pass for each output of each sample, and n."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(len(x)):
        for output in model(x[i : i + 1]).reshape(-1):
            found = torch.autograd.grad(output, parameters, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([g.reshape(-1) for g in found]))
    J = torch.stack(rows)
    return J @ J.T, len(x)


def expected(kernel: Tensor, samples: int, form: str) -> Tensor:
    blocks = kernel.view(samples, -1, samples, len(kernel) // samples)
    outputs = blocks.shape[1]
    if form == "trace":
        return torch.stack([blocks[:, c, :, c] for c in range(outputs)]).mean(dim=0)
    return kernel if form == "full" else blocks.sum(dim=(1, 3)) / outputs


def distance(found: Tensor, reference: Tensor) -> float:
    return float((found - reference).norm() / reference.norm())


# --------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("name", CASES)
def test_every_form_and_method_equals_the_dense_kernel(name: str) -> None:
    model, x = build(name)
    whole, samples = dense(model, x)
    for form in FORMS:
        reference = expected(whole, samples, form)
        for method in ("auto", "contraction", "products"):
            if (name, method) == ("once", "products"):
                continue  # which need two derivatives
            found = tangent_kernel(objective(model, x), form=form, method=method)
            assert distance(found.matrix, reference) < 1e-13, (form, method)
            assert torch.equal(found.matrix, found.matrix.T)
            assert (found.samples, found.outputs, found.error) == (samples, len(whole) // samples, 0)
            assert found.method == ("products" if method == "products" else "contraction")
            assert found.smallest > -1e-12 * float(reference.norm())


@pytest.mark.parametrize("name", CASES)
def test_the_same_output_by_output(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As what comes back for large layers is taken, and in place of that for small ones."""
    model, x = build(name)
    whole, samples = dense(model, x)
    monkeypatch.setattr(layer_jacobians, "_SMALL", 0)
    for form in FORMS:
        found = tangent_kernel(objective(model, x), form=form, method="contraction")
        assert distance(found.matrix, expected(whole, samples, form)) < 1e-13, form


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["cnn", "lstm", "layers"])
def test_the_same_in_little_memory(name: str, form: str) -> None:
    model, x = build(name)
    whole, samples = dense(model, x)
    reference = expected(whole, samples, form)
    memory = 16 * reference.numel() + 60 * 8 * len(whole)
    bound = objective(model, x)
    with bound.isolated():
        rows = torch.eye(len(whole) // samples, dtype=torch.float64)
        assert len(fewest_passes(SampleJacobians(bound, rows), form, samples, 60 * 8 * len(whole))) > 1
    found = tangent_kernel(bound, form=form, method="contraction", memory=memory)
    assert distance(found.matrix, reference) < 1e-13


def test_single_precision() -> None:
    for name in ("cnn", "transformer", "tied"):
        model, x = build(name)
        reference = expected(*dense(model, x), "trace")
        single = objective(model.float(), x.float() if x.is_floating_point() else x)
        for method in ("contraction", "products"):
            assert distance(tangent_kernel(single, method=method).matrix, reference) < 2e-6


def test_parameters_that_are_chosen() -> None:
    model, x = build("cnn")
    for p in (*model[0].parameters(), *model[1].parameters()):  # type: ignore[index]
        p.requires_grad_(False)
    reference, _ = dense(model, x)
    for p in model.parameters():
        p.requires_grad_(True)
    names = [name for name, _ in model.named_parameters() if name.split(".")[0] not in ("0", "1")]
    found = tangent_kernel(objective(model, x, params=names), form="full")
    assert distance(found.matrix, reference) < 1e-13


def test_which_parameters_need_single_samples() -> None:
    left = {"tied": {"places"}, "tied by hand": {"places", "embed.weight"}, "cnn": set(), "batch norms": set()}
    for name, names in left.items():
        bound = objective(*build(name))
        with bound.isolated():
            outputs = len(bound.outputs(0)[0])
            alone = SampleJacobians(bound, torch.eye(outputs, dtype=torch.float64)).alone
        assert {bound.space.names[i] for i in alone} == names


def test_spectrum_of_the_gauss_newton_matrix() -> None:
    """Half the squared error, a mean over samples: the non-zero eigenvalues of G are those of Theta / n."""
    for name in ("mlp", "cnn", "lstm", "transformer"):
        model, x = build(name)
        samples, outputs = len(x), model(x).shape[1]
        y = torch.randn(samples, outputs, dtype=torch.float64)
        bound = Objective(model, (x, y), criterion=lambda z, y: 0.5 * (z - y).square().sum(dim=1).mean())
        G = GaussNewton(bound) @ torch.eye(bound.space.size, dtype=torch.float64)
        side = samples * outputs
        of_G = torch.linalg.eigvalsh((G + G.T) / 2).flip(0)[:side]
        of_kernel = tangent_kernel(bound, form="full").eigenvalues.flip(0) / samples
        most = min(side, bound.space.size)
        torch.testing.assert_close(of_G[:most], of_kernel[:most], rtol=1e-5, atol=1e-12 * float(of_G[0]))


class Routed(nn.Module):
    """Each sample goes through one of two experts, by the sign of its first entry."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_zeros(len(x), 3)
        for expert, of_it in zip(self.experts, (x[:, 0] > 0, x[:, 0] <= 0), strict=True):
            chosen = of_it.nonzero()[:, 0]
            if len(chosen):
                out = out.index_add(0, chosen, expert(x[chosen]).tanh())
        return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other", [[0, 2], [6, 7], [9, 10, 11]])
def test_experts_that_get_some_of_the_samples(form: str, other: list[int]) -> None:
    """The samples that are tried may all go to one of them, as if it were a layer of all."""
    x = torch.randn(12, 4, dtype=torch.float64)
    x[:, 0] = x[:, 0].abs() + 0.1
    x[other, 0] *= -1
    bound = objective(Routed().double(), x, (8, 4))
    kernels = [tangent_kernel(bound, form=form, method=method).matrix for method in ("contraction", "products")]
    assert distance(*kernels) < 1e-12


class InTwoTypes(nn.Module):
    """A single-precision body, and a head of double precision."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(4, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(1).tanh().double())


@pytest.mark.parametrize("body", [nn.Linear(6, 4), nn.Conv1d(2, 4, 3), nn.Conv1d(2, 4, 3, groups=2)])
@pytest.mark.parametrize("form", FORMS)
def test_weights_of_several_types(form: str, body: nn.Module) -> None:
    x = torch.randn(6, 6) if isinstance(body, nn.Linear) else torch.randn(6, 2, 3)
    bound = objective(InTwoTypes(body), x)
    kernels = [tangent_kernel(bound, form=form, method=method).matrix for method in ("contraction", "products")]
    assert distance(*kernels) < 1e-6


# --------------------------------------------------------------------------- projections


@pytest.mark.parametrize("form", FORMS)
def test_the_error_of_projections_is_what_is_stated(form: str) -> None:
    """Over seeds, its mean square is that of the error made; hardly any draw errs by twice as much."""
    model, x = build("mlp")
    reference = expected(*dense(model, x), form)
    made, stated = [], []
    for seed in range(60):
        found = tangent_kernel(objective(model, x), form=form, method="projection", projections=100, seed=seed)
        made.append(distance(found.matrix, reference) ** 2)
        stated.append(found.error**2)
    assert 0.75 < sum(stated) / sum(made) < 1.33
    assert sum(a > 4 * b for a, b in zip(made, stated, strict=True)) <= 3


def test_more_projections_err_less_and_seeds_repeat() -> None:
    bound = objective(*build("cnn"))
    few, many = (tangent_kernel(bound, method="projection", projections=m, seed=0) for m in (50, 800))
    assert many.error == pytest.approx(few.error / 4, rel=0.3)
    assert torch.equal(few.matrix, tangent_kernel(bound, method="projection", projections=50, seed=0).matrix)


# --------------------------------------------------------------------------- samples that mix


def test_batch_statistics_take_products() -> None:
    model, x = build("batch norms")
    model.train()
    bound = objective(model, x, (6,), mode="train")
    found = tangent_kernel(bound, form="full")
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(f, parameters, retain_graph=True) for f in model(x).reshape(-1)]
    J = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    assert found.method == "products" and "depend on the others" in found.note
    assert distance(found.matrix, J @ J.T) < 1e-12
    with pytest.raises(LossError, match=r'depend on the others.*method="products".*mode="eval"'):
        tangent_kernel(bound, method="contraction")


def test_dropout_takes_products() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double().train()
    x = torch.randn(12, 6, dtype=torch.float64)
    assert tangent_kernel(objective(model, x, (12,), mode="train")).method == "products"
    assert tangent_kernel(objective(model, x, (12,))).method == "contraction"


# --------------------------------------------------------------------------- bad input


def test_settings_that_mean_nothing() -> None:
    bound = objective(*build("mlp"))
    options = ({"form": "half"}, {"method": "magic"}, {"projections": 1}, {"projections": 2.5}, {"memory": 0})
    for option in options:
        with pytest.raises(SettingError, match=next(iter(option))):
            tangent_kernel(bound, **option)


def test_what_does_not_fit_says_so_with_the_way_out() -> None:
    bound = objective(*build("mlp"))
    with pytest.raises(SettingError, match=r'18 x 18 and takes 5184 bytes, and memory=1000; .*form="trace"'):
        tangent_kernel(bound, form="full", memory=1000)
    with pytest.raises(SettingError, match="one parameter's derivatives of 6 samples with 3 outputs"):
        tangent_kernel(bound, form="full", memory=5200, method="contraction")


def test_outputs_that_have_no_kernel() -> None:
    model, x = build("mlp")
    data = (x, torch.zeros(6))
    with pytest.raises(LossError, match="not loss_fn="):
        tangent_kernel(Objective(model, data, loss_fn=lambda m, b: m(b[0]).sum()))
    two = Objective(model, data, criterion=nn.MSELoss(), forward=lambda m, b: (m(b[0]), m(b[0])))
    with pytest.raises(LossError, match="single floating-point tensor"):
        tangent_kernel(two)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")  # type: ignore[index]
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        tangent_kernel(Objective(model, data, criterion=nn.MSELoss()))


def test_nothing_is_left_behind() -> None:
    model, x = build("cnn")
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()
    model[0].register_forward_hook(lambda m, i, o: 2 * o)  # type: ignore[index]
    before = everything(model, optimizer)
    found = tangent_kernel(objective(model, x))
    assert everything(model, optimizer) == before
    assert isinstance(found, EmpiricalKernel) and "trace, 6 samples, 3 outputs" in repr(found)
    reference = expected(*dense(model.eval(), x), "trace")
    assert distance(found.matrix, reference) < 1e-13  # with the user's hook
