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

from losscope.probes import (
    GradientNoise,
    NeuralCollapse,
    Player,
    Sharpness,
    Snapshot,
    Spectrum,
    Stability,
    TangentKernel,
    Trace,
    Trajectory,
    watch,
)
from probe_cases import (
    CLASSES,
    MODELS,
    OPTIMIZERS,
    Outcome,
    cnn,
    everything,
    loader,
    outcome,
    seed_everything,
    streams,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:losscope. .* is measured in mode=")  # dropout in eval mode


def largest_weight(snapshot: Snapshot) -> dict[str, Any]:
    """A user's probe that does what users do: evaluates, draws, switches modes and clears gradients."""
    with torch.no_grad():
        values = [p.abs().max() for p in snapshot.model.parameters()]
    snapshot.model.eval()
    snapshot.model.zero_grad()
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    return {"value": max(values), "loss": snapshot.loss, "gradient": snapshot.gradient}


def probes() -> list[Any]:
    return [Sharpness(), Spectrum(2, 4), Trace(rtol=0.5), Stability(rtol=0.5), largest_weight]


@functools.cache
def unwatched(name: str, optimizer: str) -> Outcome:
    return train(name, optimizer)


def held_out(name: str) -> list[Any]:
    with torch.random.fork_rng():
        return [next(iter(loader(name)))]


# --------------------------------------------------------------------------- whole trainings


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("mlp", "eval"), ("cnn", "eval"), ("cnn", "train"), ("lstm", "eval"), ("transformer", "eval"),
        ("once", "eval"), ("fused", "eval"), ("fused", "train"),
    ],
)  # fmt: skip
def test_training_is_the_same_to_the_bit(name: str, mode: str, optimizer: str) -> None:
    runs = []

    def watching(model: nn.Module, moved: torch.optim.Optimizer, _: DataLoader) -> Any:
        runs.append(
            watch(
                model, moved, data=held_out(name), criterion=F.cross_entropy, every=3, batch_size=4, probes=probes(),
                mode=mode, on_error="raise",
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
        options: dict[str, Any] = {"probes": probes(), "mode": mode, "every": 2, "on_error": "raise"}
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


# --------------------------------------------------------------------------- two players


def generator() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def discriminator() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(6, 1))


def play(make: Callable[[Any], torch.optim.Optimizer], *, watched: bool, mode: str = "train") -> Outcome:
    """Two players; each one's loss closes over the other, whose BatchNorm moves at every evaluation."""
    seed_everything(4)
    g, d = generator(), discriminator()
    opt_g, opt_d = make(g.parameters()), make(d.parameters())

    def loss_d(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        real, noise = model(batch[0]), model(g(batch[1]).detach())
        return F.softplus(-real).mean() + F.softplus(noise).mean()

    def loss_g(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.softplus(-d(model(batch[1]))).mean()

    fixed = [(torch.randn(6, 3), torch.randn(6, 2))]
    players = [
        Player("g", g, opt_g, fixed, 4, loss_fn=loss_g, mode=mode),
        Player("d", d, opt_d, fixed, 4, loss_fn=loss_d, mode=mode),
    ]
    run = watch(players, every=2, probes=probes(), on_error="raise") if watched else None
    losses = []
    if run is not None:
        run.__enter__()
    for _ in range(5):
        for opt, model, loss_fn in ((opt_d, d, loss_d), (opt_g, g, loss_g)):
            batch = (torch.randn(8, 3) + 1, torch.randn(8, 2))
            opt.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            opt.step()
            losses.append(loss.item())
    if run is not None:
        run.__exit__(None, None, None)
        for player in ("g", "d"):
            assert [r.step for r in run.run.select("stability", player)] == [0, 2, 4]
    return outcome([g, d], [opt_g, opt_d], losses)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"foreach": True}),
        (torch.optim.Adam, {"fused": True}),
        (torch.optim.SGD, {"momentum": 0.9, "foreach": True}),
        (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    ],
    ids=["adam", "adam foreach", "adam fused", "sgd foreach", "sgd fused"],
)
def test_two_players_are_the_same_to_the_bit(kind: Any, options: dict[str, Any]) -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        return kind(parameters, lr=0.01, **options)

    assert play(make, watched=True).differences(play(make, watched=False)) == []


def test_two_players_measured_in_another_mode_are_the_same_to_the_bit() -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.05)

    assert play(make, watched=True, mode="eval").differences(play(make, watched=False)) == []


# --------------------------------------------------------------------------- one measurement


class Ready:
    """A CNN in the middle of a training: gradients, momentum, user's hooks, a frozen parameter, mixed flags."""

    def __init__(self) -> None:
        seed_everything(6)
        self.model = cnn().train()
        self.model[3].eval()  # type: ignore[index]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.x, self.y = torch.randn(8, 1, 6, 6), torch.randint(CLASSES, (8,))
        F.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        self.model[0].bias.requires_grad_(False)  # type: ignore[index, union-attr]
        self.called: list[str] = []
        self.model[0].register_forward_hook(lambda *_: self.called.append("forward"))  # type: ignore[index]
        self.model[5].register_full_backward_hook(lambda *_: self.called.append("backward"))  # type: ignore[index]
        self.model[5].weight.register_hook(lambda _: self.called.append("tensor"))  # type: ignore[index, union-attr]
        self.fault = ""

    def loss_fn(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        if self.fault == "loss raises":
            raise ZeroDivisionError("on purpose")
        return loss * float("nan") if self.fault == "loss is nan" else loss

    def probe(self, snapshot: Snapshot) -> dict[str, float]:
        torch.rand(1), random.random()
        if self.fault == "probe raises":
            raise ZeroDivisionError("on purpose")
        return {"value": snapshot.loss}

    def batches(self) -> Any:
        owner = self

        class Batches:
            def __iter__(self) -> Any:
                torch.rand(1), random.random()
                yield owner.x, owner.y
                if owner.fault == "data raises":
                    raise ZeroDivisionError("on purpose")
                yield owner.x[:3], owner.y[:3]

        return Batches()


@pytest.mark.filterwarnings("ignore:losscope")
@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.parametrize("mode", ["eval", "train", "train_frozen"])
@pytest.mark.parametrize("fault", ["", "probe raises", "loss raises", "loss is nan", "data raises"])
@pytest.mark.parametrize("kernel", ["auto", "finite_difference"])
def test_one_measurement_leaves_no_trace(kernel: str, fault: str, mode: str, on_error: str) -> None:
    ready = Ready()
    hooked = {name: list(table) for name, table in vars(ready.optimizer).items() if name.endswith("_hooks")}
    chosen = [Sharpness(), Spectrum(2, 4), Trace(rtol=0.5), Stability(rtol=0.5), ready.probe]
    options: dict[str, Any] = {"loss_fn": ready.loss_fn, "weight": lambda b: len(b[0]), "mode": mode, "every": [10**9]}
    options |= {"batch_size": 4, "on_error": on_error, "kernel": kernel}
    with watch(ready.model, ready.optimizer, data=ready.batches(), probes=chosen, **options) as run:
        ready.fault = fault
        before = everything(ready.model, ready.optimizer)
        if on_error == "raise" and fault.endswith("raises"):
            with pytest.raises(ZeroDivisionError, match="on purpose"):
                run.measure_now()
        else:
            statuses = [r.status for r in run.measure_now()]
            expected = {
                "": ["ok"] * 5, "probe raises": ["ok"] * 4 + ["error"], "loss is nan": ["nonfinite"] * 5,
            }  # fmt: skip
            assert statuses == expected.get(fault, ["error"] * 5)
        assert everything(ready.model, ready.optimizer) == before
        assert ready.called == []
    assert everything(ready.model, ready.optimizer) == before
    assert {n: list(t) for n, t in vars(ready.optimizer).items() if n.endswith("_hooks")} == hooked


def test_making_and_entering_a_watch_draws_nothing_and_changes_nothing() -> None:
    ready = Ready()
    before = everything(ready.model, ready.optimizer)
    with watch(ready.model, ready.optimizer, data=ready.batches(), loss_fn=ready.loss_fn, weight=lambda b: len(b[0])):
        assert everything(ready.model, ready.optimizer) == before
    assert everything(ready.model, ready.optimizer) == before


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_between_forward_and_backward(name: str, mode: str) -> None:
    """A pending graph has saved tensors, among them BatchNorm's; it must still be theirs."""
    found = []
    for watched in (False, True):
        seed_everything(7)
        model = MODELS[name][0]().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        (x, y), (u, v) = next(iter(loader(name))), next(iter(loader(name)))
        with watch(model, optimizer, data=(u, v), criterion=F.cross_entropy, mode=mode, every=[10**9]) as run:
            loss = F.cross_entropy(model(x), y)
            if watched:
                assert [r.status for r in run.measure_now()] == ["ok"] * 3
            loss = loss + F.cross_entropy(model(u), v)
            if watched:
                run.measure_now()
            loss.backward()
        gradients = [p.grad.numpy().tobytes() for p in model.parameters() if p.grad is not None]
        found.append((gradients, [b.tolist() for b in model.buffers()], streams()))
    assert found[0] == found[1]
