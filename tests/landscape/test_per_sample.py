"""Weights per sample, against losses and dense Hessians that are written out by hand, sample by sample."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape_cases import IGNORED, build, dense_hessian, flat, joined, labelled, mlp, reference, selected
from losscope.landscape import Hessian, LossError, NonFiniteError, Objective, SettingError, top_eigenpairs, trace
from losscope.landscape.per_sample import find_terms
from losscope.landscape.stability import minibatch_index

F64 = torch.float64


def factors(n: int) -> Tensor:
    """Weights with zeros, ones and negative ones among them."""
    w = torch.randn(n, generator=torch.Generator().manual_seed(5), dtype=torch.float32).to(F64)
    w[::4], w[1::4] = 0, 1
    return w


def at_labels(logp: Tensor, y: Tensor) -> Tensor:
    return -logp[torch.arange(len(y)), y]


def log_softmax_of(model: nn.Module, batches: list) -> tuple[Tensor, Tensor]:
    """Every batch seen alone, then laid end to end."""
    return torch.cat([model(x) for x, _ in batches]).log_softmax(dim=1), torch.cat([y for _, y in batches])


def plain_terms(model: nn.Module, batches: Any) -> Tensor:
    logp, y = log_softmax_of(model, batches if isinstance(batches, list) else [batches])
    return at_labels(logp, y) / len(y)


def summed_terms(model: nn.Module, batches: list) -> Tensor:
    return at_labels(*log_softmax_of(model, batches))


def class_weighted_terms(model: nn.Module, batches: list) -> Tensor:
    logp, y = log_softmax_of(model, batches)
    w = torch.tensor([1.0, 4.0, 0.25], dtype=F64)[y]
    return w * at_labels(logp, y) / w.sum()


def smoothed_terms(model: nn.Module, batches: list) -> Tensor:
    logp, y = log_softmax_of(model, batches)
    return (0.9 * at_labels(logp, y) - 0.1 * logp.mean(dim=1)) / len(y)


def squared_terms(model: nn.Module, batches: list) -> Tensor:
    x, y = joined(batches)
    return 0.5 * (model(x) - y).square().sum(dim=1) / len(x)


def token_terms(model: nn.Module, batches: list) -> Tensor:
    """One sample per token, with none left out; the denominator counts those that are not ignored."""
    logp = torch.cat([model(b["input_ids"]).flatten(0, 1) for b in batches]).log_softmax(dim=1)
    y = torch.cat([b["labels"].flatten() for b in batches])
    counted = y != IGNORED
    return torch.where(counted, at_labels(logp, y.clamp(min=0)), 0.0) / counted.sum()


TERMS: dict[str, Callable[[nn.Module, Any], Tensor]] = {
    "mlp_cross_entropy": plain_terms,
    "uneven_batches": plain_terms,
    "sum_reduction": summed_terms,
    "class_weights": class_weighted_terms,
    "functional_label_smoothing": smoothed_terms,
    "multi_output_regression": squared_terms,
    "token_weights_criterion": token_terms,
    "batchnorm_eval": plain_terms,
    "batchnorm_train": plain_terms,
    "batchnorm_train_frozen": plain_terms,
    "scaled_dot_product_attention": lambda model, batches: plain_terms(model.by_hand, batches),
    "checkpointing": plain_terms,
}


def terms_by_hand(name: str) -> tuple[nn.Module, Tensor]:
    setup = build(name)
    model = copy.deepcopy(setup.model)
    model.train(setup.options.get("mode") == "train")
    return model, TERMS[name](model, setup.data)


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("name", TERMS)
def test_weighted_objectives_match_the_terms_written_by_hand(name: str, dtype: torch.dtype) -> None:
    model, terms = terms_by_hand(name)
    w = factors(len(terms))
    loss = w @ terms
    H = dense_hessian(loss, selected(model))
    objective = build(name, dtype).objective().weighted(w)
    rtol = {F64: 1e-11, torch.float32: 1e-5}[dtype]
    value, gradient = objective.value_and_gradient()
    assert [value, objective.value()] == pytest.approx([float(loss.detach())] * 2, rel=10 * rtol)
    expected = flat(torch.autograd.grad(loss, selected(model), materialize_grads=True))
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=rtol * float(expected.abs().max()))
    found = Hessian(objective) @ torch.eye(len(H), dtype=dtype)
    torch.testing.assert_close(found.double(), H, rtol=0, atol=rtol * float(H.abs().max()))


@pytest.mark.parametrize("name", TERMS)
def test_weights_of_one_change_nothing(name: str) -> None:
    value, gradient, H = reference(name)
    objective = build(name).objective()
    objective = objective.weighted(torch.ones(len(terms_by_hand(name)[1])))
    assert objective.value() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(objective.gradient(), gradient, rtol=1e-11, atol=1e-13)
    found = Hessian(objective) @ torch.eye(len(H), dtype=F64)
    torch.testing.assert_close(found, H, rtol=0, atol=1e-12 * float(H.abs().max()))


@pytest.mark.parametrize("name", ["uneven_batches", "class_weights", "batchnorm_train"])
def test_hessians_of_the_classes_add_up_to_the_whole(name: str) -> None:
    H = reference(name)[2]
    setup = build(name)
    y = torch.cat([labels for _, labels in setup.data])
    eye = torch.eye(len(H), dtype=F64)
    parts = [Hessian(setup.objective().weighted(y == c)) @ eye for c in range(3)]
    torch.testing.assert_close(sum(parts), H, rtol=0, atol=1e-12 * float(H.abs().max()))
    assert all((part - H).norm() > 0.01 * H.norm() for part in parts)


def test_dropout_masks_are_those_of_the_whole_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)).double()
    data = [(x.double(), y) for x, y in labelled([5, 3])]
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss(), mode="train", seed=2)
    halves = [objective.weighted(mask) for mask in (torch.arange(8) < 6, torch.arange(8) >= 6)]
    assert sum(half.value() for half in halves) == pytest.approx(objective.value(), rel=1e-12)
    V = torch.randn(objective.space.size, 2, dtype=F64)
    torch.testing.assert_close(sum(Hessian(half) @ V for half in halves), Hessian(objective) @ V)


def test_a_batch_of_padding_alone_takes_its_share_of_the_weights() -> None:
    setup = build("token_weights_criterion")
    nothing = {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "labels": torch.full((2, 3), IGNORED)}
    w = factors(15 + 6 + 6)
    plain = setup.objective().weighted(w)
    setup.data.insert(1, nothing)
    padded = setup.objective().weighted(torch.cat([w[:15], torch.full((6,), 7.0, dtype=F64), w[15:]]))
    assert len(padded.batches) == 3
    assert padded.value() == pytest.approx(plain.value(), rel=1e-13)


def test_weights_stay_with_the_samples_in_snapshots_and_multiply() -> None:
    setup = build("uneven_batches")
    w = factors(15)
    objective = setup.objective().weighted(w)
    again = objective.snapshot(3)
    again.check()
    assert again.value() == objective.value()
    assert again.weighted(w).value() == pytest.approx(setup.objective().weighted(w * w).value(), rel=1e-13)
    assert setup.objective().value() == pytest.approx(reference("uneven_batches")[0])  # the original has none
    assert objective.samples == 15
    assert torch.equal(torch.cat([b.sample_weights for b in objective.batches]), w)
    assert all(b.sample_weights is None for b in setup.objective().batches)


def test_a_one_shot_loader_is_read_once_for_all_weights() -> None:
    setup = build("uneven_batches")
    objective = setup.objective()
    objective.data = iter(setup.data)
    masks = [torch.arange(15) % 2 == r for r in range(2)]
    assert sum(objective.weighted(m).value() for m in masks) == pytest.approx(reference("uneven_batches")[0])


def test_solvers_take_weighted_objectives() -> None:
    model, terms = terms_by_hand("uneven_batches")
    w = factors(15)
    H = dense_hessian(w @ terms, selected(model))
    operator = Hessian(build("uneven_batches").objective().weighted(w))
    assert float(top_eigenpairs(operator, seed=0).values) == pytest.approx(
        float(torch.linalg.eigvalsh(H)[-1]), rel=1e-3
    )
    found = trace(operator, rtol=1e-9, seed=0)
    assert found.value == pytest.approx(float(H.trace()), rel=1e-9)


def test_mini_batches_keep_the_weights_of_their_samples() -> None:
    """At batch size 1, the mean over samples of the squared norms of weighted gradients; nearly all are drawn."""
    setup = build("mlp_cross_entropy")
    w = factors(12)
    norms = []
    for i, c in enumerate(w):
        x, y = setup.data
        loss = c * at_labels(setup.model(x[i : i + 1]).log_softmax(dim=1), y[i : i + 1])
        norms.append(float(flat(torch.autograd.grad(loss, selected(setup.model))).square().sum()))
    objective = setup.objective().weighted(w)
    found = minibatch_index(objective, 1, loss=0.5, rtol=1e-3, max_draws=2000, seed=0)
    assert found.value == pytest.approx(sum(norms) / 12, abs=4 * found.stderr)
    assert found.stderr < 0.1 * found.value


# --------------------------------------------------------------------------- criteria

N = 6
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
POSITIVE = torch.rand(N, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
OUTPUTS = torch.randn(N, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
CLASSES = torch.tensor([1.0, 3.0, 0.5], dtype=F64)
PIXELS = torch.randn(N, 3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
PIXEL_LABELS = torch.randint(3, (N, 4, 2), generator=torch.Generator().manual_seed(0))
SIGMOID = OUTPUTS.sigmoid()


def focal(out: Tensor, y: Tensor) -> Tensor:
    return ((1 - out.softmax(1)[torch.arange(len(y)), y]) ** 2 * F.cross_entropy(out, y, reduction="none")).mean()


class OwnMean(nn.CrossEntropyLoss):
    """Says it has a reduction, and takes its mean all the same."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input, target, reduction="none").mean()


def branching(out: Tensor, y: Tensor) -> Tensor:
    """Cannot be vectorised: Python decides on the numbers."""
    return torch.stack([o.square().sum() if float(o.sum().detach()) > 0 else o.abs().sum() for o in out]).mean()


CRITERIA: dict[str, tuple[Any, Any, Any]] = {
    "ignored": (nn.CrossEntropyLoss(ignore_index=1), OUTPUTS, LABELS),
    "ignored class weights": (nn.CrossEntropyLoss(weight=CLASSES, ignore_index=1), OUTPUTS, LABELS),
    "smoothed class weights": (nn.CrossEntropyLoss(weight=CLASSES, label_smoothing=0.2), OUTPUTS, LABELS),
    "all three": (nn.CrossEntropyLoss(CLASSES, ignore_index=2, label_smoothing=0.2), OUTPUTS, LABELS),
    "pixels": (nn.CrossEntropyLoss(ignore_index=0), PIXELS, PIXEL_LABELS),
    "weighted pixels": (nn.CrossEntropyLoss(weight=CLASSES), PIXELS, PIXEL_LABELS),
    "soft targets": (nn.CrossEntropyLoss(weight=CLASSES), OUTPUTS, POSITIVE),
    "soft pixels": (nn.CrossEntropyLoss(), PIXELS, PIXELS.softmax(1).flip(0)),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), OUTPUTS, LABELS),
    "nll": (nn.NLLLoss(weight=CLASSES), OUTPUTS.log_softmax(1), LABELS),
    "mse": (nn.MSELoss(), OUTPUTS, POSITIVE),
    "huber": (nn.HuberLoss(), PIXELS, PIXELS.flip(0)),
    "smooth l1": (nn.SmoothL1Loss(beta=0.3), OUTPUTS, POSITIVE),
    "l1": (nn.L1Loss(), OUTPUTS, POSITIVE),
    "bce": (nn.BCELoss(), SIGMOID, POSITIVE),
    "bce logits": (nn.BCEWithLogitsLoss(pos_weight=CLASSES), OUTPUTS, POSITIVE),
    "one logit": (nn.BCEWithLogitsLoss(), OUTPUTS[:, 0], POSITIVE[:, 0]),
    "kl": (nn.KLDivLoss(reduction="batchmean"), OUTPUTS.log_softmax(1), POSITIVE),
    "kl of all entries": (nn.KLDivLoss(), OUTPUTS.log_softmax(1), POSITIVE),
    "functional": (F.cross_entropy, OUTPUTS, LABELS),
    "functional mse": (F.mse_loss, OUTPUTS, POSITIVE),
    "partial": (functools.partial(F.cross_entropy, weight=CLASSES, label_smoothing=0.1), OUTPUTS, LABELS),
    "partial sum": (functools.partial(F.mse_loss, reduction="sum"), OUTPUTS, POSITIVE),
    "lambda": (lambda out, y: F.cross_entropy(out, y), OUTPUTS, LABELS),
    "lambda sum": (lambda out, y: (out - y).square().sum(), OUTPUTS, POSITIVE),
    "focal": (focal, OUTPUTS, LABELS),
    "own mean": (OwnMean(), OUTPUTS, LABELS),
    "branching": (branching, OUTPUTS, LABELS),
    "heads": (lambda out, y: F.mse_loss(out["a"], y) + out["b"].mean(), {"a": OUTPUTS, "b": OUTPUTS[:, 0]}, POSITIVE),
    "no targets": (lambda out, _: out.square().mean(), OUTPUTS, None),
    "flattened inside": (lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()), PIXELS[:, 0, :, :].flatten(2),
                         PIXEL_LABELS[:, :, 0] % 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", CRITERIA)
def test_terms_add_up_and_each_belongs_to_its_sample(kind: str) -> None:
    """The term of a sample is what changes in the total when that sample changes, the denominators being constant."""
    criterion, outputs, targets = CRITERIA[kind]
    terms = find_terms(criterion, outputs, targets, N)
    found = terms(outputs, targets)
    assert found.shape == (N,)
    assert float(found.sum()) == pytest.approx(float(criterion(outputs, targets)), rel=1e-12)
    leaves = outputs if isinstance(outputs, dict) else {"": outputs}
    leaves = {key: leaf.clone().requires_grad_() for key, leaf in leaves.items()}
    inside = leaves if isinstance(outputs, dict) else leaves[""]
    expected = torch.autograd.grad(criterion(inside, targets), list(leaves.values()))
    w = factors(N)
    weighted = torch.autograd.grad(w @ terms(inside, targets), list(leaves.values()))
    for one, other in zip(weighted, expected, strict=True):
        torch.testing.assert_close(one, w.reshape(-1, *[1] * (other.ndim - 1)) * other, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("sizes", [[8], [5, 3]], ids=["one batch", "two batches"])
@pytest.mark.parametrize("criterion", [focal, branching], ids=["vectorised", "one by one"])
def test_criteria_taken_apart_by_samples_have_hessians(criterion: Any, sizes: list[int]) -> None:
    model, data = mlp(4, 5, 3).double(), [(x.double(), y) for x, y in labelled(sizes)]
    objective = Objective(model, data, criterion=criterion)
    V = torch.randn(objective.space.size, 2, dtype=F64)
    pieces = [Hessian(objective.weighted(torch.arange(8) % 3 == r)) @ V for r in range(3)]
    torch.testing.assert_close(sum(pieces), Hessian(objective) @ V, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", ["all three", "partial", "pixels", "mse", "lambda"])
def test_terms_can_be_traced_by_the_compiler(kind: str) -> None:
    criterion, outputs, targets = CRITERIA[kind]
    terms = find_terms(criterion, outputs, targets, N)
    compiled = torch.compile(lambda out: terms(out, targets), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(outputs), terms(outputs, targets))


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), r"the data has 15 samples in 3 batches, got 3 weights"),
        (torch.ones(16), r"the data has 15 samples in 3 batches, got 16 weights"),
        (torch.ones(15, 1), r"tensor of shape \(N,\), one per sample of the data; got tensor \(15, 1\)"),
        ([1.0] * 15, r"got list"),
        (torch.ones(15, dtype=torch.complex64), r"must be a real tensor"),
        (torch.ones(15).index_fill(0, torch.tensor(4), float("nan")), r"that of sample 4 is nan"),
        (torch.ones(15).index_fill(0, torch.tensor(2), float("-inf")), r"that of sample 2 is -inf"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build("uneven_batches").objective().weighted(weights)


def test_a_loss_fn_is_refused_with_advice() -> None:
    with pytest.raises(LossError, match=r"a loss_fn hides it: pass criterion="):
        build("tied_weights").objective().weighted(torch.ones(12))


def contrastive(out: Tensor, y: Tensor) -> Tensor:
    return (out @ out.T).logsumexp(dim=1).mean()


def mean_of_counted_tokens(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, ignore_index=1)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (contrastive, r"does not add over samples.*add up to"),
        (mean_of_counted_tokens, r"does not add over samples.*torch's own, with its reduction="),
        (lambda out, y: out.square().mean().sqrt(), r"does not add over samples"),
    ],
)
def test_criteria_that_compare_samples_are_refused(criterion: Any, message: str) -> None:
    with pytest.raises(LossError, match=message):
        find_terms(criterion, OUTPUTS, LABELS, N)


def test_outputs_that_are_not_one_per_sample_are_refused() -> None:
    data = (torch.ones(4, 3), torch.ones(4, 2))
    objective = Objective(nn.Linear(3, 2), data, criterion=lambda out, y: out.mean(), forward=lambda m, b: m(b[0])[:2])
    with pytest.raises(LossError, match=r"have 2 entries for 4 in the targets"):
        objective.weighted(torch.ones(4))
    with pytest.raises(LossError, match=r"first dimension of the outputs; these are tensor \(\)"):
        find_terms(lambda out, y: out, torch.ones(()), None, 4)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    objective = Objective(nn.Linear(2, 1), (torch.full((3, 2), torch.inf), torch.ones(3, 1)), criterion=nn.MSELoss())
    with pytest.raises(NonFiniteError, match=r"the criterion is (inf|nan) here"):
        objective.weighted(torch.ones(3))
