"""What a run says its measuring cost: from the records, and from the account beside them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from losscope.probes import Record, Run, Sharpness, Snapshot, Spectrum, Trace, watch
from losscope.probes.cost import spent_by
from losscope.probes.expense import Expense, Peak
from probe_cases import Line


def recorded(status: str = "finished", **account: Any) -> Run:
    """Two probes of one player: the first measurement takes ten times as long."""
    records = [
        Record(
            step, "model", probe, seconds=seconds * (10 if step == 0 else 1), matvecs=products, kernel="retained",
            time=100.0 + step, due=step - 1 if step == 20 else None, memory=memory if step else None,
        )
        for step in (0, 10, 20)
        for probe, seconds, products, memory in (("sharpness", 0.1, 4, None), ("spectrum", 0.5, 100, 3 << 20))
    ]  # fmt: skip
    records.append(Record(30, "model", "sharpness", status="error", reason="ValueError: no", seconds=0.1, time=130.0))
    records.append(Record(30, "model", "log", values={"loss": 1.0}, time=130.0))
    return Run.from_records({"status": status, "players": {"model": {}}, "cost": account}, records)


ACCOUNT = {
    "seconds_measuring": 8.0, "seconds_total": 200.0, "budget": 0.05,
    "players": {"model": {
        "gradient_seconds": 0.05, "kernels": {"retained": "it is the fastest"},
        "postponed": {"sharpness": 1, "spectrum": 1}, "left_out": {"spectrum": 7},
    }},
}  # fmt: skip


def test_every_probe_is_summed_from_its_records() -> None:
    cost = recorded(**ACCOUNT).cost()
    assert (cost.seconds, cost.total, cost.share, cost.budget) == (8.0, 200.0, 0.04, 0.05)
    assert [each.probe for each in cost.probes] == ["spectrum", "sharpness"]  # the costly one first
    sharpness, spectrum = cost["sharpness"], cost["spectrum"]
    assert (sharpness.measurements, sharpness.attempts, sharpness.products, sharpness.first) == (3, 4, 12, 1.0)
    assert sharpness.seconds == pytest.approx(1.3) and sharpness.each == 0.1
    assert sharpness.gradients == pytest.approx(26.0) and sharpness.share == pytest.approx(1.3 / 200)
    assert sharpness.failures == ("error: ValueError: no",) and sharpness.memory is None
    assert (spectrum.memory, spectrum.postponed, spectrum.left_out, spectrum.kernels) == (3 << 20, 1, 7, ("retained",))
    text = repr(cost)
    for words in (
        "spectrum   3         6        3 %", "3 MiB", "7 of 10", "8 s of 200 s, 4 %; the budget is 5 %",
        "products of 'model' by retained: it is the fastest", "sharpness of 'model': error: ValueError: no",
        "by the budget: spectrum 1, sharpness 1", "gradient of 'model' on this data: 0.05 s",
    ):  # fmt: skip
        assert words in text
    with pytest.raises(KeyError, match="no probe 'trace' has left records; there are spectrum, sharpness"):
        cost["trace"]


def test_a_run_that_was_killed_is_summed_from_what_there_is() -> None:
    """The account in its description is of an earlier moment; a record says itself that it was late."""
    cost = recorded("running", **ACCOUNT | {"players": {}}).cost()
    assert (cost.seconds, cost.total) == (pytest.approx(7.3), pytest.approx(35.0))  # the first took until 100
    assert cost["spectrum"].postponed == 1 and cost["spectrum"].left_out == 0
    assert cost["spectrum"].gradients is None and "gradients" not in cost.table()[0]
    nothing = Run.from_records({"players": {"model": {}}}, []).cost()
    assert nothing.probes == () and nothing.total is nothing.share is None and "measuring took 0 s" in repr(nothing)


@pytest.mark.parametrize("damaged", ["half", {"seconds_total": None}, {"players": {"model": 3}}, {"players": None}])
def test_a_description_that_says_something_else_is_not_believed(damaged: Any) -> None:
    run = recorded()
    run.meta["cost"] = damaged
    assert run.cost().seconds == pytest.approx(7.3)


pytestmark = pytest.mark.filterwarnings("ignore:losscope. broken")


def trained(out: Path | None = None, budget: float | None = None) -> Any:
    line = Line()
    optimizer = torch.optim.SGD(line.model.parameters(), lr=0.1)

    def broken(snapshot: Snapshot) -> dict[str, float]:
        raise ArithmeticError("on purpose")

    probes = [Sharpness(), Trace(), Spectrum(), broken]
    options = line.options(probes=probes, every=2, out=out, budget=budget)
    with watch(line.model, optimizer, **options) as run:
        for step in range(9):
            optimizer.zero_grad()
            line.loss().backward()
            optimizer.step()
            if step == 5:
                run.early = run.cost()
    return run


def test_of_a_watch_and_of_its_run(tmp_path: Path) -> None:
    """While it is open the account is the present one; afterwards that of its end, in the folder too."""
    run = trained(tmp_path / "run")
    early, late = run.early, Run(tmp_path / "run").cost()
    assert repr(run.cost()) == repr(late)
    assert early["sharpness"].measurements == 3 and late["sharpness"].measurements == 5
    assert 0 < early.seconds < late.seconds < late.total
    assert late.seconds >= sum(each.seconds for each in late.probes)
    assert sum(each.products for each in late.probes) == sum(r.matvecs for r in run.run.records)
    assert late["broken"].failures == ("5 times error: ArithmeticError: on purpose",)
    assert late["sharpness"].gradients > 0 and set(late.reasons) == {"model"}
    assert all(each.postponed == each.left_out == 0 for each in late.probes) and late.budget is None
    described = json.loads((tmp_path / "run" / "meta.json").read_text())["cost"]
    assert spent_by(run.run) == (described["seconds_measuring"], described["seconds_total"])


@pytest.mark.filterwarnings("ignore:losscope. budget")
def test_what_the_budget_put_off_is_told(tmp_path: Path) -> None:
    """The account and the records agree: as many measurements as were due, made, postponed or left out."""
    cost = trained(tmp_path / "run", budget=1e-9).cost()
    for name in ("sharpness", "trace", "spectrum", "broken"):
        assert cost[name].attempts == 1 and cost[name].attempts + cost[name].left_out == 5
    assert "4 of 5" in repr(cost)


def test_the_first_user_of_the_density_is_its_probe() -> None:
    """Trace is read off the density where there is one, and is not charged with it."""
    cost = trained().cost()
    assert cost["spectrum"].products > 0
    assert cost["spectrum"].products > cost["trace"].products


def test_the_time_of_a_gradient_is_a_median(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shot:
        choice = None

        def __init__(self, seconds: float | None) -> None:
            self.gradient_seconds = seconds

    expense = Expense()
    assert expense.facts == {"gradient_seconds": None, "kernels": {}}
    for seconds in (9.0, 0.1, None, 0.2):
        expense.note(Shot(seconds))  # type: ignore[arg-type]
    assert expense.gradient_seconds == 0.2


def test_memory_is_not_known_on_the_cpu() -> None:
    assert Peak(torch.device("cpu")).bytes() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_on_the_gpu_is_what_raised_the_peak() -> None:
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    peak = Peak(device)
    held = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    assert peak.bytes() == torch.cuda.max_memory_allocated() - before >= 64 << 20
    del held
    below = Peak(device)
    torch.empty(1 << 20, dtype=torch.uint8, device=device)
    assert below.bytes() is None  # a larger peak was there before


def test_records_keep_what_only_some_have() -> None:
    plain, full = Record(3, "m", "p"), Record(3, "m", "p", due=2, memory=5)
    assert "due" not in json.loads(plain.to_json()) and "memory" not in json.loads(plain.to_json())
    again = Record.from_json(full.to_json())
    assert (again.due, again.memory) == (2, 5)
    with pytest.raises(ValueError, match="due of the wrong type"):
        Record.from_json(full.to_json().replace('"due":2', '"due":"2"'))
    assert math.isnan(Record.from_json(Record(3, "m", "p", value=math.nan, due=1).to_json()).value or 0.0)
