"""Float32 stays float32 inside a measurement, and the process gets back the flags that it had set."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from landscape_cases import build, labelled, mlp, reference
from losscope.landscape import Hessian, Objective, SettingError, top_eigenpairs
from losscope.landscape.precision import float32_arithmetic
from noted import Noted

CE = nn.CrossEntropyLoss()
CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # the flags of CUDA can be set where there is none
_BACKENDS: dict[str, Any] = {
    "cuda": torch.backends.cuda.matmul,
    "mkldnn": torch.backends.mkldnn.matmul,
    "conv": torch.backends.cudnn.conv,
    "rnn": torch.backends.cudnn.rnn,
}


def flags() -> dict[str, Any]:
    """All of them, as either interface shows them; "refused" where one refuses to say."""
    found = {name: backend.fp32_precision for name, backend in _BACKENDS.items()}
    older = {
        "matmul": torch.get_float32_matmul_precision,
        "cuda.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
    }
    for name, get in older.items():
        try:
            found[name] = get()
        except RuntimeError:
            found[name] = "refused"
    return found


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {name: backend.fp32_precision for name, backend in _BACKENDS.items()}
    precision = torch.get_float32_matmul_precision()
    yield
    with contextlib.suppress(RuntimeError):
        torch.set_float32_matmul_precision(precision)
    for name, value in before.items():
        _BACKENDS[name].fp32_precision = value
    assert torch.get_float32_matmul_precision() == precision


def _older(precision: str) -> Callable[[], None]:
    return lambda: torch.set_float32_matmul_precision(precision)


def _newer(**values: str) -> Callable[[], None]:
    def change() -> None:
        for name, value in values.items():
            _BACKENDS[name].fp32_precision = value

    return change


def _both(*changes: Callable[[], None]) -> Callable[[], None]:
    return lambda: [change() for change in changes] and None


STATES: dict[str, Callable[[], None]] = {
    "as torch starts": lambda: None,
    "older, high": _older("high"),
    "older, medium": _older("medium"),
    "older, allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "older, cudnn off": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "newer, tf32": _newer(cuda="tf32"),
    "newer, ieee": _newer(cuda="ieee", mkldnn="ieee"),
    "newer, bf16 on the CPU": _newer(mkldnn="bf16"),
    "newer, convolutions": _newer(conv="ieee", rnn="tf32"),
    "newer, all": _newer(cuda="tf32", mkldnn="tf32", conv="tf32", rnn="tf32"),
    "mixed": _both(_older("high"), _newer(cuda="ieee")),
    "mixed, the other way": _both(_newer(cuda="tf32"), _newer(mkldnn="ieee", conv="ieee")),
}


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("state", STATES)
def test_every_flag_is_put_back(state: str, device: torch.device, tf32: bool) -> None:
    STATES[state]()
    before = flags()
    with float32_arithmetic(device, tf32):
        pass
    assert flags() == before
    with pytest.raises(KeyError), float32_arithmetic(device, tf32), float32_arithmetic(device, not tf32):
        raise KeyError
    assert flags() == before


@pytest.mark.parametrize("state", STATES)
def test_inside_float32_is_what_was_asked_for(state: str) -> None:
    STATES[state]()
    with float32_arithmetic(CUDA, tf32=False):
        inside = flags()
        assert inside["matmul"] in ("highest", "refused")
        assert inside["cuda"] not in ("tf32", "bf16")
        assert inside["mkldnn"] not in ("tf32", "bf16")
        assert inside["conv"] not in ("tf32", "bf16")
        assert inside["rnn"] not in ("tf32", "bf16")
        assert inside["cudnn.allow_tf32"] in (False, "refused")
    if state == "mixed":
        return  # "high" by the older interface, "ieee" by the newer: TF32 that is asked for stays off
    with float32_arithmetic(CUDA, tf32=True):
        inside = flags()
        assert inside["matmul"] in ("high", "refused")
        assert inside["cuda"] == "tf32"


def test_a_measurement_is_in_full_precision_whatever_training_uses() -> None:
    torch.set_float32_matmul_precision("medium")
    seen = Noted()

    def loss_fn(m: nn.Module, b: Any) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return CE(m(b[0]), b[1])

    objective = Objective(mlp(4, 5, 3), labelled([6]), loss_fn=loss_fn)
    objective.value_and_gradient()
    top_eigenpairs(Hessian(objective), seed=0)
    assert set(seen) == {"highest"}
    assert torch.get_float32_matmul_precision() == "medium"


# --------------------------------------------------------------------------- tensor cores, asked for


def test_bfloat16_products_say_what_they_err_by() -> None:
    _, _, H = reference("uneven_batches")
    objective = build("uneven_batches", torch.float32).objective()
    operator = Hessian(objective, precision="bf16")
    assert operator.note == ""
    result = top_eigenpairs(operator, tol=5e-2, seed=0)
    stated = operator.space.rounding
    assert 1e-4 < stated < 0.1  # bfloat16 has eight bits
    assert result.note == operator.note == f"bf16 arithmetic, products {stated:.1e} off"
    top = float(torch.linalg.eigvalsh(H)[-1])
    assert float(result.low[0]) <= top * (1 + stated)
    assert float(result.high[0]) >= top * (1 - stated)
    assert float(result.residuals[0]) >= 0.9 * stated * top
    V = torch.randn(len(H), 4, generator=torch.Generator().manual_seed(1))
    error = float((operator @ V - H.float() @ V).norm() / (H.float() @ V).norm())
    assert error <= 5 * stated
    assert error > 1e-4  # it is in bfloat16 indeed
    assert objective.space.rounding < 1e-5  # the objective's own space is as it was


def test_full_precision_is_full_beside_a_coarse_one() -> None:
    objective = build("uneven_batches", torch.float32).objective()
    V = torch.ones(objective.space.size, 1)
    before = Hessian(objective) @ V
    coarse = Hessian(objective, precision="bf16") @ V
    assert not torch.equal(coarse, before)
    assert torch.equal(Hessian(objective) @ V, before)
    assert objective.precision == "full"


def test_a_product_alone_measures_the_error_too() -> None:
    operator = Hessian(build("uneven_batches", torch.float32).objective(), "retained", precision="bf16")
    operator @ torch.ones(operator.shape[0])
    assert "bf16 arithmetic" in operator.note
    assert operator.space.rounding > 1e-4


def test_a_tolerance_that_bfloat16_cannot_reach_is_not_called_converged() -> None:
    operator = Hessian(build("uneven_batches", torch.float32).objective(), precision="bf16")
    result = top_eigenpairs(operator, tol=1e-5, seed=0, max_matvecs=60)
    assert not result.converged


@pytest.mark.parametrize(
    ("precision", "words"),
    [("tf32", 'needs a CUDA device, the parameters are on cpu; pass "full" or "bf16"'), ("half", "must be one of")],
)
def test_a_precision_that_is_not_there_is_refused(precision: str, words: str) -> None:
    objective = Objective(mlp(4, 5, 3), labelled([6]), criterion=CE)
    for make in (lambda: Hessian(objective, precision=precision), lambda: objective.computed_in(precision)):
        with pytest.raises(SettingError, match=words):
            make()
