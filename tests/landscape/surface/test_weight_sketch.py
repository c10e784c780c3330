"""The sketch against the map it stands for, its mean and variance over seeds, and what it is the same for."""

import subprocess
import sys

import pytest
import torch

from losscope.landscape.errors import ParameterError, SettingError
from losscope.landscape.surface import WeightSketch
from losscope.landscape.surface import weight_sketch as module
from losscope.landscape.surface.weight_sketch import squared_distance


def dense(sketch: WeightSketch) -> torch.Tensor:
    """The matrix (m, n) of the map, from unit vectors."""
    return torch.stack([sketch(e) for e in torch.eye(sketch.size)], dim=1)


def vectors(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, 0.6 * x + y


def test_it_is_linear_with_one_sign_for_each_parameter_and_buckets_of_equal_size():
    sketch = WeightSketch(95, 10, seed=3)
    S = dense(sketch)
    assert S.abs().sum(dim=0).tolist() == [1.0] * 95
    assert set(S.abs().sum(dim=1).tolist()) == {9.0, 10.0}
    rows = S.abs()[:, :90].view(10, 9, 10)
    assert (rows.sum(dim=2) == 1).all()  # no two of the same row meet
    assert 30 < int((S.sum(dim=0) > 0).sum()) < 65
    x, y = vectors(95)
    assert torch.allclose(S @ x, sketch(x))
    assert torch.allclose(sketch(2 * x - y), 2 * sketch(x) - sketch(y))


@pytest.mark.parametrize("like", ["same", "other", "stretch"])
@pytest.mark.parametrize(("n", "m"), [(1500, 50), (1000, 100), (3000, 2000)])
def test_inner_products_are_right_on_average_and_spread_as_said(n, m, like):
    x, y = vectors(n)
    y = x if like == "same" else y
    if like == "stretch":  # all in a tenth of the parameters, in one piece
        x = torch.cat((x[: n // 10], torch.zeros(n - n // 10)))
        y = x
    seeds = 400
    found = torch.stack([WeightSketch(n, m, s)(x) @ WeightSketch(n, m, s)(y) for s in range(seeds)])
    bound = WeightSketch(n, m).variance / 2 * ((x @ x) * (y @ y) + (x @ y) ** 2)
    spread = found.var()
    assert abs(found.mean() - x @ y) < 4 * (bound / seeds).sqrt()
    assert spread < 1.25 * bound  # the variance of 400 is known to 7 % of itself
    if like != "stretch":
        assert spread > 0.8 * bound


def test_it_is_exact_where_it_is_as_long_as_what_it_sketches():
    x, y = vectors(40)
    for m in (40, 64):
        sketch = WeightSketch(40, m)
        assert sketch.variance == sketch.error == 0
        assert torch.allclose(sketch(x) @ sketch(y), x @ y, rtol=1e-14)


@pytest.mark.parametrize("chunk", [1, 7, 32, 1000])
def test_pieces_and_tensors_make_no_difference(chunk, monkeypatch):
    x, _ = vectors(900)
    whole = WeightSketch(900, 77, 5)(x)
    monkeypatch.setitem(module._CHUNK, "cpu", chunk)
    parts = [x[:3].view(3, 1), x[3:3], x[3:803].view(20, 40), x[803:].view(97)]
    assert torch.allclose(WeightSketch(900, 77, 5)(parts), whole, rtol=1e-13)
    others = [2 * p for p in parts]
    assert squared_distance(parts, others) == pytest.approx(float(x @ x), rel=1e-13)
    assert squared_distance(parts) == pytest.approx(float(x @ x), rel=1e-13)


def test_hashes_are_the_same_in_every_process_and_draw_from_no_stream():
    before = torch.get_rng_state()
    here = WeightSketch(500, 20, 9)(torch.ones(500))
    assert torch.equal(before, torch.get_rng_state())
    code = (
        "import torch; from losscope.landscape.surface import WeightSketch\n"
        "print(WeightSketch(500, 20, 9)(torch.ones(500)).tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(here.tolist())
    # Written down once: a run that is resumed by a later version goes on with the sketches there are.
    assert WeightSketch(12, 4, 1)(torch.arange(1.0, 13.0)).tolist() == PINNED
    assert not torch.equal(here, WeightSketch(500, 20, 8)(torch.ones(500)))


PINNED = [-5.0, 0.0, -13.0, 14.0]


def test_half_precision_is_summed_in_double():
    x = torch.full((4096,), 0.1, dtype=torch.bfloat16)
    assert squared_distance([x]) == pytest.approx(4096 * float(x[0]) ** 2, rel=1e-14)
    sketch = WeightSketch(4096, 64)
    assert torch.equal(sketch(x), sketch(x.double()))


def test_dimension_by_accuracy():
    assert WeightSketch.for_accuracy(10**6).dimension == 5000
    assert WeightSketch.for_accuracy(10**6, 0.1).error == pytest.approx(0.1, rel=1e-3)
    assert WeightSketch.for_accuracy(300).dimension == 300


@pytest.mark.parametrize("options", [{"size": 0}, {"dimension": 0}, {"dimension": 2.0}, {"seed": -1}])
def test_bad_settings(options):
    with pytest.raises(SettingError, match=next(iter(options))):
        WeightSketch(**{"size": 10, **options})
    with pytest.raises(SettingError, match="accuracy"):
        WeightSketch.for_accuracy(10, 0.0)
    with pytest.raises(ParameterError, match="of 10 parameters, got 11"):
        WeightSketch(10)(torch.ones(11))
