"""Loops of every shape are the same to the bit when watched, with every record at the right step, rate and weights."""

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers
from torch.optim import swa_utils
from torch.utils.data import DataLoader, TensorDataset

from loop_cases import Case, Loop, Parts, net, sgd, undisturbed
from losscope.probes import Player, Stability, watch
from probe_cases import CLASSES, checksum, checksum_of

# --------------------------------------------------------------------------- between forward and step


def accumulation(loop: Loop) -> Parts:
    model = net()
    optimizer = sgd(model)
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            for part, target in zip(x.split(4), y.split(4), strict=True):
                loop.backward(F.cross_entropy(model(part), target) / 2)
            loop.update(model, optimizer)
    return [model], [optimizer]


def clipping(loop: Loop) -> Parts:
    model = net()
    optimizer = sgd(model)
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            loop.backward(F.cross_entropy(model(x), y))
            clip = nn.utils.clip_grad_norm_ if i % 2 else nn.utils.clip_grad_value_
            clip(model.parameters(), 0.1)
            loop.update(model, optimizer)
    return [model], [optimizer]


def noisy_single_sample_gradients(loop: Loop) -> Parts:
    """Gradients written by hand: clipped sample by sample, with noise, as private training does."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    optimizer = sgd(model)

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, (x[None],)), y[None])

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            each = gradients({name: p.detach() for name, p in model.named_parameters()}, x, y)
            for name, p in model.named_parameters():
                p.grad = each[name].clamp(-0.1, 0.1).mean(0) + 0.01 * torch.randn(p.shape)
            loop.update(model, optimizer)
    return [model], [optimizer]


def gradient_penalty(loop: Loop) -> Parts:
    """A loss that differentiates the model itself."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = sgd(model)

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return model(batch[0]).mean() + ((slope.norm(dim=1) - 1) ** 2).mean()

    with loop.watch(model, optimizer, loss_fn=loss_fn):
        for batch in loop.batches():
            loop.backward(loss_fn(model, batch))
            loop.update(model, optimizer)
    return [model], [optimizer]


def prefetch(loop: Loop) -> Parts:
    """The buffers of the batch hold the next one before this one's backward pass."""
    model, x, y = net(), torch.empty(8, 6), torch.empty(8, dtype=torch.long)
    optimizer, batches = sgd(model), loop.batches(7)

    def fetch() -> None:
        for buffer, content in zip((x, y), next(batches), strict=True):
            buffer.copy_(content)

    with loop.watch(model, optimizer):
        fetch()
        for _ in range(6):
            loss = F.cross_entropy(model(x.clone()), y.clone())
            fetch()
            loop.backward(loss)
            loop.update(model, optimizer)
    return [model], [optimizer]


def worker_processes(loop: Loop) -> Parts:
    """They are seeded from the global stream, and the loader that is iterated is measured on."""
    model = net()
    optimizer = sgd(model)
    loader = DataLoader(
        TensorDataset(loop.x, loop.y), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True
    )
    with loop.watch(model, optimizer, data=loader):
        for _ in range(2):
            for x, y in loader:
                loop.backward(F.cross_entropy(model(x), y))
                loop.update(model, optimizer)
    return [model], [optimizer]


# --------------------------------------------------------------------------- precision


def autocast(loop: Loop, dtype: torch.dtype) -> Parts:
    model = net()
    optimizer = sgd(model)

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return F.cross_entropy(model(batch[0]), batch[1])

    with loop.watch(model, optimizer, loss_fn=loss_fn):
        for batch in loop.batches():
            loop.backward(loss_fn(model, batch))
            loop.update(model, optimizer)
    return [model], [optimizer]


def autocast_around_everything(loop: Loop) -> Parts:
    """The step too, so that hooks are called within."""
    model = net()
    optimizer = sgd(model)
    with loop.watch(model, optimizer), torch.autocast("cpu", dtype=torch.bfloat16):
        for x, y in loop.batches():
            loop.backward(F.cross_entropy(model(x), y))
            loop.update(model, optimizer)
    return [model], [optimizer]


def scaled(loop: Loop, fused: bool) -> Parts:
    """With gradients that overflow in the second and the fourth update, which are skipped."""
    model = net()
    optimizer, scaler = sgd(model, fused=fused), torch.amp.GradScaler("cpu", init_scale=64.0)
    with loop.watch(model, optimizer, scaler=scaler):
        for i, (x, y) in enumerate(loop.batches(8)):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y) * (float("inf") if i in (1, 3) else 1.0)
            loop.backward(scaler.scale(loss))
            if i % 3:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if i not in (1, 3):
                loop.note(model, 0.05)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
    loop.losses.append(scaler.get_scale())
    return [model], [optimizer]


# --------------------------------------------------------------------------- optimizers


def closure(loop: Loop) -> Parts:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3, line_search_fn="strong_wolfe")
    with loop.watch(model, optimizer):
        for batch in loop.batches():

            def evaluate(x: Tensor = batch[0], y: Tensor = batch[1]) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loop.backward(loss)
                return loss.detach()

            loop.note(model, 0.5)
            optimizer.step(evaluate)  # type: ignore[arg-type]
    return [model], [optimizer]


def several_optimizers(loop: Loop) -> Parts:
    model = net()
    body = torch.optim.AdamW(model[:-1].parameters(), lr=0.01)  # type: ignore[index]
    head = torch.optim.SGD(model[-1].parameters(), lr=0.05)  # type: ignore[index, union-attr]
    with loop.watch(model, [body, head]):
        for x, y in loop.batches():
            loop.backward(F.cross_entropy(model(x), y))
            loop.update(model, body, head)
    return [model], [body, head]


def one_optimizer_per_parameter_stepping_in_backward(loop: Loop) -> Parts:
    """A parameter moves, and its gradient is freed, before the next gradient is there; the loop says when all have."""
    model = net()
    optimizers = {p: torch.optim.SGD([p], lr=0.05, momentum=0.9) for p in model.parameters()}

    def step(p: Tensor) -> None:
        optimizers[p].step()  # type: ignore[index]
        optimizers[p].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    every = list(optimizers.values())
    with loop.watch(model, every, drive="manual") as run:
        for x, y in loop.batches():
            loop.note(model, 0.05)
            loop.backward(F.cross_entropy(model(x), y))
            run.step()
    loop.note(model, 0.05)
    return [model], every


def updates_in_inference_mode(loop: Loop, build: Callable[..., torch.optim.Optimizer] = torch.optim.Adam) -> Parts:
    """What the optimizer keeps, and what is made while it steps, can be differentiated by nobody."""
    model = net()
    optimizer = build(model.parameters(), lr=0.05)
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            loop.backward(F.cross_entropy(model(x), y))
            with torch.inference_mode():
                loop.update(model, optimizer)
    return [model], [optimizer]


def updates_without_an_optimizer(loop: Loop, mode: Callable[[], Any] = torch.no_grad) -> Parts:
    """As a replayed CUDA graph makes them: nothing is called that hooks could follow."""
    model = net()

    settings = types.SimpleNamespace(param_groups=[{"params": list(model.parameters()), "lr": 0.05}])
    with loop.watch(model, settings, drive="manual") as run:
        for x, y in loop.batches():
            loop.note(model, 0.05)
            loss = F.cross_entropy(model(x), y)
            loop.losses.append(loss.item())
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with mode():
                for p, gradient in zip(model.parameters(), gradients, strict=True):
                    p.sub_(0.05 * gradient)
                run.step()
    loop.note(model, 0.05)
    return [model], []


# --------------------------------------------------------------------------- copies, schedules, selections


def averaged_copies(loop: Loop) -> Parts:
    """One updated at each step, one from the third on, with statistics of its own at the end."""
    model = net()
    optimizer = sgd(model)
    moving = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    late, schedule = swa_utils.AveragedModel(model), swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            loop.backward(F.cross_entropy(model(x), y))
            loop.update(model, optimizer)
            moving.update_parameters(model)
            schedule.step()
            if i > 2:
                late.update_parameters(model)
        swa_utils.update_bn([(loop.x,)], late)
    return [model, moving, late], [optimizer]


def the_averaged_copy_itself(loop: Loop) -> Parts:
    """Measured at the average, which no optimizer moves."""
    model = net()
    optimizer, copy = sgd(model), swa_utils.AveragedModel(model)
    with loop.watch(copy, optimizer, drive="manual", params=list(copy.parameters())) as run:
        for x, y in loop.batches():
            loop.note(copy, 0.05)
            loop.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            copy.update_parameters(model)
            run.step()
    loop.note(copy, 0.05)
    return [model, copy], [optimizer]


def scheduled(loop: Loop, make: Callable[[torch.optim.Optimizer], Any]) -> Parts:
    model = net()
    optimizer = sgd(model)
    schedule = make(optimizer)
    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            loop.backward(F.cross_entropy(model(x), y))
            loop.update(model, optimizer)
            if isinstance(schedule, schedulers.ReduceLROnPlateau):
                schedule.step(loop.losses[-1])
            else:
                schedule.step()
    return [model], [optimizer]


def thawing(loop: Loop) -> Parts:
    """Trained from the head downwards: layers thaw and become a group of parameters, and one freezes."""
    model = net()
    model[:-1].requires_grad_(False)  # type: ignore[index]
    optimizer = torch.optim.SGD(model[-1].parameters(), lr=0.05, momentum=0.9)  # type: ignore[index, union-attr]
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches(8)):
            if i == 3:
                model[0].requires_grad_(True)  # type: ignore[index, operator]
                optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.05})  # type: ignore[index, union-attr]
            if i == 5:
                model[-1].requires_grad_(False)  # type: ignore[index, operator]
            loop.backward(F.cross_entropy(model(x), y))
            loop.update(model, optimizer)
    return [model], [optimizer]


def growing(loop: Loop) -> Parts:
    """A layer is added to the model in mid-run."""
    model = net()
    optimizer = sgd(model)
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            if i == 3:
                model.append(nn.Linear(CLASSES, CLASSES))  # type: ignore[operator]
                optimizer.add_param_group({"params": model[-1].parameters(), "lr": 0.05})  # type: ignore[index, union-attr]
            loop.backward(F.cross_entropy(model(x), y))
            loop.update(model, optimizer)
    return [model], [optimizer]


def rolled_back(loop: Loop) -> Parts:
    """After a spike the loop goes back to what it had kept."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    with loop.watch(model, optimizer):
        for i, (x, y) in enumerate(loop.batches()):
            if i == 1:
                weights = {name: value.clone() for name, value in model.state_dict().items()}
            if i == 4:
                model.load_state_dict(weights)
            loop.backward(F.cross_entropy(model(x), y))
            loop.update(model, optimizer)
    return [model], [optimizer]


# --------------------------------------------------------------------------- the matrix

LOOPS: dict[str, Case] = {
    "accumulation": accumulation,
    "clipping": clipping,
    "noisy single-sample gradients": noisy_single_sample_gradients,
    "gradient penalty": gradient_penalty,
    "prefetch": prefetch,
    "worker processes": worker_processes,
    "autocast bf16": functools.partial(autocast, dtype=torch.bfloat16),
    "autocast fp16": functools.partial(autocast, dtype=torch.float16),
    "autocast around everything": autocast_around_everything,
    "scaled": functools.partial(scaled, fused=False),
    "scaled, fused": functools.partial(scaled, fused=True),
    "closure": closure,
    "several optimizers": several_optimizers,
    "stepping in backward": one_optimizer_per_parameter_stepping_in_backward,
    "inference mode": updates_in_inference_mode,
    "inference mode, momentum": functools.partial(
        updates_in_inference_mode, build=functools.partial(torch.optim.RMSprop, momentum=0.5)
    ),
    "no optimizer": updates_without_an_optimizer,
    "no optimizer, inference mode": functools.partial(updates_without_an_optimizer, mode=torch.inference_mode),
    "averaged copies": averaged_copies,
    "the averaged copy itself": the_averaged_copy_itself,
    "one cycle": functools.partial(scheduled, make=lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=10)),
    "warm-up from zero": functools.partial(scheduled, make=lambda o: schedulers.LambdaLR(o, lambda i: i / 4)),
    "warm restarts": functools.partial(scheduled, make=lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3)),
    "plateau": functools.partial(scheduled, make=lambda o: schedulers.ReduceLROnPlateau(o, patience=0)),
    "thawing": thawing,
    "growing": growing,
    "rolled back": rolled_back,
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_the_same_to_the_bit(name: str) -> None:
    run = undisturbed(LOOPS[name])
    assert {r.kernel for r in run.run.select("sharpness")} == {"retained"}


@pytest.mark.parametrize("fused", [False, True])
def test_skipped_updates_are_counted_with_the_scaler_given(fused: bool) -> None:
    run = undisturbed(functools.partial(scaled, fused=fused))
    assert run.steps == 6 and run.run.meta["players"]["model"]["skipped_updates"] == 2


def test_layers_that_thaw_are_measured_from_then_on() -> None:
    run = undisturbed(thawing)
    head, first = 8 * CLASSES + CLASSES, 6 * 8 + 8
    assert run.run.meta["players"]["model"]["parameters"] == first
    assert run.run.meta["identity"]["model"]["parameters"] == head


def test_one_model_on_two_sets_of_data() -> None:
    """Two players that share model and optimizer: each update is one of both."""

    def case(loop: Loop) -> Parts:
        model = net()
        optimizer = sgd(model)
        options: dict[str, Any] = {"criterion": F.cross_entropy, "batch_size": 8}
        players = [
            Player("model", model, optimizer, (loop.x[:8], loop.y[:8]), mode="train", **options),
            Player("held out", model, optimizer, (loop.x[8:], loop.y[8:]), **options),
        ]
        run: Any = watch(players, every=2, probes=[Stability(rtol=0.5), checksum]) if loop.watched else loop.watch(0, 0)
        with run:
            for x, y in loop.batches():
                loop.backward(F.cross_entropy(model(x), y))
                loop.update(model, optimizer)
        if loop.watched:
            for player in ("model", "held out"):
                found = [(r.step, r.value) for r in run.run.select("checksum", player)]
                assert found == [(t, value) for t, _, value in loop.noted if t % 2 == 0]
                assert [r.status for r in run.run.select("stability", player)] == ["ok"] * 3
        return [model], [optimizer]

    weights = []
    for watched in (False, True):
        model = case(Loop(watched))[0][0]
        weights.append(checksum_of(model))
    assert weights[0] == weights[1]
