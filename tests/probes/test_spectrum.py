"""Probe Spectrum: against the dense Hessian, shared with other probes, stored and read back, failing, resumed."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losscope.landscape import RunError, SettingError, SpectralDensity
from losscope.probes import Needs, Record, Run, Sharpness, Snapshot, Spectrum, Stability, Trace, watch
from losscope.probes.density_arrays import ARRAYS, from_arrays, to_arrays
from noted import Noted
from probe_cases import everything, loader, mlp


def problem(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3))
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    return model, torch.optim.SGD(model.parameters(), lr=0.2), (x, y)


def trained(*probes: Any, steps: int = 12, every: int = 4, **options: Any) -> Run:
    model, optimizer, (x, y) = problem()
    options = {"data": (x, y), "criterion": F.cross_entropy, "every": every, "probes": probes} | options
    with watch(model, optimizer, **options) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return run.run


def dense(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """All eigenvalues of the Hessian, float64."""
    names, parameters = zip(*model.double().named_parameters(), strict=True)
    sizes = [p.numel() for p in parameters]
    x, y = data[0].double(), data[1]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = [piece.view(p.shape) for piece, p in zip(flat.split(sizes), parameters, strict=True)]
        return F.cross_entropy(torch.func.functional_call(model, dict(zip(names, pieces, strict=True)), (x,)), y)

    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    H = torch.func.hessian(loss)(flat)
    return torch.linalg.eigvalsh((H + H.T) / 2)


# --------------------------------------------------------------------------- what it measures


def test_against_the_dense_hessian() -> None:
    model, optimizer, data = problem()
    with watch(model, optimizer, data=data, criterion=F.cross_entropy, probes=[Spectrum(2, 16, outliers=5)]) as run:
        (record,) = run.measure_now()
        density = run.run.spectrum()
    exact = dense(model, data)
    n = len(exact)
    values = record.values
    assert record.status == "ok" and record.unit == "curvature"
    assert record.value == pytest.approx(float(exact[-1]), rel=1e-4)
    assert record.low <= float(exact[-1]) * (1 + 1e-5) and record.high >= float(exact[-1]) * (1 - 1e-5)
    for rank in (2, 3):
        assert values[f"lambda_{rank}"] == pytest.approx(float(exact[-rank]), rel=1e-3)
    assert "lambda_6" not in values
    assert values["lambda_min"] == pytest.approx(float(exact[0]), rel=1e-2)
    assert values["trace_low"] <= float(exact.sum()) <= values["trace_high"]
    assert (density.nodes.min(), density.nodes.max()) == pytest.approx((float(exact[0]), float(exact[-1])), rel=1e-2)
    truth = SpectralDensity.of_eigenvalues(exact)
    for name, q in (("quantile_05", 0.05), ("quantile_50", 0.5), ("quantile_95", 0.95)):
        assert values[f"{name}_low"] - 1e-6 <= truth.quantile(q).value <= values[f"{name}_high"] + 1e-6
    cut = values["near_zero"]
    assert cut == pytest.approx(1e-3 * float(exact.abs().max()), rel=1e-3)
    counts = {
        "share_negative": int((exact < -cut).sum()), "share_near_zero": int((exact.abs() <= cut).sum()),
        "share_positive": int((exact > cut).sum()),
    }  # fmt: skip
    for name, count in counts.items():
        assert values[f"{name}_low"] <= count / n <= values[f"{name}_high"], name
    assert sum(values[name] for name in counts) == pytest.approx(1)
    assert density.size == values["size"] == n
    assert 0 < values["wasserstein"] < float(exact[-1])
    assert all(value is None or math.isfinite(value) for value in values.values())


def test_a_small_hessian_is_known_eigenvalue_by_eigenvalue() -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = (torch.diag(torch.tensor([2.0, 1.0])), torch.zeros(2, 1))
    with watch(model, optimizer, data=data, criterion=nn.MSELoss(), probes=[Spectrum()], on_error="raise") as run:
        (record,) = run.measure_now()
        density = run.run.spectrum()
    assert density.nodes.tolist() == pytest.approx([1.0, 4.0])
    assert (record.value, record.values["lambda_2"], record.values["trace"]) == pytest.approx((4.0, 1.0, 5.0))
    assert record.matvecs <= 4


def test_the_loss_times_c_has_the_spectrum_times_c() -> None:
    found = []
    for factor in (1.0, 1000.0):
        model, optimizer, (x, y) = problem()
        with watch(
            model, optimizer, data=(x, y), loss_fn=lambda m, b, c=factor: c * F.cross_entropy(m(b[0]), b[1]),
            weight=lambda b: len(b[0]), probes=[Spectrum()],
        ) as run:  # fmt: skip
            run.measure_now()
            found.append(run.run.spectrum())
    torch.testing.assert_close(found[1].deflated, 1000 * found[0].deflated, rtol=1e-3, atol=1e-4)
    assert found[1].wasserstein == pytest.approx(1000 * found[0].wasserstein, rel=0.05)


# --------------------------------------------------------------------------- sharing


def test_needs_merge_to_the_most() -> None:
    merged = Spectrum(3, 20).needs() | Spectrum(2, 40).needs() | Sharpness(4).needs()
    assert (merged.density_vectors, merged.density_steps, merged.eigenpairs) == (3, 40, 4)
    assert Needs() | Spectrum(3, 20).needs() == Spectrum(3, 20).needs()


def products(*probes: Any) -> dict[str, int]:
    model, optimizer, data = problem()
    with watch(model, optimizer, data=data, criterion=F.cross_entropy, probes=probes, on_error="raise") as run:
        return {r.probe: r.matvecs for r in run.measure_now()}


def test_eigenpairs_are_shared_and_the_cost_is_counted() -> None:
    alone = products(Spectrum(2, 8))
    assert alone["spectrum"] > 16
    for probes in ((Sharpness(), Spectrum(2, 8)), (Spectrum(2, 8), Sharpness())):
        together = products(*probes)
        assert sum(together.values()) == alone["spectrum"]
        assert together[probes[1].name] in (0, 16)  # the first has paid for the eigenpairs


def test_a_trace_that_the_density_knows_well_enough_is_not_measured_again() -> None:
    alone = products(Spectrum(4, 16))["spectrum"]
    assert products(Spectrum(4, 16), Trace(rtol=0.9)) == {"spectrum": alone, "trace": 0}
    assert sum(products(Trace(rtol=0.9), Spectrum(4, 16)).values()) == alone  # whoever comes first pays
    assert products(Spectrum(2, 4), Trace(rtol=1e-4))["trace"] > 0


def test_a_density_that_fails_does_not_take_the_trace_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError("on purpose")

    monkeypatch.setattr("losscope.probes.snapshot.spectral_density", fails)
    model, optimizer, data = problem()
    options: dict[str, Any] = {"data": data, "criterion": F.cross_entropy, "probes": [Trace(), Spectrum()]}
    with (
        pytest.warns(RuntimeWarning, match="spectrum of 'model' failed.*MemoryError"),
        watch(model, optimizer, **options) as run,
    ):
        trace, spectrum = run.measure_now()
    assert (trace.status, spectrum.status) == ("ok", "error")
    assert trace.matvecs > 0


def test_the_density_is_computed_once_for_all() -> None:
    counted = []

    def mine(snapshot: Snapshot) -> dict[str, float]:
        before = snapshot.matvecs
        density = snapshot.density()
        counted.append(snapshot.matvecs - before)
        return {"value": density.bounds[0]}

    run = trained(Spectrum(5, 33), mine, steps=1)
    assert counted == [0]
    assert run.select("mine")[0].value == run.select("spectrum")[0].values["lambda_min"]
    trained(mine, steps=1)
    assert counted[1] > 0


def test_random_starts_are_its_own_and_new_at_each_step() -> None:
    """With a rate of zero the Hessian stays; only the starts differ, and they come again with the seed."""
    found = []
    for seed in (0, 0, 1):
        model, optimizer, (x, y) = problem()
        optimizer.param_groups[0]["lr"] = 0.0
        options: dict[str, Any] = {"criterion": F.cross_entropy, "probes": [Spectrum(2, 6)], "every": 1, "seed": seed}
        with watch(model, optimizer, data=(x, y), **options) as run:
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        found.append([run.run.spectrum(step).starts[0].weights for step in (0, 1)])
    assert not torch.equal(found[0][0], found[0][1])
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])


# --------------------------------------------------------------------------- stored and read back


def same(a: SpectralDensity, b: SpectralDensity) -> None:
    assert len(a.starts) == len(b.starts)
    for one, other in zip(a.starts, b.starts, strict=True):
        for name in ("nodes", "weights", "residuals"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert torch.equal(a.deflated, b.deflated) and torch.equal(a.errors, b.errors)
    assert torch.equal(a.nodes, b.nodes) and torch.equal(a.weights, b.weights)
    for name in ("size", "matvecs", "wasserstein", "confidence", "converged", "kernel", "note", "rounding", "steps"):
        assert getattr(a, name) == getattr(b, name), name


def test_the_density_comes_back_from_the_run_folder(tmp_path: Any) -> None:
    measured = {}

    def keep(snapshot: Snapshot) -> dict[str, float]:
        measured[snapshot.step] = snapshot.density()
        return {}

    run = trained(Spectrum(3, 9), keep, out=tmp_path / "run")
    assert run.path is not None
    for step in (0, 4, 8):
        same(run.spectrum(step), measured[step])
    same(run.spectrum(), measured[8])
    assert run.spectrum(0).trace.value == measured[0].trace.value
    kept = trained(Spectrum(3, 9))
    assert kept.path is None
    same(kept.spectrum(4), measured[4])  # a run in memory has its arrays too


def test_the_records_are_plain_and_small(tmp_path: Any) -> None:
    trained(Spectrum(), out=tmp_path / "run")
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for line, content in zip(lines, records, strict=True):
        assert len(line) < 4000
        assert content["v"] == 1 and content["nonfinite"] == []
        assert set(content["arrays"]) == set(ARRAYS)
        for path in content["arrays"].values():
            array = np.load(tmp_path / "run" / path, allow_pickle=False)
            assert array.dtype == np.float64 and array.nbytes < 1e5


def test_ragged_starts_are_padded() -> None:
    from losscope.landscape.quadrature import Quadrature

    starts = [Quadrature(*(torch.rand(m, dtype=torch.float64) for _ in range(3))) for m in (3, 1, 2)]
    empty = torch.empty(0, dtype=torch.float64)
    density = SpectralDensity(tuple(starts), empty, 9, 6, math.inf, 0.9, False, "k", "note", empty, 0.1, 3)
    arrays = to_arrays(density)
    assert arrays["nodes"].shape == (3, 3) and np.isnan(arrays["nodes"][1, 1:]).all()
    values = {
        "size": 9.0, "density_matvecs": 6.0, "wasserstein": None, "confidence": 0.9, "converged": 0.0,
        "rounding": 0.1, "steps": 3.0,
    }  # fmt: skip
    same(from_arrays(Record(0, "m", "spectrum", kernel="k", reason="note", values=values), arrays), density)


def test_spectra_that_are_not_there() -> None:
    run = trained(Spectrum(2, 4))
    with pytest.raises(RunError, match="no spectrum was measured at step 5; there are spectra of steps 0, 4, 8"):
        run.spectrum(5)
    with pytest.raises(RunError, match=r"no spectrum was measured; the run has none: add probe Spectrum\(\)"):
        trained(Trace()).spectrum()
    with pytest.raises(RunError, match="no player 'E'"):
        run.spectrum(player="E")


def test_a_folder_that_lost_an_array_or_holds_a_foreign_record(tmp_path: Any) -> None:
    run = trained(Spectrum(2, 4), out=tmp_path / "run")
    (tmp_path / "run" / run.select("spectrum")[0].arrays["weights"]).unlink()
    with pytest.raises(RunError, match=r"cannot read arrays/model-spectrum-0-weights\.npy"):
        run.spectrum(0)
    run.spectrum(4)
    run.select("spectrum")[1].values.clear()
    with pytest.raises(RunError, match="the spectrum of step 4 cannot be read"):
        run.spectrum(4)


def test_resuming_appends(tmp_path: Any) -> None:
    trained(Spectrum(2, 4), out=tmp_path / "run", steps=6)
    before = Run(tmp_path / "run").spectrum(4)
    trained(Spectrum(2, 4), out=tmp_path / "run", steps=6, resume=True)
    run = Run(tmp_path / "run")
    assert [r.step for r in run.select("spectrum")] == [0, 4, 8]
    same(run.spectrum(4), before)
    assert run.malformed == 0


# --------------------------------------------------------------------------- failing, and no trace


@pytest.mark.filterwarnings("ignore:losscope")
def test_what_cannot_be_measured_is_recorded() -> None:
    model, optimizer, (x, y) = problem()
    with watch(model, optimizer, data=(x, y), criterion=F.cross_entropy, probes=[Spectrum(2, 4)]) as run:
        with torch.no_grad():
            model[0].weight[0, 0] = float("nan")
        (record,) = run.measure_now()
        assert record.status == "nonfinite" and record.arrays == {}

    class Undifferentiable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise MemoryError("on purpose")

    calls = Noted()

    def loss(m: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise MemoryError("on purpose")
        return F.cross_entropy(m(batch[0]), batch[1])

    model, optimizer, (x, y) = problem()
    with watch(
        model, optimizer, data=(x, y), loss_fn=loss, weight=lambda b: len(b[0]), probes=[Spectrum(2, 4), Trace()]
    ) as run:
        records = run.measure_now()
    assert [r.status for r in records] == ["error", "error"]
    assert "MemoryError: on purpose" in records[0].reason


def test_one_measurement_leaves_no_trace() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    batches = list(loader("mlp"))
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    with watch(model, optimizer, data=batches, criterion=F.cross_entropy, probes=[Spectrum(), Stability()]) as run:
        before = everything(model, optimizer)
        assert [r.status for r in run.measure_now()] == ["ok", "ok"]
        assert everything(model, optimizer) == before


@pytest.mark.parametrize(
    "options",
    [
        {"vectors": 0}, {"vectors": 1.5}, {"vectors": True}, {"steps": 1}, {"steps": "many"}, {"outliers": -1},
        {"bound_every": 0}, {"near_zero": 0.0}, {"near_zero": 1.0}, {"near_zero": math.nan}, {"every": 0},
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(options))):
        Spectrum(**options)
