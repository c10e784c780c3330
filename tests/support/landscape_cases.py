"""Small models with their loss written a second time, by hand, as the oracle of curvature tests.

A case is built in float32 (so that every number is exact in both precisions) and cast. `dense_hessian` differentiates
the handwritten total loss entry by entry in float64 and shares no code with the package.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

from landscape_nets import Attention, Checkpointed, ConvNet, Encoder, LanguageModel, MultiHead, WithUnused, mlp
from losscope.landscape import Objective

IGNORED = -100


@dataclass
class Setup:
    """A model, its data, the options of `Objective`, and ``total(model, data)``: the same loss by hand."""

    model: nn.Module
    data: Any
    total: Callable[[nn.Module, Any], Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def objective(self, **changes: Any) -> Objective:
        return Objective(self.model, self.data, **(self.options | changes))


CASES: dict[str, Callable[[], Setup]] = {}


def case(build: Callable[[], Setup]) -> Callable[[], Setup]:
    CASES[build.__name__] = build
    return build


def cast(item: Any, dtype: torch.dtype) -> Any:
    """Floating tensors and modules inside ``item`` in ``dtype``; the rest as it is."""
    if isinstance(item, nn.Module):
        return item.to(dtype)
    if isinstance(item, Tensor):
        return item.to(dtype) if item.is_floating_point() else item
    if isinstance(item, Mapping):
        return {key: cast(value, dtype) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return type(item)(cast(value, dtype) for value in item)
    return item


def build(name: str, dtype: torch.dtype = torch.float64) -> Setup:
    """The case ``name`` in ``dtype``, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        setup = CASES[name]()
    return Setup(cast(setup.model, dtype), cast(setup.data, dtype), setup.total, cast(setup.options, dtype))


def selected(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def dense_hessian(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """The Hessian of a scalar by double backward, one row per entry of its gradient."""
    with torch.enable_grad():
        gradient = flat(torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True))
        rows = [
            flat(torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True))
            if g.requires_grad
            else torch.zeros_like(gradient)
            for g in gradient
        ]
    return torch.stack(rows).detach()


@functools.cache
def reference(name: str) -> tuple[float, Tensor, Tensor]:
    """Value, gradient (n,) and dense Hessian (n, n) of a case in float64, from its handwritten total."""
    setup = build(name)
    model = copy.deepcopy(setup.model)
    model.train(setup.options.get("mode", "eval") != "eval")
    if setup.options.get("mode") == "train_frozen":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
    loss = setup.total(model, setup.data)
    parameters = selected(model)
    gradient = flat(torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True))
    return float(loss.detach()), gradient, dense_hessian(loss, parameters)


# --------------------------------------------------------------------------- plain networks


def labelled(sizes: list[int], features: int = 4, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(size, features), torch.randint(classes, (size,))) for size in sizes]


def joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def whole_cross_entropy(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean over all samples of all batches, from the softmax itself."""
    x, y = joined(batches)
    return -(model(x).log_softmax(dim=1)[torch.arange(len(y)), y]).mean()


@case
def mlp_cross_entropy() -> Setup:
    data = labelled([12])[0]
    return Setup(mlp(4, 6, 3), data, lambda m, d: whole_cross_entropy(m, [d]), {"criterion": nn.CrossEntropyLoss()})


@case
def uneven_batches() -> Setup:
    return Setup(mlp(4, 6, 3), labelled([7, 7, 1]), whole_cross_entropy, {"criterion": nn.CrossEntropyLoss()})


@case
def sum_reduction() -> Setup:
    def total(model: nn.Module, batches: list) -> Tensor:
        return whole_cross_entropy(model, batches) * sum(len(y) for _, y in batches)

    return Setup(mlp(4, 5, 3), labelled([6, 2]), total, {"criterion": nn.CrossEntropyLoss(reduction="sum")})


@case
def class_weights() -> Setup:
    def total(model: nn.Module, batches: list) -> Tensor:
        x, y = joined(batches)
        w = torch.tensor([1.0, 4.0, 0.25]).to(x)[y]
        return -(w * model(x).log_softmax(dim=1)[torch.arange(len(y)), y]).sum() / w.sum()

    weight = torch.tensor([1.0, 4.0, 0.25])
    return Setup(mlp(4, 5, 3), labelled([6, 5, 1]), total, {"criterion": nn.CrossEntropyLoss(weight=weight)})


@case
def functional_label_smoothing() -> Setup:
    def total(model: nn.Module, batches: list) -> Tensor:
        x, y = joined(batches)
        logp = model(x).log_softmax(dim=1)
        return -(0.9 * logp[torch.arange(len(y)), y] + 0.1 * logp.mean(dim=1)).mean()

    criterion = functools.partial(F.cross_entropy, label_smoothing=0.1)
    return Setup(mlp(4, 5, 3), labelled([6, 3]), total, {"criterion": criterion})


@case
def multi_output_regression() -> Setup:
    def total(model: nn.Module, batches: list) -> Tensor:
        x, y = joined(batches)
        return 0.5 * (model(x) - y).square().sum() / len(x)

    batches = [(torch.randn(size, 4), torch.randn(size, 2)) for size in (5, 3)]
    return Setup(mlp(4, 6, 2), batches, total, {"criterion": lambda out, y: 0.5 * (out - y).square().sum(dim=1).mean()})


@case
def frozen_parameters() -> Setup:
    model = mlp(4, 5, 5, 3)
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return Setup(model, labelled([9, 2]), whole_cross_entropy, {"criterion": nn.CrossEntropyLoss()})


@case
def unused_parameters() -> Setup:
    return Setup(WithUnused(), labelled([6, 4]), whole_cross_entropy, {"criterion": nn.CrossEntropyLoss()})


@case
def linear_unused_bias() -> Setup:
    """A loss that is linear in some parameters, quadratic in others: zero blocks beside full ones."""

    def total(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return ((x @ model.weight.T) - y).square().mean() + model.bias.sum()

    return Setup(
        nn.Linear(4, 3),
        (torch.randn(8, 4), torch.randn(8, 3)),
        total,
        {"loss_fn": lambda m, b: F.mse_loss(F.linear(b[0], m.weight), b[1]) + m.bias.sum()},
    )


# --------------------------------------------------------------------------- language models


def padded(lengths: list[int], words: int = 7) -> dict[str, Tensor]:
    """One batch of sequences with next-token labels, -100 where there is padding."""
    longest = max(lengths)
    tokens = torch.randint(words, (len(lengths), longest))
    labels = torch.randint(words, (len(lengths), longest))
    labels[torch.arange(longest) >= torch.tensor(lengths)[:, None]] = IGNORED
    return {"input_ids": tokens, "labels": labels}


def mean_over_tokens(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    """The mean over every token of the data set that is not padding."""
    losses = []
    for batch in batches:
        logp = model(batch["input_ids"]).log_softmax(dim=-1)
        for sequence, labels in zip(logp, batch["labels"], strict=True):
            losses += [-row[label] for row, label in zip(sequence, labels.tolist(), strict=True) if label != IGNORED]
    return torch.stack(losses).mean()


def token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["input_ids"]).transpose(1, 2), batch["labels"])


def tokens_that_count(batch: dict[str, Tensor]) -> Tensor:
    return batch["labels"].ne(IGNORED).sum()


@case
def tied_weights() -> Setup:
    def total(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return mean_over_tokens(model, [batch])

    return Setup(LanguageModel(), padded([4, 4, 4]), total, {"loss_fn": token_loss, "weight": tokens_that_count})


@case
def token_weights_loss_fn() -> Setup:
    batches = [padded([5, 2, 1]), padded([3, 3]), padded([6])]
    return Setup(LanguageModel(), batches, mean_over_tokens, {"loss_fn": token_loss, "weight": tokens_that_count})


@case
def token_weights_criterion() -> Setup:
    batches = [padded([5, 2, 1]), padded([3, 3]), padded([6])]
    options = {
        "forward": lambda m, b: m(b["input_ids"]).flatten(0, 1),
        "targets": lambda b: b["labels"].flatten(),
        "criterion": nn.CrossEntropyLoss(ignore_index=IGNORED),
    }
    return Setup(LanguageModel(), batches, mean_over_tokens, options)


@case
def lstm() -> Setup:
    batches = [padded([4, 2]), padded([3])]
    return Setup(
        LanguageModel(recurrent=True),
        batches,
        mean_over_tokens,
        {"loss_fn": token_loss, "weight": tokens_that_count},
    )


# --------------------------------------------------------------------------- normalisation


def _conv_batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(size, 1, 6, 6), torch.randint(3, (size,))) for size in (5, 3)]


def batchwise(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean over samples, each batch seen alone (it makes its own statistics)."""
    total = sum(len(y) * whole_cross_entropy(model, [(x, y)]) for x, y in batches)
    return total / sum(len(y) for _, y in batches)


@case
def batchnorm_eval() -> Setup:
    options = {"criterion": nn.CrossEntropyLoss(), "mode": "eval"}
    return Setup(ConvNet(), _conv_batches(), whole_cross_entropy, options)


@case
def batchnorm_train() -> Setup:
    return Setup(ConvNet(), _conv_batches(), batchwise, {"criterion": nn.CrossEntropyLoss(), "mode": "train"})


@case
def batchnorm_train_frozen() -> Setup:
    options = {"criterion": nn.CrossEntropyLoss(), "mode": "train_frozen"}
    return Setup(ConvNet(), _conv_batches(), whole_cross_entropy, options)


@case
def spectral_norm_eval() -> Setup:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))
    return Setup(model, labelled([6, 3]), whole_cross_entropy, {"criterion": nn.CrossEntropyLoss()})


# --------------------------------------------------------------------------- attention


def _sequences() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(size, 5, 4), torch.randint(3, (size,))) for size in (4, 2)]


def _math_attention(model: nn.Module, batches: list) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return whole_cross_entropy(model, batches)


@case
def scaled_dot_product_attention() -> Setup:
    def total(model: Attention, batches: list) -> Tensor:
        return whole_cross_entropy(model.by_hand, batches)

    return Setup(Attention(), _sequences(), total, {"criterion": nn.CrossEntropyLoss()})


@case
def multihead_attention() -> Setup:
    return Setup(MultiHead(), _sequences(), _math_attention, {"criterion": nn.CrossEntropyLoss()})


@case
def transformer_encoder_layer() -> Setup:
    return Setup(Encoder(), _sequences(), _math_attention, {"criterion": nn.CrossEntropyLoss()})


# --------------------------------------------------------------------------- wrappers and odd losses


@case
def checkpointing() -> Setup:
    def total(model: Checkpointed, batches: list) -> Tensor:
        return whole_cross_entropy(lambda x: model.head(model.body(model.first(x))), batches)

    return Setup(Checkpointed(), labelled([6, 3]), total, {"criterion": nn.CrossEntropyLoss()})


@case
def gradient_penalty() -> Setup:
    """A loss with a gradient inside it, whose Hessian holds third derivatives of the network."""

    def penalised(model: nn.Module, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        slope = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
        return (slope.norm(dim=1) - 1).square().sum()

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return penalised(model, batch[0]) / len(batch[0])

    def total(model: nn.Module, batches: list) -> Tensor:
        x, _ = joined(batches)
        return penalised(model, x) / len(x)

    return Setup(mlp(4, 5, 1), labelled([5, 2]), total, {"loss_fn": loss_fn})
