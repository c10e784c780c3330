"""Models of many kinds train to the same bit when watched, and their curvature is that of a dense Hessian."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loop_cases import Loop, Parts, undisturbed
from losscope.landscape import Hessian, Objective
from losscope.probes import Sharpness, Stability, watch
from model_cases import MODELS, Trained, classified, hugging_face
from probe_cases import seed_everything

ADAM = {"mixed dtypes", "complex", "lstm", "encoder", "GPT-2", "BERT", "Llama"}
"""The others are trained by SGD, and so sparse gradients too."""


def optimizer_of(model: nn.Module, name: str) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if name in ADAM:
        return torch.optim.AdamW(trained, lr=1e-3)
    return torch.optim.SGD(trained, lr=0.05)


def training(loop: Loop, name: str, mode: str) -> Parts:
    trained = MODELS[name]()
    optimizer = optimizer_of(trained.model, name)
    batches = trained.batches * 2
    options: dict[str, Any] = {"data": trained.batches[:2], "loss_fn": trained.loss, "weight": trained.weight}
    with loop.watch(trained.model, optimizer, mode=mode, batch_size=None, **options):
        for batch in batches:
            loop.backward(trained.loss(trained.model, batch))
            loop.update(trained.model, optimizer)
    return [trained.model], [optimizer]


@pytest.mark.filterwarnings("ignore:losscope. .* is measured in mode=")
# In train mode a measurement draws dropout and moves batch statistics, which is the harder case.
@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "train") for name in MODELS), *((name, "eval") for name in ("resnet", "lstm", "GPT-2"))]
)
def test_a_training_is_the_same_to_the_bit(name: str, mode: str) -> None:
    run = undisturbed(lambda loop: training(loop, name, mode))
    assert {r.kernel for r in run.run.select("sharpness")} == {"retained"}


# --------------------------------------------------------------------------- what is measured


def dense(trained: Trained, parameters: list[Tensor]) -> Tensor:
    """The Hessian of the mean over all tokens or samples, by double backward."""
    weights = [float(trained.weight(batch)) for batch in trained.batches]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        losses = [trained.loss(trained.model, batch) for batch in trained.batches]
    loss = sum(w * value for w, value in zip(weights, losses, strict=True)) / sum(weights)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True) for g in gradient]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("family", ["GPT2", "Bert", "Llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_curvature_of_a_transformer_is_that_of_all_tokens_together(family: str, attention: str) -> None:
    """Uneven numbers of tokens, tied embeddings, and attention that cannot be differentiated twice as it is."""
    seed_everything(0)
    trained = hugging_face(family, attention)
    model = trained.model.double().eval()
    chosen = [name for name, _ in model.named_parameters() if any(w in name for w in ("attn", "attention"))]
    chosen = [name for name in chosen if name.endswith("weight") and ("0" in name)][:2]
    expected = dense(trained, [p for name, p in model.named_parameters() if name in chosen])
    objective = Objective(model, trained.batches, loss_fn=trained.loss, weight=trained.weight, params=chosen)
    operator = Hessian(objective)
    found = operator @ torch.eye(operator.space.size, dtype=torch.float64)
    assert float((found - expected).norm()) < 1e-9 * float(expected.norm())


def test_adapters_alone_are_measured() -> None:
    """The Hessian with respect to the low-rank factors, and of nothing that is frozen."""
    seed_everything(0)
    trained = MODELS["GPT-2, adapters"]()
    model = trained.model.double().eval()
    adapters = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in adapters:
            p.copy_(torch.randn(p.shape))  # one factor starts at zero
    options: dict[str, Any] = {"data": trained.batches, "loss_fn": trained.loss, "weight": trained.weight}
    with watch(model, torch.optim.SGD(adapters, lr=0.01), probes=[Sharpness(tol=1e-8)], **options) as run:
        (record,) = run.measure_now()
    assert (
        run.run.meta["players"]["model"]["parameters"]
        == sum(p.numel() for p in adapters)
        == 2 * 2 * (2 * 8 + 2 * 24) // 2
    )
    assert record.value == pytest.approx(float(torch.linalg.eigvalsh(dense(trained, adapters))[-1]), rel=1e-6)


def test_mixed_dtypes_are_measured_in_the_widest() -> None:
    """Products accumulate in float32; the model's own rounding is in the interval."""
    seed_everything(0)
    trained = MODELS["mixed dtypes"]()
    parameters = list(trained.model.parameters())
    options: dict[str, Any] = {"data": trained.batches, "loss_fn": trained.loss, "weight": trained.weight}
    with watch(trained.model, torch.optim.SGD(parameters, lr=0.01), probes=[Sharpness()], **options) as run:
        (record,) = run.measure_now()
    facts = run.run.meta["players"]["model"]
    assert (facts["dtype"], facts["weights_dtype"]) == ("float32", "bfloat16")
    wide = [p.detach().float() for p in parameters]
    exact = MODELS["mixed dtypes"]().model.float()
    with torch.no_grad():
        for p, value in zip(exact.parameters(), wide, strict=True):
            p.copy_(value)

    def forward(x: Tensor) -> Tensor:
        return exact.last(exact.norm(exact.first(x)).tanh())  # type: ignore[operator]

    reference = classified(exact, (6,))
    reference = Trained(exact, reference.batches, lambda m, b: F.cross_entropy(forward(b[0]), b[1]), reference.weight)
    top = float(torch.linalg.eigvalsh(dense(reference, list(exact.parameters())))[-1])
    assert record.value == pytest.approx(top, rel=0.05)


def test_parameters_that_the_loss_does_not_reach_have_no_curvature() -> None:
    """They count in the dimension, as the optimizer moves them (weight decay does), and add nothing."""
    seed_everything(0)
    trained = MODELS["partly used"]()
    model, moved = trained.model, [p for p in trained.model.parameters() if p.requires_grad]
    options: dict[str, Any] = {"data": trained.batches, "loss_fn": trained.loss, "weight": trained.weight}
    values = []
    for parameters in (moved, [p for name, p in model.named_parameters() if name.startswith(("last", "sometimes"))]):
        probes = [Sharpness(tol=1e-4), Stability(level="sharpness", tol=1e-4)]
        with watch(model, torch.optim.SGD(parameters, lr=0.01), probes=probes, **options) as run:
            values.append([r.value for r in run.measure_now()])
    assert values[0] == pytest.approx(values[1], rel=1e-3)
