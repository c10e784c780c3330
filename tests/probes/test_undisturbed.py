"""Watching changes no bit of a training: weights, optimizer state, losses, random streams; nor does one measurement."""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from losscope.probes import GradientNoise, NeuralCollapse, Snapshot, TangentKernel, Trajectory, watch
from probe_cases import (
    CLASSES,
    MODELS,
    OPTIMIZERS,
    Outcome,
    largest_weight,
    loader,
    meddling_probes,
    outcome,
    seed_everything,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:losscope. .* is measured in mode=")  # dropout in eval mode


@functools.cache
def unwatched(name: str, optimizer: str) -> Outcome:
    return train(name, optimizer)


def held_out(name: str) -> list[Any]:
    with torch.random.fork_rng():
        return [next(iter(loader(name)))]


# --------------------------------------------------------------------------- whole trainings


# What a measurement reads of an optimizer does not depend on the model: each optimizer on one model, all of them once.
@pytest.mark.parametrize(
    ("name", "mode", "optimizer"),
    [
        *(("mlp", "eval", optimizer) for optimizer in OPTIMIZERS),
        ("cnn", "eval", "adam"), ("cnn", "train", "momentum"), ("cnn", "train", "rmsprop"), ("lstm", "eval", "adamw"),
        ("transformer", "eval", "adam"), ("once", "eval", "momentum"), ("fused", "eval", "adamw"),
        ("fused", "train", "momentum"),
    ],
)  # fmt: skip
def test_training_is_the_same_to_the_bit(name: str, mode: str, optimizer: str) -> None:
    runs = []

    def watching(model: nn.Module, moved: torch.optim.Optimizer, _: DataLoader) -> Any:
        runs.append(
            watch(
                model, moved, data=held_out(name), criterion=F.cross_entropy, every=3, batch_size=4,
                probes=meddling_probes(), mode=mode, on_error="raise",
            )
        )  # fmt: skip
        return runs[0]

    assert train(name, optimizer, watching).differences(unwatched(name, optimizer)) == []
    (run,) = runs
    assert run.steps == 9
    for probe in ("sharpness", "spectrum", "trace", "stability", "largest_weight"):
        assert [r.step for r in run.run.select(probe)] == [0, 3, 6], probe  # it was watched indeed
    kernel = "finite_difference" if name in ("once", "fused") else "retained"
    assert {r.kernel for r in run.run.select("sharpness")} == {kernel}
    assert all(r.values["batch_sharpness"] is not None for r in run.run.select("stability"))


@pytest.mark.parametrize("name", MODELS)
def test_the_same_with_the_default_probes_on_the_very_loader_that_is_iterated(name: str) -> None:
    def watching(model: nn.Module, moved: torch.optim.Optimizer, data: DataLoader) -> Any:
        mode = "train" if name == "cnn" else "eval"
        return watch(
            model, moved, data=data, criterion=F.cross_entropy, every=[4], batch_size=8, mode=mode, on_error="raise"
        )

    assert train(name, "momentum", watching).differences(unwatched(name, "momentum")) == []


@pytest.mark.filterwarnings("ignore:losscope. .* resolves nothing")  # differences of gradients, where P is tiny
@pytest.mark.parametrize("kernel", ["retained", "batched", "finite_difference"])
def test_the_same_with_a_kernel_that_was_asked_for(kernel: str) -> None:
    runs = []

    def watching(model: nn.Module, moved: torch.optim.Optimizer, _: DataLoader) -> Any:
        options: dict[str, Any] = {"criterion": F.cross_entropy, "every": 4, "mode": "train"}
        runs.append(watch(model, moved, data=held_out("cnn"), kernel=kernel, **options))
        return runs[0]

    assert train("cnn", "adam", watching).differences(unwatched("cnn", "adam")) == []
    assert {r.kernel for r in runs[0].run.records if r.kernel} == {kernel}
    assert [r.status for r in runs[0].run.select("sharpness", ok=False)] == ["ok"] * 3


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_the_same_when_tangent_kernels_are_measured(name: str, mode: str) -> None:
    """By hooks in the layers, single samples, and products where samples mix."""
    runs = []

    def watching(model: nn.Module, moved: torch.optim.Optimizer, data: DataLoader) -> Any:
        options: dict[str, Any] = {"criterion": F.cross_entropy, "every": 3, "mode": mode, "on_error": "raise"}
        runs.append(watch(model, moved, data=data, probes=[TangentKernel(samples=8), largest_weight], **options))
        return runs[0]

    assert train(name, "momentum", watching).differences(unwatched(name, "momentum")) == []
    records = runs[0].run.select("tangent_kernel")
    assert [r.step for r in records] == [0, 3, 6]
    mixed = mode == "train" and name != "lstm"
    assert {r.kernel for r in records} == {"products" if mixed else "contraction"}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_the_same_when_layers_are_hooked_for_their_features(name: str, mode: str) -> None:
    runs = []
    layer = {"cnn": "1", "lstm": "recurrent", "transformer": "head"}[name]

    def watching(model: nn.Module, moved: torch.optim.Optimizer, data: DataLoader) -> Any:
        collapse = NeuralCollapse(["penultimate", layer])
        options: dict[str, Any] = {"criterion": F.cross_entropy, "every": 3, "mode": mode, "on_error": "raise"}
        runs.append(watch(model, moved, data=data, probes=[collapse, largest_weight], **options))
        return runs[0]

    assert train(name, "momentum", watching).differences(unwatched(name, "momentum")) == []
    assert [r.step for r in runs[0].run.select("neural_collapse")] == [0, 3, 6]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_the_same_when_single_samples_have_their_gradients_taken(name: str, mode: str) -> None:
    """One by one or together, and by mini-batches where samples mix or dropout is drawn."""
    runs = []

    def watching(model: nn.Module, moved: torch.optim.Optimizer, data: DataLoader) -> Any:
        noise = GradientNoise(4, draws=8, groups=4)
        options: dict[str, Any] = {"criterion": F.cross_entropy, "every": 3, "mode": mode, "on_error": "raise"}
        runs.append(watch(model, moved, data=data, probes=[noise, largest_weight], **options))
        return runs[0]

    assert train(name, "momentum", watching).differences(unwatched(name, "momentum")) == []
    assert [r.step for r in runs[0].run.select("gradient_noise")] == [0, 3, 6]


@pytest.mark.parametrize("name", ["cnn", "transformer"])
@pytest.mark.parametrize("options", [{}, {"dimension": 16, "checkpoints": True}])
def test_the_same_when_the_weights_are_recorded(options: dict[str, Any], name: str, tmp_path: Any) -> None:
    runs = []

    def watching(model: nn.Module, moved: torch.optim.Optimizer, data: DataLoader) -> Any:
        probes = [Trajectory(**options), largest_weight]
        kinds: dict[str, Any] = {"criterion": F.cross_entropy, "every": 3, "mode": "train", "on_error": "raise"}
        runs.append(watch(model, moved, data=data, probes=probes, out=tmp_path / "run", **kinds))
        return runs[0]

    assert train(name, "momentum", watching).differences(unwatched(name, "momentum")) == []
    assert [r.step for r in runs[0].run.select("trajectory")] == [0, 3, 6]


def test_the_same_with_a_run_folder(tmp_path: Any) -> None:
    def watching(model: nn.Module, moved: torch.optim.Optimizer, data: DataLoader) -> Any:
        return watch(model, moved, data=data, criterion=F.cross_entropy, every=2, out=tmp_path / "run", mode="train")

    assert train("cnn", "adam", watching).differences(unwatched("cnn", "adam")) == []


def test_the_same_when_hooks_do_not_drive() -> None:
    def watching(model: nn.Module, moved: torch.optim.Optimizer, data: DataLoader) -> Any:
        run = watch(model, moved, data=data, criterion=F.cross_entropy, every=2, drive="manual", on_error="raise")
        moved.register_step_post_hook(lambda *_: run.step())
        return run

    assert train("cnn", "momentum", watching).differences(unwatched("cnn", "momentum")) == []


def test_the_same_when_every_probe_fails() -> None:
    def watching(model: nn.Module, moved: torch.optim.Optimizer, data: DataLoader) -> Any:
        def fails(snapshot: Snapshot) -> dict[str, Any]:
            torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
            snapshot.eigenpairs()
            raise ArithmeticError("on purpose")

        return watch(model, moved, data=data, criterion=F.cross_entropy, every=1, probes=[fails], mode="train")

    with pytest.warns(RuntimeWarning, match="on purpose"):
        watched = train("cnn", "adamw", watching)
    assert watched.differences(unwatched("cnn", "adamw")) == []


class Order(Sampler):
    """Shuffles by its own count of epochs."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        yield from np.random.default_rng(self.epoch).permutation(12).tolist()

    def __len__(self) -> int:
        return 12


class Counted(Dataset):
    """Items that fade with the count of items given so far, with noise of the data set's own."""

    def __init__(self) -> None:
        self.seen, self.rng = 0, random.Random(1)
        self.x, self.y = torch.randn(12, 6), torch.randint(CLASSES, (12,))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.seen += 1
        return self.x[index] / (1 + 0.1 * self.seen) + self.rng.random(), self.y[index]


class OwnNoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.rng = nn.Linear(6, CLASSES), torch.Generator().manual_seed(2)
        self.body.register_forward_hook(lambda m, i, o: 2 * o)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + 0.1 * torch.randn(x.shape, generator=self.rng))


class Trainer:
    """A loss with a warm-up and noise of its own."""

    def __init__(self) -> None:
        self.calls, self.losses, self.rng = 0, [], np.random.default_rng(3)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.calls += 1
        loss = F.cross_entropy(model(batch[0]), batch[1]) * min(1.0, self.calls / 50) * (1 + self.rng.random())
        self.losses.append(float(loss.detach()))
        return loss


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_same_with_generators_and_counters_of_the_users_own(mode: str) -> None:
    """In the model, the loss, the sampler and the data set; measured on the loader that is being iterated."""
    found = []
    for watched in (False, True):
        seed_everything(8)
        model, trainer, data = OwnNoise(), Trainer(), DataLoader(Counted(), batch_size=4, sampler=Order())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        options: dict[str, Any] = {"probes": meddling_probes(), "mode": mode, "every": 2, "on_error": "raise"}
        run = watch(model, optimizer, data=data, loss_fn=trainer.loss, weight=lambda b: len(b[0]), **options)
        with run if watched else contextlib.nullcontext():
            for _ in range(2):
                for batch in data:
                    optimizer.zero_grad()
                    trainer.loss(model, batch).backward()
                    optimizer.step()
        counts = trainer.calls, data.dataset.seen, data.sampler.epoch  # type: ignore[attr-defined]
        own = str(model.rng.get_state().tolist()), str(trainer.rng.bit_generator.state)
        found.append((outcome([model], [optimizer], list(trainer.losses)), counts, own))
    assert found[1][0].differences(found[0][0]) == []
    assert found[1][1:] == found[0][1:]
    assert found[0][1] == (6, 24, 2)


# --------------------------------------------------------------------------- the comparer itself


def disturb_weights(model: nn.Module, _: torch.optim.Optimizer) -> Callable[[], object]:
    live = model[0].weight.data  # type: ignore[index, union-attr]
    return lambda: live.mul_(1 + 2**-20)  # type: ignore[operator]


def disturb_buffers(model: nn.Module, _: torch.optim.Optimizer) -> Callable[[], object]:
    live = model[1].running_mean  # type: ignore[index, union-attr]
    return lambda: live.add_(1e-6)  # type: ignore[operator, union-attr]


def disturb_state(_: nn.Module, moved: torch.optim.Optimizer) -> Callable[[], object]:
    return lambda: [s["momentum_buffer"].mul_(1 + 2**-20) for s in moved.state.values()]


def disturb_rate(_: nn.Module, moved: torch.optim.Optimizer) -> Callable[[], object]:
    return lambda: moved.param_groups[0].update(lr=0.051)


@pytest.mark.parametrize(
    ("disturbance", "seen"),
    [
        (disturb_weights, {"weights", "optimizers", "losses", "buffers"}),
        (disturb_buffers, {"buffers"}),
        (disturb_state, {"weights", "optimizers", "losses"}),
        (disturb_rate, {"weights", "optimizers", "losses"}),
    ],
)
def test_a_probe_that_reaches_past_the_snapshot_is_noticed(disturbance: Any, seen: set[str]) -> None:
    """So that the tests above can fail."""

    def watching(model: nn.Module, moved: torch.optim.Optimizer, data: DataLoader) -> Any:
        disturbing = disturbance(model, moved)

        def probe(snapshot: Snapshot) -> dict[str, Any]:
            disturbing()
            return {}

        return watch(model, moved, data=data, criterion=F.cross_entropy, every=3, probes=[probe], on_error="raise")

    assert seen <= set(train("cnn", "momentum", watching).differences(unwatched("cnn", "momentum")))


def test_a_draw_that_is_not_put_back_is_noticed() -> None:
    def watching(model: nn.Module, moved: torch.optim.Optimizer, data: DataLoader) -> Any:
        moved.register_step_post_hook(lambda *_: random.random())
        return watch(model, moved, data=data, criterion=F.cross_entropy, every=3, probes=[largest_weight])

    assert set(train("mlp", "momentum", watching).differences(unwatched("mlp", "momentum"))) >= {"losses", "streams"}


def test_a_probe_may_write_on_the_weights_of_its_snapshot() -> None:
    def watching(model: nn.Module, moved: torch.optim.Optimizer, data: DataLoader) -> Any:
        def overwrites(snapshot: Snapshot) -> dict[str, Any]:
            for p in snapshot.model.parameters():
                p.data.zero_()
            return {}

        return watch(model, moved, data=data, criterion=F.cross_entropy, every=3, probes=[overwrites])

    assert train("cnn", "momentum", watching).differences(unwatched("cnn", "momentum")) == []
