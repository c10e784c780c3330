"""Neural collapse of models: features at named layers and before the classifier, pooled as said, without a trace."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import (
    DataError,
    LossError,
    NonFiniteError,
    Objective,
    SettingError,
    neural_collapse,
    neural_collapse_by_layer,
    neural_collapse_of,
)

C = 3


def images(n: int = 31, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 6, 6, generator=g), torch.arange(n) % C


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5)
        self.relu, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(5, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.relu(self.norm(self.conv(x))).mean(dim=(2, 3))))


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """With running statistics of its own."""
    for _ in range(3):
        model.train()(x)
    return model


def convnet() -> ConvNet:
    torch.manual_seed(0)
    model = ConvNet()
    trained(model, images()[0])
    return model


def objective(model: nn.Module, data: Any, **options: Any) -> Objective:
    return Objective(model, data, **({"criterion": F.cross_entropy} | options))


def batches(x: Tensor, y: Tensor, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


@torch.no_grad()
def layers_by_hand(model: ConvNet, x: Tensor) -> dict[str, Tensor]:
    model = copy.deepcopy(model).eval()
    conv = model.conv(x)
    norm = model.norm(conv)
    return {"conv": conv, "norm": norm, "relu": norm.relu(), "penultimate": norm.relu().mean(dim=(2, 3))}


def test_the_input_of_the_classifier_and_named_layers() -> None:
    model, (x, y) = convnet(), images()
    known = layers_by_hand(model, x)
    found = neural_collapse_by_layer(objective(model, batches(x, y), mode="train"), list(known))
    for name, h in known.items():
        rows = h if h.ndim == 2 else h.mean(dim=(2, 3))
        head = {"weight": model.fc.weight, "bias": model.fc.bias} if name == "penultimate" else {}
        expected = neural_collapse(rows, y, classes=C, **head)
        assert found[name].numbers == pytest.approx(expected.numbers, rel=1e-4, nan_ok=True), name
    assert neural_collapse_of(objective(model, (x, y)), "norm").nc1 == pytest.approx(found["norm"].nc1, rel=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "flatten", "each", "function"])
def test_positions_become_rows_as_said(pooling: str) -> None:
    model, (x, y) = convnet(), images(9)
    h = layers_by_hand(model, x)["norm"]
    how, rows, labels = {
        "mean": ("mean", h.mean(dim=(2, 3)), y),
        "flatten": ("flatten", h.flatten(1), y),
        "each": ("each", h.permute(0, 2, 3, 1).reshape(-1, 5), y.repeat_interleave(16)),
        "function": (lambda t: t.amax(dim=(2, 3)), h.amax(dim=(2, 3)), y),
    }[pooling]
    options: dict[str, Any] = {}
    if pooling == "each":
        options["targets"] = lambda batch: batch[1][:, None, None].expand(-1, 4, 4)
    found = neural_collapse_of(objective(model, batches(x, y, 4), **options), "norm", pooling=how)
    assert found.numbers == pytest.approx(neural_collapse(rows, labels).numbers, rel=1e-4, abs=1e-6, nan_ok=True)


class Words(nn.Module):
    """Logits for each token, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.block(self.embed(tokens)))}


def test_tokens_with_labels_of_their_own() -> None:
    torch.manual_seed(0)
    model, tokens, labels = Words(), torch.randint(20, (10, 7)), torch.randint(4, (10, 7))
    labels[:, 5:] = -100  # padding
    data = objective(
        model, [(tokens[:6], labels[:6]), (tokens[6:], labels[6:])],
        forward=lambda m, batch: m(batch[0])["logits"].flatten(0, 1), targets=lambda batch: batch[1].flatten(),
    )  # fmt: skip
    found = neural_collapse_of(data, pooling="each")
    with torch.no_grad():
        h = copy.deepcopy(model).eval()
        h = h.block(h.embed(tokens))
    expected = neural_collapse(h.flatten(0, 1), labels.flatten(), weight=model.head.weight)
    assert found.numbers == pytest.approx(expected.numbers, rel=1e-4, abs=1e-6)
    assert (found.samples, found.left_out) == (50, 20)
    with pytest.raises(DataError, match=r"6 rows of features for 42 labels.*each"):
        neural_collapse_of(data)


def test_recurrent_outputs_and_one_hot_targets() -> None:
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(x)[0][:, -1])

    model, x, y = Last(), torch.randn(20, 5, 3), torch.arange(20) % C
    found = neural_collapse_by_layer(
        objective(model, (x, F.one_hot(y, C).float()), criterion=nn.MSELoss()), ["rnn", "penultimate"], ridge=0.01
    )
    h = model.rnn(x)[0].detach()
    assert found["rnn"].nc1 == pytest.approx(neural_collapse(h.mean(dim=1), y).nc1, rel=1e-4)
    assert found["penultimate"].nc1 == pytest.approx(neural_collapse(h[:, -1], y).nc1, rel=1e-4)
    parts = found["penultimate"].squared_loss
    assert parts is not None
    weights = model.fc.weight.square().sum() + model.fc.bias.square().sum()
    loss = 0.5 * (model.fc(h[:, -1]) - F.one_hot(y, C)).square().sum(dim=1).mean() + 0.005 * weights
    assert parts.total == pytest.approx(float(loss.detach()), rel=1e-5)


def test_the_classifier_is_seen_through_shapes_and_wrappers_not_through_what_changes_it() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.arange(12) % C
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C))
    expected = neural_collapse_of(objective(body, (x, y)))

    class Changed(nn.Module):
        def __init__(self, change: Any) -> None:
            super().__init__()
            self.body, self.change = body, change

        def forward(self, x: Tensor) -> Tensor:
            return self.change(self.body(x))

    for same in (lambda z: z.view(-1, 1, C).squeeze(1), lambda z: z):
        assert neural_collapse_of(objective(Changed(same), (x, y))).numbers == expected.numbers
    for other in (lambda z: z.div_(2), lambda z: z / 2, lambda z: z.log_softmax(dim=1), lambda z: z[:, :C] + 0):
        with pytest.raises(SettingError, match=r"no nn.Linear makes.*classifier=.*body\.2"):
            neural_collapse_of(objective(Changed(other), (x, y)))
    named = neural_collapse_of(objective(Changed(lambda z: z.log_softmax(1)), (x, y)), classifier="body.2")
    assert named.numbers == expected.numbers
    alone = nn.Linear(4, C)
    assert neural_collapse_of(objective(alone, (x, y))).numbers == pytest.approx(
        neural_collapse(x, y, weight=alone.weight, bias=alone.bias).numbers
    )
    compiled = torch.compile(body, backend="eager")
    assert neural_collapse_of(objective(compiled, (x, y))).numbers == pytest.approx(expected.numbers)
    assert neural_collapse_of(objective(compiled, (x, y)), "0").samples == 12


def test_nothing_of_it_is_left() -> None:
    model, (x, y) = convnet(), images()
    seen: list[Tensor] = []
    model.relu.register_forward_hook(lambda m, i, o: seen.append(o))  # a user's own
    before = {name: t.clone() for name, t in model.state_dict().items()}
    hooks = [dict(m._forward_hooks) for m in model.modules()]
    stream = torch.get_rng_state()
    neural_collapse_by_layer(objective(model, batches(x, y)), ["conv", "penultimate"])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [dict(m._forward_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), stream)
    assert seen == [] and model.training and all(p.grad is None for p in model.parameters())


def test_eval_mode_inside_an_isolation_in_train_mode_and_at_other_weights() -> None:
    model, (x, y) = convnet(), images()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    expected = neural_collapse_of(objective(other, (x, y))).numbers
    of = objective(model, (x, y), mode="train")
    at = {p: q.detach() for p, q in zip(model.parameters(), other.parameters(), strict=True)}
    with of.isolated(at=at):
        assert neural_collapse_of(of).numbers == pytest.approx(expected)
    in_training = neural_collapse_of(of, mode="train")
    assert in_training.nc1 != pytest.approx(neural_collapse_of(of).nc1, rel=1e-3)


def test_bad_input() -> None:
    model, (x, y) = convnet(), images()
    data = objective(model, (x, y))
    with pytest.raises(SettingError, match=r"no layer 'top'; it has conv, norm, relu, drop, fc, and 'penultimate'"):
        neural_collapse_of(data, "top")
    with pytest.raises(SettingError, match="pooling must be 'mean', 'flatten', 'each' or a function, got 'max'"):
        neural_collapse_of(data, pooling="max")
    with pytest.raises(SettingError, match=r"classifier='conv' is a Conv2d; the linear layers are fc"):
        neural_collapse_of(data, classifier="conv")
    with pytest.raises(SettingError, match="no module"):
        neural_collapse_of(data, classifier="conv9")
    with pytest.raises(SettingError, match="list of names"):
        neural_collapse_by_layer(data, "conv")
    with pytest.raises(SettingError, match="penultimate"):
        neural_collapse_of(data, "conv", ridge=0.1)
    with pytest.raises(SettingError, match="mode must be"):
        neural_collapse_of(data, mode="test")
    with pytest.raises(LossError, match="criterion="):
        neural_collapse_of(Objective(model, (x, y), loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1])))
    with pytest.raises(DataError, match=r"1 of 3 classes have no sample \(\[2\]\)"):
        neural_collapse_of(objective(model, (x[y < 2], y[y < 2])))
    assert neural_collapse_of(objective(model, (x[y < 2], y[y < 2])), classes=[0, 1]).labels == (0, 1)
    with pytest.raises(DataError, match=r"\(n, d\), got \(31, 5, 4, 4\)"):
        neural_collapse_of(data, "conv", pooling=lambda h: h)
    with pytest.raises(SettingError, match="at least two"):
        neural_collapse_of(objective(model, (x, y * 0)), "conv")
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="classifier"):
        neural_collapse_of(data)
    with torch.no_grad():
        model.conv.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="features of class"):
        neural_collapse_of(data, "conv")


def test_one_output_for_two_classes() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), torch.randn(20, 4), torch.arange(20) % 2
    data = objective(model, (x, y[:, None].float()), criterion=nn.BCEWithLogitsLoss())
    with pytest.raises(SettingError, match=r"'2' has one output, .*layer="):
        neural_collapse_of(data)
    found = neural_collapse_of(data, "1")
    assert found.nc1 == pytest.approx(neural_collapse(model[:2](x), y).nc1, rel=1e-5)


def test_a_layer_that_is_called_twice_or_never() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.idle, self.act, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.act(self.mix(self.act(self.mix(x)))))

    data = objective(Twice(), (torch.randn(12, 4), torch.arange(12) % C))
    with pytest.raises(DataError, match="'act' is called 2 times"):
        neural_collapse_of(data, "act")
    with pytest.raises(DataError, match="'idle' is called 0 times"):
        neural_collapse_of(data, "idle")
    assert neural_collapse_of(data).samples == 12
