"""Lightning's callback: training is what it was unwatched, and records are at its updates."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

import lightning.pytorch as pl

from digits_nets import digits
from losscope.landscape import SettingError
from losscope.probes import Player, Run, Sharpness, Snapshot, Stability, Trace
from losscope.probes.integrations.lightning import WatchCallback
from losscope.viz import plot_sharpness, plot_stability

pytestmark = [
    pytest.mark.filterwarnings("ignore:losscope. .* is measured in mode="),
    pytest.mark.filterwarnings("ignore:.*(num_workers|tensorboardX|val_dataloader|LeafSpec|isinstance)"),
]


class Digits(pl.LightningModule):
    """A classifier of digits that logs, keeps what it sees, and draws for dropout."""

    def __init__(self, optimizer: str = "sgd", dropout: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 10))
        self.optimizer, self.seen, self.totals = optimizer, 0, {}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen += 1
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self(batch[0]), batch[1]))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.totals[self.trainer.global_step] = sum_of(self)

    def configure_optimizers(self) -> Any:
        if self.optimizer == "adam":
            optimizer: Any = torch.optim.Adam(self.parameters(), lr=1e-2)
        else:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


class Manual(Digits):
    """The same, stepping by itself every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss / 2)
        if batch_idx % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


class Game(pl.LightningModule):
    """Two players, two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.fake, self.critic = nn.Linear(4, 64), nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        for optimizer, loss in ((second, told), (first, fooled)):
            optimizer.zero_grad()
            self.manual_backward(loss(self, batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.fake, self.critic)]


def fooled(game: Any, batch: Any) -> Tensor:
    return F.softplus(-game.critic(game.fake(batch[0][:, :4]))).mean()


def told(game: Any, batch: Any) -> Tensor:
    return (F.softplus(game.critic(game.fake(batch[0][:, :4]))) + F.softplus(-game.critic(batch[0]))).mean()


def sum_of(model: nn.Module) -> float:
    return float(sum(p.detach().double().sum() for p in model.parameters()))


def total(snapshot: Snapshot) -> dict[str, float]:
    return {"value": sum_of(snapshot.model)}


def loader(batch_size: int = 32, **options: Any) -> DataLoader[Any]:
    images, labels = digits(192)
    return DataLoader(TensorDataset(images.float(), labels), batch_size=batch_size, shuffle=True, **options)


def fit(folder: Path, module: Any, *callbacks: Any, ckpt_path: Any = None, loaders: Any = None, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "max_steps": 6, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    trainer = pl.Trainer(callbacks=list(callbacks), **settings | options)
    trainer.fit(module, loader() if loaders is None else loaders, loader(), ckpt_path=ckpt_path)
    return trainer


def seeded(build: Any, *arguments: Any) -> Any:
    torch.manual_seed(0)
    return build(*arguments)


def outcome(trainer: Any) -> list[Any]:
    """Weights, optimizer state, what was logged and where the random stream stands."""
    state = [v for o in trainer.optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
    tensors = [*trainer.lightning_module.state_dict().values(), *state, torch.get_rng_state()]
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return [logged, trainer.global_step, *(t.numpy().tobytes() for t in tensors)]


def hooks(optimizer: Any) -> int:
    return sum(len(table) for name, table in vars(optimizer).items() if name.endswith("_hooks"))


# --------------------------------------------------------------------------- whole trainings

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (Digits, {}),
    "adam, accumulated, clipped": (
        lambda: Digits("adam"), {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "max_steps": 5},
    ),
    "bf16": (Digits, {"precision": "bf16-mixed"}),
    "manual": (Manual, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_watched_training_ends_with_the_same_bits(case: str, tmp_path: Path) -> None:
    build, options = CASES[case]
    plain = fit(tmp_path, seeded(build), **options)
    expected, seen = outcome(plain), plain.lightning_module.seen
    probes = [Sharpness(), Trace(rtol=0.5), total]
    callback = WatchCallback(
        criterion=nn.CrossEntropyLoss(), every=2, out=tmp_path / "run", mode="train", probes=probes
    )
    watched = fit(tmp_path, seeded(build), callback, **options)
    assert outcome(watched) == expected and watched.lightning_module.seen == seen
    run, module = Run(tmp_path / "run"), watched.lightning_module
    assert run.status == "finished" and run.meta["steps"] == {"model": watched.global_step}
    for probe in ("sharpness", "trace"):
        assert [r.step for r in run.select(probe)] == list(range(0, watched.global_step, 2)), probe
    assert all(module.totals[r.step] == r.value for r in run.select("total"))
    assert hooks(watched.optimizers[0]) == 0


def test_figures_are_made_from_a_run(tmp_path: Path) -> None:
    callback = WatchCallback(
        criterion=nn.CrossEntropyLoss(), every=2, out=tmp_path / "run", mode="train",
        probes=[Sharpness(), Stability(rtol=0.5)],
    )  # fmt: skip
    fit(tmp_path, seeded(Digits), callback)
    run = Run(tmp_path / "run")
    assert len(run.select("sharpness")) == len(run.select("stability")) == 3
    drawn = [line for ax in np.ravel(plot_sharpness(run)) for line in ax.lines]
    assert any(list(line.get_xdata()) == [0, 2, 4] for line in drawn)
    assert any(ax.lines for ax in np.ravel(plot_stability(run)))


def test_losses_are_recorded_at_their_updates(tmp_path: Path) -> None:
    class Notes(pl.Callback):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.losses.append(float(outputs["loss"]))

    callback = WatchCallback(criterion=nn.CrossEntropyLoss(), every=4, probes=[total])
    fit(tmp_path, seeded(Digits), callback, notes := Notes(), accumulate_grad_batches=2, log_every_n_steps=2)
    steps, losses = callback.run.logged("loss")
    assert list(steps) == [1, 3, 5]
    assert list(losses) == [notes.losses[2 * t + 1] for t in steps]
    assert callback.run.meta["players"]["model"]["batch_size"] == 64


def test_several_optimizers_are_players(tmp_path: Path) -> None:
    batch = next(iter(loader()))

    def players(module: Any, optimizers: Any) -> list[Player]:
        first, second = optimizers
        return [
            Player("fake", module, first, [batch], loss_fn=fooled, batch_size=32),
            Player("critic", module, second, [batch], loss_fn=told, batch_size=32),
        ]

    options = {"max_steps": 12}
    expected = outcome(fit(tmp_path, seeded(Game), **options))
    callback = WatchCallback(players=players, every=3, probes=[Sharpness()])
    assert outcome(fit(tmp_path, seeded(Game), callback, **options)) == expected
    for name in ("fake", "critic"):
        assert [r.step for r in callback.run.select("sharpness", name)] == [0, 3]
    with pytest.raises(SettingError, match="Game has 2 optimizers; pass players="):
        fit(tmp_path, seeded(Game), WatchCallback(criterion=nn.MSELoss()), **options)


# --------------------------------------------------------------------------- ends


class Stops(pl.Callback):
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            if self.error is not None:
                raise self.error
            trainer.should_stop = True


def test_a_training_that_stops_early(tmp_path: Path) -> None:
    callback = WatchCallback(criterion=nn.CrossEntropyLoss(), every=1, probes=[total])
    done = fit(tmp_path, seeded(Digits), callback, Stops(None), min_epochs=0)
    assert callback.run.status == "finished" and len(callback.run.select("total")) == done.global_step == 3


@pytest.mark.parametrize("error", [ArithmeticError("on purpose"), KeyboardInterrupt("on purpose")], ids=repr)
def test_a_training_that_raises(error: BaseException, tmp_path: Path) -> None:
    callback = WatchCallback(criterion=nn.CrossEntropyLoss(), every=1, out=tmp_path / "run", probes=[total])
    comes_out = SystemExit if isinstance(error, KeyboardInterrupt) else type(error)  # Lightning's own ways
    with pytest.raises(comes_out):
        fit(tmp_path, seeded(Digits), callback, Stops(error))
    run = Run(tmp_path / "run")
    assert run.status == "failed" and run.meta["reason"] == f"{type(error).__name__}: on purpose"
    assert len(run.select("total")) == 3


def test_resuming_from_a_checkpoint_goes_on(tmp_path: Path) -> None:
    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "at-3.ckpt")

    options: dict[str, Any] = {"criterion": nn.CrossEntropyLoss(), "every": 2, "probes": [Sharpness(), total]}
    ordered = {"loaders": DataLoader(loader().dataset, batch_size=64)}  # of which the fourth batch begins an epoch
    whole = fit(tmp_path, seeded(Digits, "sgd", 0.0), callback := WatchCallback(**options), **ordered)
    expected = callback.run

    out = tmp_path / "run"
    stopped = seeded(Digits, "sgd", 0.0)
    fit(tmp_path, stopped, WatchCallback(out=out, **options), Saves(), max_steps=3, **ordered)
    assert [r.step for r in Run(out).select("total")] == [0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed = fit(
            tmp_path, Digits("sgd", 0.0), WatchCallback(out=out, **options), ckpt_path=tmp_path / "at-3.ckpt", **ordered
        )
    assert outcome(resumed)[2:-1] == outcome(whole)[2:-1]
    for probe in ("total", "sharpness"):
        assert [(r.step, r.value) for r in Run(out).select(probe)] == [
            (r.step, r.value) for r in expected.select(probe)
        ]


# --------------------------------------------------------------------------- bad input


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"pass criterion= .* or loss_fn=.* without its self.log"):
        fit(tmp_path, Digits(), WatchCallback())
    with pytest.raises(SettingError, match=r"samples of CombinedLoader|samples of list|samples of dict"):
        fit(tmp_path, Digits(), WatchCallback(criterion=nn.MSELoss()), loaders={"a": loader(), "b": loader()})
    with pytest.raises(SettingError, match="resume= is not for the callback: Lightning's Trainer trains"):
        WatchCallback(resume=True)


def test_hugging_faces_callback_names_this_one(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from losscope.probes.integrations.transformers import WatchCallback as Foreign

    with pytest.raises(SettingError, match=r"from losscope.probes.integrations.lightning import WatchCallback"):
        fit(tmp_path, Digits(), Foreign())


def test_the_packages_other_name(tmp_path: Path) -> None:
    """Its classes are others than those of ``lightning.pytorch``; a callback that stands alone must be one of them."""
    pytest.importorskip("pytorch_lightning")
    script = tmp_path / "script.py"
    script.write_text(
        """
import pytorch_lightning as pl, torch, sys
from torch import nn
from losscope.probes import Sharpness
from losscope.probes.integrations.lightning import WatchCallback
class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
data = torch.utils.data.TensorDataset(torch.randn(16, 3), torch.randn(16, 1))
callback = WatchCallback(criterion=nn.MSELoss(), every=1, probes=[Sharpness()])
pl.Trainer(callbacks=callback, max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False).fit(
    Line(), torch.utils.data.DataLoader(data, batch_size=4))
print([r.step for r in callback.run.select("sharpness")], "lightning.pytorch" in sys.modules)
"""
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 1, 2, 3] False"
