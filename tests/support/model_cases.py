"""Models of the kinds that people train, small enough for a test, with batches and a loss each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from landscape_nets import Spectral

VOCABULARY, CLASSES = 20, 3

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Trained:
    """A model with three batches of the data that it is trained on.

    Attributes:
        model: in train mode.
        batches: one for each update.
        loss: of the model and a batch.
        weight: the denominator of a batch's mean.
    """

    model: nn.Module
    batches: list[Any]
    loss: Loss
    weight: Callable[[Any], Any]


def classified(model: nn.Module, shape: tuple[int, ...]) -> Trained:
    """Of samples of this shape, in three classes."""
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(6, *shape, generator=generator), torch.randint(CLASSES, (6,), generator=generator))
        for _ in range(3)
    ]
    return Trained(model.train(), batches, lambda m, b: F.cross_entropy(m(b[0]), b[1]), lambda b: len(b[0]))


# --------------------------------------------------------------------------- torch


class Residual(nn.Module):
    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(narrow, wide, 3, stride, 1, bias=False),
            nn.Conv2d(wide, wide, 3, 1, 1, bias=False),
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(wide), nn.BatchNorm2d(wide), nn.BatchNorm2d(wide)])
        self.short = nn.Conv2d(narrow, wide, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norms[0](self.first(x)), inplace=True)
        h = self.norms[1](self.second(h))
        h += self.norms[2](self.short(x))  # in place, as torchvision's
        return F.relu(h, inplace=True)


def resnet() -> Trained:
    stem = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)]
    return classified(nn.Sequential(*stem, Residual(4, 4, 1), Residual(4, 6, 2), *head), (1, 8, 8))


class Recurrent(nn.Module):
    """A language model with a cell that is unrolled by hand beside torch's, and truncated in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 6)
        self.recurrent = nn.LSTM(6, 5, num_layers=2, dropout=0.2, batch_first=True)
        self.cell = nn.GRUCell(5, 5)
        self.head = nn.Linear(5, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        h, state = self.recurrent(self.embed(tokens))[0], torch.zeros(len(tokens), 5)
        outputs = []
        for t in range(h.shape[1]):
            state = self.cell(h[:, t], state.detach() if t == 4 else state)
            outputs.append(state)
        return self.head(torch.stack(outputs, dim=1))


def lstm() -> Trained:
    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    batches = [b["input_ids"] for b in token_batches()]
    return Trained(Recurrent().train(), batches, loss, lambda tokens: tokens[:, 1:].numel())


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.2))
        self.last, self.reentrant = nn.Linear(8, CLASSES), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant))


class MixedDtypes(nn.Module):
    """Weights in bfloat16, normalised in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8).bfloat16(), nn.Linear(8, CLASSES).bfloat16()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x.bfloat16()).float()).tanh()
        return self.last(h.bfloat16()).float()


class PartlyUsed(nn.Module):
    """A frozen layer, one that the loss does not reach, and one that only some batches reach."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.unused = nn.Linear(6, 8).requires_grad_(False), nn.Linear(5, 5)
        self.last, self.sometimes = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.frozen(x).tanh()
        return self.last(h) + (self.sometimes(h) if float(x[0, 0]) > 0 else 0)


class SparseTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(6, 4, sparse=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.table((2 * x.abs()).long().clamp(max=5)).mean(1).tanh())


def reparametrised() -> nn.Module:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
    bounded = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    return nn.Sequential(normed, nn.Tanh(), bounded, nn.Linear(8, CLASSES))


def encoder() -> nn.Module:
    """torch's own layer, with its fused attention and its fast path."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(4, 8), body, nn.Flatten(), nn.Linear(4 * 8, CLASSES))


# --------------------------------------------------------------------------- Hugging Face transformers


def token_batches() -> list[dict[str, Tensor]]:
    """Dict batches, each with another number of tokens that count."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for i in range(3):
        tokens = torch.randint(1, VOCABULARY, (3, 8), generator=generator)
        labels, mask = tokens.clone(), torch.ones_like(tokens)
        labels[0, 3 + i :], mask[0, 6:] = -100, 0
        batches.append({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    return batches


def hugging_face(family: str, attention: str, **settings: Any) -> Trained:
    """From config, so with random weights; the labels that count are those of the model's own loss."""
    transformers = pytest.importorskip("transformers")
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    shapes = {
        "GPT2": ("LMHeadModel", {"n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}),
        "Bert": ("ForMaskedLM", {"max_position_embeddings": 16, "type_vocab_size": 2}),
        "Llama": ("ForCausalLM", {"num_key_value_heads": 1}),
    }
    usual = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    head, shape = shapes[family]
    options = {
        "vocab_size": VOCABULARY,
        "attn_implementation": attention,
        **ids,
        **({} if "n_embd" in shape else usual),
    }
    config = getattr(transformers, f"{family}Config")(**options | shape | settings)
    model = getattr(transformers, f"{family}{head}")(config)
    shift = 0 if family == "Bert" else 1
    return Trained(
        model.train(), token_batches(), lambda m, b: m(**b).loss, lambda b: b["labels"][:, shift:].ne(-100).sum()
    )


def adapted() -> Trained:
    """GPT-2 with low-rank adapters, which alone are trained."""
    peft = pytest.importorskip("peft")
    trained = hugging_face("GPT2", "sdpa")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.1)
    return Trained(peft.get_peft_model(trained.model, config).train(), trained.batches, trained.loss, trained.weight)


def checkpointing(reentrant: bool) -> Trained:
    """GPT-2 that stores one activation for each block."""
    trained = hugging_face("GPT2", "sdpa")
    trained.model.gradient_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]
    return trained


MODELS: dict[str, Callable[[], Trained]] = {
    "resnet": resnet,
    "lstm": lstm,
    "checkpoints": lambda: classified(Checkpointed(False), (6,)),
    "checkpoints, reentrant": lambda: classified(Checkpointed(True), (6,)),
    "mixed dtypes": lambda: classified(MixedDtypes(), (6,)),
    "partly used": lambda: classified(PartlyUsed(), (6,)),
    "sparse gradients": lambda: classified(SparseTable(), (6,)),
    "reparametrised": lambda: classified(reparametrised(), (6,)),
    "complex": lambda: classified(Spectral(), (8,)),
    "encoder": lambda: classified(encoder(), (4, 4)),
    "GPT-2": lambda: hugging_face("GPT2", "sdpa"),
    "GPT-2, eager attention": lambda: hugging_face("GPT2", "eager"),
    "GPT-2, checkpoints": lambda: checkpointing(False),
    "GPT-2, reentrant checkpoints": lambda: checkpointing(True),
    "GPT-2, adapters": adapted,
    "BERT": lambda: hugging_face("Bert", "sdpa"),
    "BERT, eager attention": lambda: hugging_face("Bert", "eager"),
    "Llama": lambda: hugging_face("Llama", "sdpa"),
}
