"""The choice of a kernel: trust before capability, capability before speed, and all of it said."""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from custom_functions import Squares
from landscape_cases import Checkpointed, labelled, mlp
from losscope.landscape import (
    DoubleBackwardError,
    Hessian,
    KernelError,
    Objective,
    SettingError,
    top_eigenpairs,
    trace,
)
from losscope.landscape.kernels import choice as choice_module
from losscope.landscape.kernels.batched import Batched
from losscope.landscape.kernels.choice import KERNELS, choose, settle
from losscope.landscape.kernels.retained import Retained

CE = nn.CrossEntropyLoss()


def plain(sizes: tuple[int, ...] = (12,)) -> Objective:
    return Objective(mlp(4, 6, 3), labelled(list(sizes)), criterion=CE)


def bootstrapped() -> Objective:
    def loss_fn(m: nn.Module, b: Any) -> Tensor:
        q = m(b[0])
        return (q - 0.9 * q.detach().roll(1, 0)).square().mean()

    return Objective(mlp(4, 6, 3), labelled([12]), loss_fn=loss_fn)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds per call that kernels are taken to need; nothing is compiled."""
    taken = {"retained": 1.0, "batched": 1.0}
    names = {"Batched": "batched", "Retained": "retained"}

    def timed(self: Any, name: str, V: Tensor) -> float:
        assert type(self._kernels[name]).__name__ in names
        if V.shape[1] == self.block:
            self._seconds.setdefault(name, []).append(taken[name] * V.shape[1])
        return taken[name] * V.shape[1]

    monkeypatch.setattr(choice_module._Trial, "_time", timed)
    monkeypatch.setattr(choice_module, "_COMPILE_SECONDS", 1e9)
    monkeypatch.setattr(choice_module, "_TRIAL_SECONDS", 0.0)
    return taken


# --------------------------------------------------------------------------- speed, and what comes before it


@pytest.mark.parametrize("batched", [0.5, 0.99, 1.0, 2.0])
def test_the_fastest_is_chosen_and_the_simpler_one_in_a_tie(seconds: dict[str, float], batched: float) -> None:
    seconds["batched"] = batched
    found = choose(plain(), block=4)
    assert found.kernel == ("batched" if batched < 0.95 else "retained")
    assert found.agreement == "agrees"
    assert [c.name for c in found.candidates] == ["retained", "batched", "compiled"]
    assert found.candidates[1].error <= 1e-5
    assert "ms per vector" in found.reason and "batched" in found.reason


def test_ambiguity_never_follows_speed(seconds: dict[str, float]) -> None:
    seconds["batched"] = 1e-6
    found = choose(bootstrapped(), block=4)
    assert (found.kernel, found.agreement) == ("retained", "ambiguous")
    assert len(re.findall(r"v'Hv = -?[\d.]+|give -?[\d.]+", found.reason)) == 2


def test_a_kernel_with_other_products_is_refused_with_both_norms(
    seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds["batched"] = 1e-6
    monkeypatch.setattr(Batched, "_times", lambda self, g, rows: 2 * Retained._times(self, g, rows))
    objective = plain()
    found = choose(objective, block=2)
    assert found.kernel == "retained"
    refused = {c.name: c.refused for c in found.candidates}["batched"]
    V = objective.space.random(2, torch.Generator().manual_seed(0))
    norm = float((Retained(objective)(V)).norm())
    named = [float(x) for x in re.findall(r"norms ([\d.e+-]+) and ([\d.e+-]+),", refused)[0]]
    assert named == pytest.approx([2 * norm, norm], rel=1e-5)
    assert "batched" in repr(found) and "differ from double backward" in repr(found)


def test_running_out_of_memory_refuses_a_candidate_and_nothing_else(
    seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(Batched, "_times", full)
    found = choose(plain(), block=4)
    assert found.kernel == "retained"
    assert {c.name: c.refused for c in found.candidates}["batched"] == "out of memory"


def test_a_hopeless_pair_of_vectors_is_not_followed_by_the_block(seconds: dict[str, float]) -> None:
    seconds["batched"] = 10.0
    widths: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        real = Batched._times
        patch.setattr(Batched, "_times", lambda self, g, rows: (widths.append(len(rows)), real(self, g, rows))[1])
        found = choose(plain(), block=8)
        assert (found.kernel, set(widths)) == ("retained", {2})
        seconds["batched"] = 1.5
        choose(plain(), block=8)
        assert set(widths) == {2, 8}


def test_compiling_is_not_tried_for_little_work_and_that_is_said() -> None:
    found = choose(plain(), block=2, planned=10)
    refused = {c.name: c.refused for c in found.candidates}["compiled"]
    assert re.search(r"not tried: compiling takes about \d+ s, 10 products", refused)
    assert refused in repr(found)


def test_every_shape_of_batches_is_compiled_for() -> None:
    one, two = (
        {c.name: c.refused for c in choose(plain(s), planned=10).candidates}["compiled"] for s in ((8, 8), (8, 1))
    )
    assert "about 20 s" in one and "about 40 s" in two


def test_compiling_is_tried_where_it_is_repaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another backend, which takes a second; the rest is as it is for users."""
    from losscope.landscape.kernels.compiled import Compiled

    class Quick(Compiled):
        def __init__(self, objective: Objective, memory: int | None = None) -> None:
            super().__init__(objective, memory, "aot_eager")

    monkeypatch.setitem(choice_module.KERNELS, "compiled", Quick)
    monkeypatch.setattr(choice_module, "_COMPILE_SECONDS", 0.0)
    compiled = {c.name: c for c in choose(plain(), block=2, planned=1000).candidates}["compiled"]
    assert not compiled.refused and compiled.seconds > 0 and compiled.error <= 1e-5

    model = mlp(4, 6, 3)
    held = list(model.parameters())
    for loss_fn, reason in (
        (lambda m, b: CE(m(b[0]), b[1]) + sum(p.square().sum() for p in held), "holds on to the parameter 0.weight"),
        (lambda m, b: CE(F.dropout(m(b[0])), b[1]), "draws random numbers"),
    ):
        found = choose(Objective(model, labelled([6]), loss_fn=loss_fn), block=2)
        assert found.kernel != "compiled"
        assert reason in {c.name: c.refused for c in found.candidates}["compiled"]


# --------------------------------------------------------------------------- capability


class FlashAttention(nn.Module):
    """The fused kernel, insisted upon."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v)


def once() -> Objective:
    model = nn.Sequential(nn.Linear(4, 5), Squares(), nn.Linear(5, 3))
    return Objective(model, labelled([12]), criterion=CE)


def flash() -> Objective:
    model = nn.Sequential(FlashAttention())
    return Objective(model, [torch.randn(2, 5, 4)], loss_fn=lambda m, x: m(x).square().mean(), weight=len)


@pytest.mark.parametrize("planned", [1, 5000], ids=["untried", "tried"])
@pytest.mark.parametrize(
    ("make", "named"), [(once, ["Once", "layer 1 (Squares)"]), (flash, ["flash", "layer 0 (FlashAttention)"])]
)
def test_without_double_backward_differences_take_over_and_the_layer_is_named(
    make: Callable[[], Objective], named: list[str], planned: int
) -> None:
    objective = make()
    operator = Hessian(objective, planned=planned)
    result = top_eigenpairs(operator, 2, tol=5e-2, seed=0)
    assert result.kernel == operator.kernel == operator.choice.kernel == "finite_difference"
    assert operator.choice.agreement == "unverified"
    for word in named:
        assert word in result.note, result.note
    assert "finite differences of the gradient, since" in result.note
    assert "products within" in result.note
    assert {c.name for c in operator.choice.candidates if c.refused} == {"retained"}
    with pytest.raises(DoubleBackwardError, match='kernel="finite_difference"'):
        Hessian(objective, "retained") @ torch.ones(objective.space.size)


def test_differences_that_take_over_are_right() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square()

    objective = once()
    model = nn.Sequential(objective.model[0], Twice(), objective.model[2])
    expected = Hessian(Objective(model, objective.data, criterion=CE), "retained")
    V = objective.space.random(3, torch.Generator().manual_seed(1))
    torch.testing.assert_close(Hessian(objective) @ V, expected @ V, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("planned", [1, 5000])
def test_reentrant_checkpointing_is_no_reason_for_differences(planned: int) -> None:
    model = Checkpointed(use_reentrant=True)
    objective = Objective(model, labelled([4]), criterion=CE)
    operator = Hessian(objective, planned=planned)
    found = operator @ torch.ones(operator.shape[0])
    assert operator.kernel != "finite_difference"
    model.use_reentrant = False
    torch.testing.assert_close(found, Hessian(objective) @ torch.ones(operator.shape[0]))


def test_half_precision_without_double_backward_says_what_is_missing() -> None:
    x, y = labelled([12])[0]
    model = nn.Sequential(nn.Linear(4, 5), Squares(), nn.Linear(5, 3)).bfloat16()
    operator = Hessian(Objective(model, (x.bfloat16(), y), criterion=CE))
    with pytest.raises(DoubleBackwardError, match="Once") as caught:
        operator @ torch.ones(operator.shape[0])
    assert isinstance(caught.value.__cause__, SettingError)


# --------------------------------------------------------------------------- what results say, what is overridden


def test_ambiguity_is_in_the_note_of_results() -> None:
    operator = Hessian(bootstrapped())
    for result in (top_eigenpairs(operator, seed=0), trace(operator, seed=0)):
        assert result.kernel == "retained"
        assert result.note.startswith("ambiguous: double backward gives")
    assert operator.choice.agreement == "ambiguous"


def test_an_honest_hessian_has_no_note() -> None:
    operator = Hessian(plain())
    assert operator.kernel == "auto" and operator.choice is None
    result = top_eigenpairs(operator, seed=0)
    assert (result.kernel, result.note) == ("retained", "")
    assert operator.choice.kernel == "retained" and "no trial" in operator.choice.reason


@pytest.mark.parametrize("name", ["retained", "batched", "finite_difference"])
def test_a_kernel_asked_for_is_taken_without_a_trial(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(choice_module._Trial, "measure", lambda *_, **__: pytest.fail("a trial was made"))
    operator = Hessian(plain(), name, planned=10**6)
    result = top_eigenpairs(operator, 2, tol=1e-2, seed=0)
    assert result.kernel == operator.kernel == name
    assert operator.choice is None


def test_many_products_planned_make_a_trial() -> None:
    objective = plain()
    tried = []
    real = choice_module._Trial.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice_module._Trial, "measure", lambda *a, **k: (tried.append(a[1]), real(*a, **k))[1])
        patch.setattr(choice_module, "_COMPILE_SECONDS", 1e9)
        operator = Hessian(objective, planned=64 * 8)
        operator @ torch.ones(operator.shape[0], 8)
    assert set(tried) == {"retained", "batched"}
    assert operator.choice.block == 8
    assert len(operator.choice.candidates) == 3


def test_a_choice_is_shared_by_snapshots_and_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = plain()
    first = Hessian(objective)
    top_eigenpairs(first, seed=0)
    monkeypatch.setattr(choice_module, "_untried", lambda *_, **__: pytest.fail("chosen again"))
    monkeypatch.setattr(choice_module, "choose", lambda *_, **__: pytest.fail("chosen again"))
    for other in (objective, objective.snapshot(1)):
        later = Hessian(other)
        top_eigenpairs(later, seed=0)
        assert later.choice is first.choice


def test_other_weights_of_samples_are_another_choice() -> None:
    objective = plain()
    assert settle(objective, block=1, planned=1, memory=None) is settle(objective, block=1, planned=1, memory=None)
    weighted = objective.weighted(torch.rand(12))
    assert settle(weighted, block=1, planned=1, memory=None) is not settle(objective, block=1, planned=1, memory=None)


def test_choosing_leaves_no_trace_and_measures_nothing_twice() -> None:
    objective = plain()
    model = objective.model.train()
    before = [(p.data_ptr(), p._version) for p in model.parameters()], torch.get_rng_state()
    choose(objective, block=2, planned=10)
    assert [(p.data_ptr(), p._version) for p in model.parameters()] == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert model.training and all(p.grad is None for p in model.parameters())


def test_a_trial_is_short() -> None:
    objective = plain()
    choose(objective, block=2, planned=200)  # warm
    started = time.perf_counter()
    choose(objective, block=2, planned=200)
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize(("block", "planned"), [(0, 10), (-1, 10), (1, 0)])
def test_numbers_below_one_are_refused(block: int, planned: int) -> None:
    with pytest.raises(SettingError, match="must be a positive integer"):
        choose(plain(), block=block, planned=planned)


@pytest.mark.parametrize("name", ["fast", "", "AUTO"])
def test_unknown_kernels_are_refused_with_the_list(name: str) -> None:
    with pytest.raises(SettingError, match=r"'auto', 'retained', 'batched', 'compiled', 'finite_difference'"):
        Hessian(plain(), name)


@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
@pytest.mark.parametrize(
    ("V", "words"),
    [
        (torch.ones(5), "expected shape"),
        (torch.ones(51).double(), "expected torch.float32"),
        (torch.ones(51, 2, 2), "expected shape"),
        (torch.ones(51).long(), "expected torch.float32"),
        (torch.ones(51, device="meta"), "on cpu"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(kernel: str, V: Tensor, words: str) -> None:
    operator = Hessian(plain(), kernel)
    assert operator.shape[0] == 51
    with pytest.raises(SettingError, match=words):
        operator @ V


def test_a_chosen_kernel_that_fails_later_gives_way_to_double_backward() -> None:
    """As compiled code does where numbers that the loss reads change at every snapshot."""
    objective = plain()
    operator = Hessian(objective, planned=10)
    V = torch.ones(objective.space.size, 2)
    expected = operator @ V
    chosen = dataclasses.replace(operator.choice, kernel="compiled")

    class Failing:
        name = "compiled"

        def __call__(self, V: torch.Tensor) -> torch.Tensor:
            raise KernelError("cannot be compiled any more")

    for key in [key for key in objective.kept if key[0] == "choice"]:
        objective.kept[key] = chosen
    operator.choice, operator._name = chosen, "compiled"
    operator._kernels["compiled"] = Failing()
    assert torch.equal(operator @ V, expected)
    assert operator.kernel == "retained" and "cannot be compiled any more" in operator.choice.reason
    assert {kept.kernel for key, kept in objective.kept.items() if key[0] == "choice"} == {"retained"}


@pytest.mark.parametrize("setting", [{"memory": "1GB"}, {"memory": 0}, {"planned": -5}, {"planned": 1.5}])
def test_counts_must_be_positive_integers(setting: dict) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(setting))} must be a positive integer"):
        Hessian(plain(), **setting)
