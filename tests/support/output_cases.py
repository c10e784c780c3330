"""Models whose loss is written by hand as a function of their outputs: the oracle of Gauss-Newton and Fisher tests.

The dense Jacobian is made row by row with torch.autograd, the dense Hessian in the outputs by ``torch.func.hessian``
of the handwritten loss. Nothing is shared with the package.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import landscape_cases
from landscape_cases import IGNORED, LanguageModel, Setup, flat, labelled, mlp, padded, selected

SHARED = (
    "mlp_cross_entropy",
    "uneven_batches",
    "sum_reduction",
    "class_weights",
    "functional_label_smoothing",
    "multi_output_regression",
    "frozen_parameters",
    "unused_parameters",
    "token_weights_criterion",
    "batchnorm_eval",
    "batchnorm_train",
    "batchnorm_train_frozen",
    "spectral_norm_eval",
    "scaled_dot_product_attention",
    "multihead_attention",
    "transformer_encoder_layer",
)
"""Cases of `landscape_cases` whose total calls the model on its inputs and uses the outputs alone."""

CASES: dict[str, Callable[[], Setup]] = {name: landscape_cases.CASES[name] for name in SHARED}


def case(make: Callable[[], Setup]) -> Callable[[], Setup]:
    CASES[make.__name__] = make
    return make


def build(name: str, dtype: torch.dtype = torch.float64) -> Setup:
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        setup = CASES[name]()
    cast = landscape_cases.cast
    return Setup(cast(setup.model, dtype), cast(setup.data, dtype), setup.total, cast(setup.options, dtype))


# --------------------------------------------------------------------------- the oracle


class Replay:
    """Stands in for the model in a handwritten total, and returns outputs that are given."""

    def __init__(self, outputs: list[Tensor], lengths: list[int]) -> None:
        self.outputs, self.lengths = list(outputs), lengths
        self.by_hand = self

    def __call__(self, x: Tensor) -> Any:
        if len(self.lengths) > 1 and len(x) == sum(self.lengths):
            return torch.cat(self.outputs)
        return self.outputs.pop(0)


@dataclass
class Dense:
    """Everything by construction: outputs z of all batches in one vector, J (m, n), the Hessian in z (m, m)."""

    z: Tensor
    J: Tensor
    H: Tensor
    total: Callable[[Tensor], Tensor]

    @property
    def G(self) -> Tensor:
        return self.J.T @ self.H @ self.J


def batches_of(setup: Setup) -> list[Any]:
    return setup.data if isinstance(setup.data, list) else [setup.data]


def inputs_of(batch: Any) -> Tensor:
    return batch["input_ids"] if isinstance(batch, dict) else batch[0]


def dense_jacobian(z: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    rows = [flat(torch.autograd.grad(a, parameters, retain_graph=True, materialize_grads=True)) for a in z]
    return torch.stack(rows)


@functools.cache
def dense(name: str) -> Dense:
    """In float64, for a model that returns one tensor per batch."""
    setup = build(name)
    model = copy.deepcopy(setup.model)
    mode = setup.options.get("mode", "eval")
    for module in model.modules():
        frozen = mode == "train_frozen" and isinstance(module, nn.modules.batchnorm._NormBase)
        module.training = mode != "eval" and not frozen
    batches = batches_of(setup)
    outputs = [model(inputs_of(batch)) for batch in batches]
    z = flat(outputs)
    J = dense_jacobian(z, selected(model))
    sizes = [o.numel() for o in outputs]

    def total(vector: Tensor) -> Tensor:
        pieces = [piece.view(o.shape) for piece, o in zip(vector.split(sizes), outputs, strict=True)]
        return setup.total(Replay(pieces, [len(inputs_of(batch)) for batch in batches]), setup.data)

    return Dense(z.detach(), J, torch.func.hessian(total)(z.detach()), total)


# --------------------------------------------------------------------------- cross-entropy, in many ways


def by_hand(z: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy over the rows of z (N, C)."""
    return -z.log_softmax(-1)[torch.arange(len(y)), y].mean()


def pairs(criterion: Callable, total: Callable[[Tensor, Tensor], Tensor], data: tuple, *widths: int) -> Setup:
    """One batch, with a total that is a function of the outputs and the targets."""
    return Setup(mlp(*widths), data, lambda m, d: total(m(d[0]), d[1]), {"criterion": criterion})


@case
def cross_entropy_in_a_lambda() -> Setup:
    def criterion(z: Tensor, y: Tensor) -> Tensor:
        return 3 * F.cross_entropy((z / 2).view(-1, 3), y) + 1

    return pairs(criterion, lambda z, y: 3 * by_hand(z / 2, y), labelled([9])[0], 4, 5, 3)


@case
def cross_entropy_reduced_by_hand() -> Setup:
    """Some entries count twice, others not at all."""
    counts = torch.tensor([1.0, 0, 2, 1, 0, 3])

    def criterion(z: Tensor, y: Tensor) -> Tensor:
        entries = F.cross_entropy(z, y, reduction="none")
        return (entries * counts.to(entries)).sum() / counts.sum()

    def total(z: Tensor, y: Tensor) -> Tensor:
        return by_hand(z[[0, 2, 2, 3, 5, 5, 5]], y[[0, 2, 2, 3, 5, 5, 5]])

    return pairs(criterion, total, labelled([6])[0], 4, 5, 3)


@case
def shifted_language_model() -> Setup:
    """Next-token loss on logits that are shifted inside the criterion, with ignored tokens."""

    def criterion(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z[:, :-1].flatten(0, 1), y[:, 1:].flatten())

    def total(model: nn.Module, batch: dict) -> Tensor:
        z, y = model(batch["input_ids"])[:, :-1].reshape(-1, 7), batch["labels"][:, 1:].reshape(-1)
        return by_hand(z[y != IGNORED], y[y != IGNORED])

    options = {"forward": lambda m, b: m(b["input_ids"]), "targets": lambda b: b["labels"], "criterion": criterion}
    return Setup(LanguageModel(), padded([5, 3, 2]), total, options)


@case
def transposed_lstm() -> Setup:
    """Classes in the second of three dimensions, several batches, ignored tokens, tied weights."""
    options = {
        "forward": lambda m, b: m(b["input_ids"]).transpose(1, 2),
        "targets": lambda b: b["labels"],
        "criterion": nn.CrossEntropyLoss(ignore_index=IGNORED),
    }

    def total(model: nn.Module, batches: list[dict]) -> Tensor:
        logits = [model(b["input_ids"]).reshape(-1, 7) for b in batches]
        z, y = torch.cat(logits), torch.cat([b["labels"].flatten() for b in batches])
        return by_hand(z[y != IGNORED], y[y != IGNORED])

    return Setup(LanguageModel(recurrent=True), [padded([4, 2]), padded([3])], total, options)


@case
def soft_targets() -> Setup:
    """Probabilities that do not add up to one, with class weights and smoothing."""
    weight = torch.tensor([1.0, 4.0, 0.25])

    def total(z: Tensor, y: Tensor) -> Tensor:
        return -((0.9 * y + 0.1 / 3) * weight.to(z) * z.log_softmax(-1)).sum() / len(y)

    criterion = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    return pairs(criterion, total, (torch.randn(7, 4), torch.rand(7, 3)), 4, 5, 3)


@case
def smoothing_weights_and_ignored() -> Setup:
    weight = torch.tensor([1.0, 4.0, 0.25])
    x, y = labelled([8])[0]
    y[2:4] = IGNORED

    def total(z: Tensor, y: Tensor) -> Tensor:
        z, y, w = z[y != IGNORED], y[y != IGNORED], weight.to(z)
        logp = z.log_softmax(-1)
        picked = -(w[y] * logp[torch.arange(len(y)), y]).sum()
        return (0.8 * picked - 0.2 / 3 * (w * logp).sum()) / w[y].sum()

    return pairs(nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2), total, (x, y), 4, 5, 3)


@case
def log_softmax_in_a_lambda() -> Setup:
    """Cross-entropy that calls nothing by that name."""

    def criterion(z: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(F.log_softmax(z, -1), y)

    return pairs(criterion, by_hand, labelled([9])[0], 4, 5, 3)


@case
def cross_entropy_and_a_term() -> Setup:
    def criterion(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y) + 0.1 * z.logsumexp(-1).square().mean()

    def total(z: Tensor, y: Tensor) -> Tensor:
        return by_hand(z, y) + 0.1 * z.exp().sum(-1).log().square().sum() / len(y)

    return pairs(criterion, total, labelled([9])[0], 4, 5, 3)


@case
def focal() -> Setup:
    """Cross-entropy inside another function."""

    def criterion(z: Tensor, y: Tensor) -> Tensor:
        entries = F.cross_entropy(z, y, reduction="none")
        return ((1 - (-entries).exp()).square() * entries).mean()

    def total(z: Tensor, y: Tensor) -> Tensor:
        p = z.softmax(-1)[torch.arange(len(y)), y]
        return -((1 - p) ** 2 * p.log()).mean()

    return pairs(criterion, total, labelled([9])[0], 4, 5, 3)


@case
def cross_entropy_of_curved_logits() -> Setup:
    """The logits are no affine function of the outputs."""
    return pairs(lambda z, y: F.cross_entropy(z.square(), y), lambda z, y: by_hand(z * z, y), labelled([9])[0], 4, 5, 3)


@case
def criterion_that_writes_on_its_input() -> Setup:
    def criterion(z: Tensor, y: Tensor) -> Tensor:
        z.mul_(2)
        return F.cross_entropy(z, y)

    return pairs(criterion, lambda z, y: by_hand(2 * z, y), labelled([9])[0], 4, 5, 3)


# --------------------------------------------------------------------------- other losses


@case
def squared_error() -> Setup:
    def total(model: nn.Module, batches: list) -> Tensor:
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return (model(x) - y).square().sum() / y.numel()

    batches = [(torch.randn(size, 4), torch.randn(size, 2)) for size in (5, 3)]
    return Setup(mlp(4, 6, 2), batches, total, {"criterion": nn.MSELoss()})


@case
def squared_error_turned_round() -> Setup:
    data = (torch.randn(5, 4), torch.randn(5, 2))
    return pairs(lambda z, y: F.mse_loss(y, z), lambda z, y: (z - y).square().mean(), data, 4, 5, 2)


@case
def binary_cross_entropy() -> Setup:
    weight, positive = torch.tensor([0.5, 2.0]), torch.tensor([3.0, 0.2])

    def total(z: Tensor, y: Tensor) -> Tensor:
        w, p = weight.to(z), z.sigmoid()
        return -(w * (positive.to(z) * y * p.log() + (1 - y) * (1 - p).log())).mean()

    data = (torch.randn(6, 4), torch.randint(2, (6, 2)).float())
    return pairs(nn.BCEWithLogitsLoss(weight=weight, pos_weight=positive), total, data, 4, 5, 2)


@case
def huber() -> Setup:
    def total(z: Tensor, y: Tensor) -> Tensor:
        far = (z - y).abs()
        return torch.where(far < 1, far.square() / 2, far - 0.5).mean()

    return pairs(nn.SmoothL1Loss(), total, (torch.randn(9, 4), 2 * torch.randn(9, 2)), 4, 5, 2)


@case
def loss_across_samples() -> Setup:
    """A contrastive loss: the Hessian in the outputs couples the samples."""

    def total(z: Tensor, y: Tensor) -> Tensor:
        return by_hand(z @ z.T, y)

    return pairs(lambda z, y: F.cross_entropy(z @ z.T, y), total, (torch.randn(5, 4), torch.arange(5)), 4, 5, 3)


@case
def convolution() -> Setup:
    """A loss per pixel on (N, C, H, W), with strides that are not rows."""

    def total(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        z = model(batch[0])
        return by_hand(z.permute(0, 2, 3, 1).reshape(-1, 3), batch[1].flatten())

    data = (torch.randn(2, 1, 4, 5), torch.randint(3, (2, 4, 5)))
    return Setup(nn.Conv2d(1, 3, 3, padding=1), data, total, {"criterion": nn.CrossEntropyLoss()})
